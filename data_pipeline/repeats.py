"""What a near-duplicate repeats: of the pairs that it was compared with the nearest, by the hashes that lie with the observations. The table of candidates
has none, so that they are read for the pairs in question alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.beside import is_declared
from data_pipeline.candidates import read_candidate_pieces
from data_pipeline.extend import read_components
from data_pipeline.observations import read_columns
from data_pipeline.pairing import AXES
from data_pipeline.published import home_of
from lato.faces.quality import hash_distance

Row = dict[str, Any]
Face = tuple[str, int]
"""Its part, and its number in that."""
Hashes = dict[Face, bytes]
_ENDS = ("from_part", "from_row", "to_part", "to_row")
_SEEN = ("frame", "pts", *AXES)
"""What tells whether a face is the one that was judged: a part keeps its name when it is looked at anew. Not the track, which may be one over several pieces."""
_NEEDED = [
    *("key", "verdict", "edit", "person", "source_id", *_ENDS),
    *(f"{side}_{name}" for side in ("from", "to") for name in _SEEN),
]


class Repeat(NamedTuple):
    """The nearest of the pairs that a pair was compared with."""

    bits: int
    """Of 256 by which the hashes of those two faces differ, the sources or the targets, that differ more."""
    key: str
    verdict: str


def find_repeats(folder: str, work: str, rows: Sequence[Row], among: Sequence[str] = ("accepted",)) -> dict[str, Repeat]:
    """Finds the nearest pair of each of some pairs: of one edit, of its person or of another source of its component, but not of two people who are declared as
    two. A pair and its reverse were judged together, so that what is near to either is near to both.

    Args:
        folder: The version's.
        work: The build's.
        rows: Of the candidates.
        among: Verdicts of the pairs that are compared with.

    Returns:
        Key -> the nearest. Without those that have none, or whose faces' observations are not here any more.
    """
    component = (read_components(home_of(folder)) or {}).get("components", {})
    others = _by_edit(_read_compared(folder, rows, component, among))
    pairs = [
        (row, one, other)
        for row, twins in zip(rows, find_twins(folder, rows), strict=True)
        for one in (row, *twins)
        for other in _compared(one, others, component)
    ]
    hashes = _read_hashes(work, {row["key"]: row for _, *both in pairs for row in both}.values())
    found: dict[str, tuple[int, bool, Repeat]] = {}
    for row, one, other in pairs:
        bits = _apart(one, other, hashes)
        if bits is not None:
            near = (bits, one is not row, Repeat(bits, other["key"], other["verdict"]))  # of two equally near the one in its own direction
            found[row["key"]] = min(near, found.get(row["key"], near))
    return {key: near for key, (_, _, near) in found.items()}


def faces_of(row: Row) -> tuple[Face, Face]:
    """Source and target of a candidate."""
    return (row["from_part"], row["from_row"]), (row["to_part"], row["to_row"])


def find_twins(folder: str, rows: Sequence[Row]) -> list[list[Row]]:
    """Of each candidate its reverse, where that had the same verdict."""
    sources, targets = (pa.array(sorted({row[f"{side}_part"] for row in rows}), pa.string()) for side in ("from", "to"))
    reverse = {(*faces_of(row)[1], *faces_of(row)[0]): n for n, row in enumerate(rows)}
    found: list[list[Row]] = [[] for _ in rows]
    for piece in read_candidate_pieces(folder, _NEEDED):
        near = piece.filter(pc.and_(pc.is_in(piece["from_part"], targets), pc.is_in(piece["to_part"], sources)))
        for number, ends in enumerate(zip(*(near[name].to_pylist() for name in _ENDS), strict=True)):
            if ends in reverse:
                row = near.slice(number, 1).to_pylist()[0]
                found[reverse[ends]] += [row] if row["verdict"] == rows[reverse[ends]]["verdict"] else []
    return found


def _read_compared(folder: str, rows: Sequence[Row], component: dict[str, str], among: Sequence[str]) -> Iterator[Row]:
    """The pairs of some verdicts that are of their people, or of sources that are tied to theirs."""
    tied = {component[row["source_id"]] for row in rows if row["source_id"] in component}
    sources = pa.array(sorted(name for name, of in component.items() if of in tied), pa.string())
    people = pa.array(sorted({row["person"] for row in rows}), pa.string())
    for piece in read_candidate_pieces(folder, _NEEDED):
        theirs = pc.or_(pc.is_in(piece["person"], people), pc.is_in(piece["source_id"], sources))
        yield from piece.filter(pc.and_(theirs, pc.is_in(piece["verdict"], pa.array(among)))).to_pylist()


def _by_edit(rows: Iterator[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["edit"]].append(row)
    return found


def _compared(row: Row, others: dict[str, list[Row]], component: dict[str, str]) -> Iterator[Row]:
    """Those that a pair was compared with; neither itself nor its reverse."""
    mine = frozenset(faces_of(row))
    for other in others.get(row["edit"], ()):
        if frozenset(faces_of(other)) == mine:
            continue
        known = component.get(row["source_id"]) if other["source_id"] != row["source_id"] else None
        tied = known is not None and known == component.get(other["source_id"]) and not (is_declared(row) and is_declared(other))
        if tied or other["person"] == row["person"]:
            yield other


def _read_hashes(work: str, rows: Iterable[Row]) -> Hashes:
    """Of the faces of some pairs; of those that are not as they were judged any more none."""
    wanted: dict[str, dict[int, list[Any]]] = defaultdict(dict)
    for row in rows:
        for side in ("from", "to"):
            wanted[row[f"{side}_part"]][row[f"{side}_row"]] = [row[f"{side}_{name}"] for name in _SEEN]
    found: Hashes = {}
    for part, faces in wanted.items():
        try:
            table = read_columns(work, part, [*_SEEN, "phash"])
        except FileNotFoundError:
            continue
        there = [number for number in faces if number < len(table)]
        for number, face in zip(there, table.take(there).to_pylist(), strict=True):
            if faces[number] == [face[name] for name in _SEEN] and face["phash"]:
                found[part, number] = face["phash"]
    return found


def _apart(row: Row, other: Row, hashes: Hashes) -> int | None:
    """By how many bits two pairs differ; None where that is not known any more."""
    faces = [(hashes.get(one), hashes.get(two)) for one, two in zip(faces_of(row), faces_of(other), strict=True)]
    known = [hash_distance(one, two) for one, two in faces if one and two]
    return max(known) if len(known) == 2 else None
