"""From frames of one source to observation rows: faces, tracks that end at cuts, expression against the person's own rest, representatives.

Frames are let go as soon as they were looked at; what a track keeps is a row a face, and of the faces that may become representatives a chip, or the
piece of the picture that it will be cut from. Pieces have a limit in bytes, so that memory does not grow with the resolution or the length of a video.
The detector looks every other second; between, a track's next crop is where its mesh was last, and every model looks at each frame anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.chips import Chip, Piece, chip_of, cut_piece
from data_pipeline.decoder import Frame
from lato.faces import FaceReader
from lato.faces.detect import Detection, face_box
from lato.faces.expression import activity, classify, estimate_neutral
from lato.faces.mesh import MeshObservation
from lato.faces.quality import QualityScores, letterbox, measure, sharpness, thumbnail
from lato.landmarks import Landmarks

_SAME_FACE_IOU = 0.3
_TWIN_IOU = 0.6
REPRESENTATIVES = 3
"""At most this many observations a pose bin and expression of a track go on to pairing."""
_CONSIDERED = 2 * REPRESENTATIVES
"""Kept a pose bin and provisional expression until the track ends and its rest is known."""
_POSE_BIN = 10.0
_CALM = 40
"""The rest that provisional expressions are read against is the mean of this many least active faces so far."""
DETECT_EVERY = 10
"""Sampled frames from one look of the detector to the next; it also looks when a track is lost, and after a cut."""
GLANCES = 2
"""So many of these looks are glances, then one is whole: a face that is too small for a glance is found by that. A glance that sees anything but the
faces that are followed is followed by a whole look at once."""


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


class _Unread:
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
class _Track:
    number: int
    unread: _Unread
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[tuple[Any, ...], list[_Kept]] = field(default_factory=dict)
    calm: list[tuple[float, npt.NDArray[np.float32]]] = field(default_factory=list)
    last: Detection | None = None

    def see(self, frame: Frame, detection: Detection, mesh: MeshObservation, score: float, uri: str | None, declared: str | None) -> None:
        """Takes in one face."""
        where = Detection(face_box(mesh.landmarks68), score, detection.points5)
        row = _row(self.number, frame, where, mesh, uri, declared)
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
            self.unread.add(kept)
            group.append(kept)
            group.sort(key=lambda kept: (-kept.sharpness, kept.row["pts"]))
            for worse in group[_CONSIDERED:]:
                self.unread.drop(worse)
            del group[_CONSIDERED:]

    def describe(self) -> list[dict[str, Any]]:
        """The track's rows, expressions read against its own rest, representatives with chip and quality."""
        rest = _neutral_of(self.rows)
        for row in self.rows:
            reading = classify(np.asarray(row["blendshapes"]), rest)
            row |= {
                "expression": reading.label.value,
                "expression_intensity": reading.intensity,
                "expression_scores": reading.scores.tolist(),
            }
        bins: dict[tuple[Any, ...], list[_Kept]] = {}
        for kept in sorted((k for group in self.kept.values() for k in group), key=lambda k: (-k.sharpness, k.row["pts"])):
            bins.setdefault(bin_of(kept.row), []).append(kept)
        for kept in (k for group in bins.values() for k in group[:REPRESENTATIVES]):
            chip, quality = kept.settle()
            kept.row |= {"representative": True, "chip": chip.jpg, "chip_transform": chip.transform.reshape(-1).tolist()}
            kept.row |= quality.__dict__
        return self.rows


def bin_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a track's representatives are limited by: 10-degree bins of pose, expression, and what is declared."""
    return (*_pose_bin(row), row["expression"], row["declared"])


def watch_video(
    frames: Iterable[Frame], reader: FaceReader, box: tuple[float, float, float, float] | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Finds and follows every face of a video.

    Args:
        frames: In order of time.
        reader: The perception models.
        box: Shares of the picture within which the centre of a face must lie; None for all faces.

    Returns:
        Rows (columns of `observations.SCHEMA` but the source's own), and the number of frames seen.
    """
    tracks: list[_Track] = []
    alive: list[_Track] = []
    unread = _Unread()
    count = shot = glances = 0
    since = DETECT_EVERY
    for frame in frames:
        count += 1
        if frame.shot != shot:  # no track goes on over a cut
            alive, shot = [], frame.shot
        seen = [track.last for track in alive if track.last is not None]
        if seen and since >= DETECT_EVERY:
            seen = _glance(frame, seen, reader, box) if glances < GLANCES else []
            glances += 1
            since = 0
        followed = _follow(frame, alive, reader) if seen else None
        if followed is None:
            alive = _detect(frame, alive, tracks, unread, reader, box)
            since, glances = 1, 0
            continue
        for (track, mesh), where in zip(followed, seen, strict=True):
            track.see(frame, where, mesh, where.score, None, None)
        since += 1
    return [row for track in tracks for row in track.describe()], count


def watch_images(images: Iterable[tuple[Frame, str, str | None]], reader: FaceReader) -> tuple[list[dict[str, Any]], int]:
    """Reads the largest face of every image of a set; the set is one track. Images come with their uri and what is declared of them."""
    track, count = _Track(0, _Unread()), 0
    for frame, uri, declared in images:
        count += 1
        for detection in reader.detector.detect(frame.image)[:1]:
            mesh = reader.mesh.settle(frame.image, detection)
            if mesh is not None:
                track.see(frame, detection, mesh, detection.score, uri, declared)
    return track.describe() if track.rows else [], count


def _follow(frame: Frame, alive: list[_Track], reader: FaceReader) -> list[tuple[_Track, MeshObservation]] | None:
    """The next mesh of every track where it was last; None if one is lost or two have met: then the detector must look."""
    found: list[tuple[_Track, MeshObservation]] = []
    for track in alive:
        assert track.last is not None, "a track that is alive was seen"
        mesh = reader.mesh.settle(frame.image, track.last)
        if mesh is None or _iou(face_box(mesh.landmarks68), track.last.box) < _SAME_FACE_IOU:
            return None
        if any(_iou(face_box(mesh.landmarks68), face_box(other.landmarks68)) > _TWIN_IOU for _, other in found):
            return None
        found.append((track, mesh))
    return found


def _glance(frame: Frame, known: list[Detection], reader: FaceReader, box: tuple[float, float, float, float] | None) -> list[Detection]:
    """The detections of a glance, in the order of the faces that are followed, by where those were last; none where it sees others, or fewer."""
    found = [one for one in reader.detector.glance(frame.image) if box is None or _lies_in(one, frame.image, box)]
    matched = [max(found, key=lambda one: _iou(one.box, last.box), default=last) for last in known]
    alike = all(_iou(one.box, last.box) >= _SAME_FACE_IOU for one, last in zip(matched, known, strict=True))
    return matched if alike and len(found) == len(known) == len({id(one) for one in matched}) else []


def _detect(
    frame: Frame,
    alive: list[_Track],
    tracks: list[_Track],
    unread: _Unread,
    reader: FaceReader,
    box: tuple[float, float, float, float] | None,
) -> list[_Track]:
    """Looks for all faces and gives each to the track that was there, or to a new one."""
    continued: list[_Track] = []
    for detection in reader.detector.detect(frame.image):
        mesh = reader.mesh.settle(frame.image, detection) if box is None or _lies_in(detection, frame.image, box) else None
        if mesh is None or any(
            _iou(face_box(mesh.landmarks68), track.last.box) > _TWIN_IOU for track in continued if track.last is not None
        ):
            continue
        scored = [
            (_iou(face_box(mesh.landmarks68), track.last.box), -track.number, track)
            for track in alive
            if track not in continued and track.last
        ]
        overlap, _, track = max(scored, default=(0.0, 0, None), key=lambda entry: entry[:2])
        if track is None or overlap < _SAME_FACE_IOU:
            track = _Track(len(tracks), unread)
            tracks.append(track)
        track.see(frame, detection, mesh, detection.score, None, None)
        continued.append(track)
    return continued


def _neutral_of(rows: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """A track's own rest; declared pictures of a set say which are at rest."""
    resting = [row["blendshapes"] for row in rows if row["declared"] and json.loads(row["declared"])["expression"] == "neutral"]
    if resting:
        return np.mean(np.asarray(resting, np.float32), axis=0)
    return estimate_neutral(np.array([row["blendshapes"] for row in rows]))


def _row(track: int, frame: Frame, detection: Detection, mesh: MeshObservation, uri: str | None, declared: str | None) -> dict[str, Any]:
    return {
        "track": track,
        "frame": frame.index,
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


def _lies_in(detection: Detection, image: npt.NDArray[np.uint8], box: tuple[float, float, float, float]) -> bool:
    centre = (detection.box[:2] + detection.box[2:]) / 2 / [image.shape[1], image.shape[0]]
    return bool(box[0] <= centre[0] <= box[2] and box[1] <= centre[1] <= box[3])


def _iou(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    extent = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = float(extent.prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared + 1e-9)
