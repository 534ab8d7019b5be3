"""What is kept of a face that is followed: a row a frame, expressions against the person's own rest, and the best faces with chip and quality.

Of the faces that may become representatives a track keeps the piece of the picture that their chip will be cut from. Pieces have a limit in bytes, so that
memory does not grow with the resolution or the length of a video.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.chips import Chip, Piece, chip_of, cut_piece
from data_pipeline.decoder import Frame
from lato.faces.detect import Detection, face_box
from lato.faces.expression import activity, classify, estimate_neutral
from lato.faces.mesh import MeshObservation
from lato.faces.quality import QualityScores, letterbox, measure, sharpness, thumbnail
from lato.landmarks import Landmarks

REPRESENTATIVES = 3
"""At most this many observations a pose bin and expression of a track go on to pairing."""
_CONSIDERED = 2 * REPRESENTATIVES
"""Kept a pose bin and provisional expression until the track ends and its rest is known."""
_POSE_BIN = 10.0
NOT_SHARPEST = f"not among the {REPRESENTATIVES} sharpest of its pose and expression"
PASSED_BY = f"passed by while its track went on: {_CONSIDERED} sharper of its pose and expression, as these were read then"
"""Why a face is no representative. Of the second kind some would be one, had the track's rest been known from its first frame."""
_CALM = 40
"""The rest that provisional expressions are read against is the mean of this many least active faces so far."""
_UNREAD_BYTES = 64 * 1024**2
"""Of pictures that wait for a chip and quality of their face, of all tracks together."""


@dataclass(eq=False)
class _Kept:
    """A face that may become a representative. Its chip and quality are made when the track has ended, or when too many wait."""

    sharpness: float
    row: dict[str, Any]
    landmarks: Landmarks
    unread: tuple[Piece, npt.NDArray[np.uint8], float] | None
    """Its piece of the picture, thumbnail and the picture's letterbox; None once they were read."""
    read: tuple[Chip, QualityScores] | None = None

    def settle(self) -> tuple[Chip, QualityScores]:
        """Its chip and quality."""
        if self.unread is not None:
            piece, small, bars = self.unread
            self.read = chip_of(piece, self.landmarks), measure(piece.pixels, piece.place(self.landmarks), small, bars)
            self.unread = None
        assert self.read is not None, "what is not unread was read"
        return self.read


class Unread:
    """The faces that wait, in the order they came."""

    def __init__(self) -> None:
        self._waiting: dict[_Kept, int] = {}
        self._bytes = 0

    def add(self, kept: _Kept) -> None:
        """One more; where all together are too large, the first are read and no longer held."""
        assert kept.unread is not None, "a new face was not read"
        self._waiting[kept] = kept.unread[0].pixels.nbytes + kept.unread[1].nbytes
        self._bytes += self._waiting[kept]
        while self._bytes > _UNREAD_BYTES:
            first = next(iter(self._waiting))
            first.settle()
            self.drop(first)

    def drop(self, kept: _Kept) -> None:
        """One that no longer waits."""
        self._bytes -= self._waiting.pop(kept, 0)


@dataclass
class Track:
    """One face from frame to frame, or the pictures of a set."""

    number: int
    waiting: Unread
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[tuple[Any, ...], list[_Kept]] = field(default_factory=dict)
    calm: list[tuple[float, npt.NDArray[np.float32]]] = field(default_factory=list)
    last: Detection | None = None

    def see(self, frame: Frame, detection: Detection, mesh: MeshObservation, score: float, uri: str | None, declared: str | None) -> None:
        """Takes in one face."""
        where = Detection(face_box(mesh.landmarks68), score, detection.points5)
        row = face_row(self.number, frame, where, mesh, uri, declared)
        self.rows.append(row)
        self.last = where
        self.calm = sorted([*self.calm, (activity(mesh.blendshapes), mesh.blendshapes)], key=lambda entry: entry[0])[:_CALM]
        rest = np.mean([vector for _, vector in self.calm], axis=0)
        bin_ = (*_pose_bin(row), classify(mesh.blendshapes, rest).label, declared)  # declared pictures are few and each is wanted
        group = self.kept.setdefault(bin_, [])
        small = thumbnail(frame.image, mesh.landmarks68)
        sharp = sharpness(small)
        if len(group) < _CONSIDERED or sharp > group[-1].sharpness:
            piece = cut_piece(frame.image, mesh.landmarks68).kept()
            kept = _Kept(sharp, row, mesh.landmarks68, (piece, small, letterbox(frame.image)))
            self.waiting.add(kept)
            group.append(kept)
            group.sort(key=lambda kept: (-kept.sharpness, kept.row["pts"]))
            for worse in group[_CONSIDERED:]:
                self.waiting.drop(worse)
            del group[_CONSIDERED:]

    def describe(self) -> list[dict[str, Any]]:
        """The track's rows, expressions read against its own rest, representatives with chip and quality."""
        rest = _neutral_of(self.rows)
        for row in self.rows:
            row |= read_expression(row["blendshapes"], rest)
        bins: dict[tuple[Any, ...], list[_Kept]] = {}
        for kept in sorted((k for group in self.kept.values() for k in group), key=lambda k: (-k.sharpness, k.row["pts"])):
            bins.setdefault(bin_of(kept.row), []).append(kept)
        for kept in (k for group in bins.values() for k in group[:REPRESENTATIVES]):
            chip, quality = kept.settle()
            kept.row |= {"representative": True, "chip": chip.jpg, "chip_transform": chip.transform.reshape(-1).tolist()}
            kept.row |= quality.__dict__
        return self.rows


def read_expression(blendshapes: npt.ArrayLike, rest: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The columns of a face's expression, (52,) against the same person's rest."""
    reading = classify(np.asarray(blendshapes), rest)
    return {
        "expression": reading.label.value,
        "expression_intensity": reading.intensity,
        "expression_scores": reading.scores.tolist(),
    }


def bin_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a track's representatives are limited by: 10-degree bins of pose, expression, and what is declared."""
    return (*_pose_bin(row), row["expression"], row["declared"])


def why_not_chosen(rows: Sequence[dict[str, Any]]) -> list[str | None]:
    """Why each face of a part is no representative of its track; None for those that are."""
    chosen: dict[tuple[Any, ...], int] = defaultdict(int)
    for row in rows:
        chosen[row["track"], *bin_of(row)] += row["representative"]
    return [
        None if row["representative"] else NOT_SHARPEST if chosen[row["track"], *bin_of(row)] >= REPRESENTATIVES else PASSED_BY
        for row in rows
    ]


def _neutral_of(rows: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """A track's own rest; declared pictures of a set say which are at rest."""
    resting = [row["blendshapes"] for row in rows if row["declared"] and json.loads(row["declared"])["expression"] == "neutral"]
    if resting:
        return np.mean(np.asarray(resting, np.float32), axis=0)
    return estimate_neutral(np.array([row["blendshapes"] for row in rows]))


def face_row(
    track: int, frame: Frame, detection: Detection, mesh: MeshObservation, uri: str | None, declared: str | None
) -> dict[str, Any]:
    """An observation row, but for what only its track knows."""
    return {
        "track": track,
        "frame": frame.number,
        "pts": frame.pts,
        "image_uri": uri,
        "width": frame.image.shape[1],
        "height": frame.image.shape[0],
        "detection_score": detection.score,
        "box": detection.box.tolist(),
        "landmarks": mesh.landmarks68.reshape(-1).tolist(),
        "blendshapes": mesh.blendshapes.tolist(),
        "yaw": mesh.yaw,
        "pitch": mesh.pitch,
        "roll": mesh.roll,
        "representative": False,
        "declared": declared,
    }


def _pose_bin(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(round(row[axis] / _POSE_BIN) for axis in ("yaw", "pitch", "roll"))
