"""Faces that are read again once more is known of whom they show: tracks of a long video over its pieces' borders, and photos of one declared person.

A table step: nothing is decoded. The rest that a face's expression is read against is then that of all its person's frames, as far as these are one track
or photos; in a part it is that of the piece.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.observations import read_columns
from data_pipeline.tracks import read_expression
from lato.edits import Expression
from lato.faces.expression import EXPRESSIONS, estimate_neutral

OBSERVED = ("track", "box", "representative", "at_start", "goes_on")
"""What is read of a piece's faces to join tracks."""
_SAME_FACE_IOU = 0.3
_TRACKS_A_PIECE = 1_000_000


def track_of_source(piece: int, track: int) -> int:
    """A number of its own for a track of a piece of a source."""
    return track + piece * _TRACKS_A_PIECE


class Meeting(NamedTuple):
    """Two tracks that are in one place on both sides of a border."""

    overlap: float
    before: int
    after: int
    faces: tuple[int, int]
    """Rows of the representatives nearest to the border, each in its own part: they say whether the two show one face."""


def meetings_at_borders(parts: Sequence[str], work: str) -> list[list[Meeting]]:
    """Of each border between two pieces: the tracks that meet there, in the last frame before it and in the first one after it; none over a cut."""
    pieces = (read_columns(work, part, list(OBSERVED)) for part in parts)
    return [_meet(before, after) for before, after in itertools.pairwise(pieces)]


def _meet(before: pa.Table, after: pa.Table) -> list[Meeting]:
    last, first = _representatives(before, -1), _representatives(after, 0)
    return [
        Meeting(overlap, track, other, (last[track], first[other]))
        for track, box in _boxes(before, "goes_on")
        for other, there in _boxes(after, "at_start")
        if (overlap := _iou(box, there)) >= _SAME_FACE_IOU
    ]


def _boxes(piece: pa.Table, where: str) -> Iterator[tuple[int, list[float]]]:
    at = piece.filter(piece[where])
    return zip(at["track"].to_pylist(), at["box"].to_pylist(), strict=True)


def _representatives(piece: pa.Table, which: int) -> dict[int, int]:
    """Track -> row of its first or last representative; rows of a track lie in order of time."""
    rows: dict[int, list[int]] = defaultdict(list)
    chosen = np.flatnonzero(np.asarray(piece["representative"]))
    for row, track in zip(chosen.tolist(), np.asarray(piece["track"])[chosen].tolist(), strict=True):
        rows[track].append(row)
    return {track: found[which] for track, found in rows.items()}


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared + 1e-9)


def join_tracks(met: Sequence[Sequence[Meeting]], vectors: Sequence[Mapping[int, npt.NDArray[np.float32]]], alike: float) -> dict[int, int]:
    """Which tracks are one: those that meet at a border and show one face. One goes on with one; where several could, those that overlap most.

    Args:
        met: Of each border.
        vectors: Of each piece: row -> identity, of the faces that decide.
        alike: Cosine from which two are one face.

    Returns:
        Track of the source -> the one that it goes on with, from its first piece on; of those alone that go on with one.
    """
    joined: dict[int, int] = {}
    for number, meetings in enumerate(met, 1):
        gone = set[int]()
        for one in sorted(meetings, key=lambda one: (-one.overlap, one.before, one.after)):
            same = np.dot(vectors[number - 1][one.faces[0]], vectors[number][one.faces[1]]) >= alike
            before, after = track_of_source(number - 1, one.before), track_of_source(number, one.after)
            if same and before not in gone and after not in joined:
                gone.add(before)
                joined[after] = joined.get(before, before)
    return joined


def read_joined(faces: Sequence[dict[str, Any]], parts: Sequence[str], joined: Mapping[int, int], work: str) -> None:
    """Reads the expressions of tracks that were joined against the rest of all their frames; `faces` have their `part`, and their source's track."""
    names = set(joined.values())
    shown: dict[int, list[npt.NDArray[np.float32]]] = defaultdict(list)
    of_face: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
    for number, part in enumerate(parts if names else ()):
        table = read_columns(work, part, ["track", "blendshapes"])
        if not len(table):  # a piece without a face, or that failed
            continue
        own = (track_of_source(number, track) for track in table["track"].to_pylist())
        tracks = np.array([joined.get(track, track) for track in own], np.int64)
        blendshapes = _matrix(table["blendshapes"])
        for name in names.intersection(tracks.tolist()):
            shown[name].append(blendshapes[tracks == name])
        of_face |= {(part, face["row"]): blendshapes[face["row"]] for face in faces if face["part"] == part and face["track"] in names}
    rests = {name: estimate_neutral(np.concatenate(found)) for name, found in shown.items()}
    for face in faces:
        if face["track"] in names:
            face |= read_expression(of_face[face["part"], face["row"]], rests[face["track"]])


def read_photos(faces: Sequence[dict[str, Any]], work: str) -> None:
    """Reads the expressions of each declared person's photos against the rest over all of them.

    With few photos the calmest may be a smile: only those count as rest in which the second network (fer) sees it before all else. And their rest is of few
    poses, against which a face at rest that is turned otherwise reads as sad: only an expression that fer sees too is taken over. All else keeps the reading
    against its source's own rest, and so do sets in which something is declared of a picture.
    """
    made = {face["source_id"] for face in faces if face["declared"]}
    people: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for face in faces:
        if face["kind"] == "image" and face["identity"] and face["source_id"] not in made:
            people[face["identity"]].append(face)
    for photos in people.values():
        resting = [face for face in photos if _seen_by_fer(face) == Expression.NEUTRAL]
        if not resting or len({face["source_id"] for face in photos}) < 2:
            continue
        blendshapes = {
            part: _matrix(read_columns(work, part, ["blendshapes"])["blendshapes"]) for part in {face["part"] for face in photos}
        }
        rest = estimate_neutral(np.stack([blendshapes[face["part"]][face["row"]] for face in resting]))
        for face in photos:
            read = read_expression(blendshapes[face["part"]][face["row"]], rest)
            if read["expression"] == _seen_by_fer(face) != Expression.NEUTRAL:
                face |= read


def _seen_by_fer(face: dict[str, Any]) -> Expression | None:
    """What the second network sees before all else; None where it was not asked."""
    return EXPRESSIONS[int(np.argmax(face["fer_scores"]))] if face.get("fer_scores") else None


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    return np.asarray(column.combine_chunks().flatten(), np.float32).reshape(len(column), -1)
