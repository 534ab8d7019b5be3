"""Why a pair that passed every filter is no sample: the pair that it repeats, the quota that was full, the track that would join too many. As far as what is
published and what was observed still tell it; what decided is not stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import networkx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.candidates import SCHEMA, read_candidate_pieces
from data_pipeline.cells import COLUMNS, cells_of
from data_pipeline.copies import read_copies
from data_pipeline.divide import tracks_of
from data_pipeline.extend import read_components
from data_pipeline.pairing import AXES
from data_pipeline.published import home_of
from data_pipeline.repeats import Repeat, faces_of, find_repeats, find_twins
from data_pipeline.rules import PairingConfig

Row = dict[str, Any]
Line = tuple[str, str, str, str]
"""What decides, what the pair has, what is asked, and what came of it."""
_LATER = ("split conflict", "bridge", "near-duplicate", "quota", "cell quota", "render failed")
"""Of a pair that was kept when others were compared with it, and is no sample for another reason."""


def explain_refusal(row: Row, config: PairingConfig, folder: str, work: str) -> tuple[list[Line], list[str]]:
    """What refused a pair after the filters: lines of a score and its limit, and sentences; neither for other verdicts.

    Args:
        row: Of the candidates.
        config: What the version was judged by.
        folder: The version's.
        work: The build's.
    """
    if row["verdict"] == "near-duplicate":
        return _explain_near_duplicate(row, config, folder, work)
    if row["verdict"] == "quota":
        return _explain_quota(row, config, folder)
    if row["verdict"] == "cell quota":
        return _explain_cell_quota(row, config, folder)
    return [], _explain_bridge(row, folder) if row["verdict"] == "bridge" else []


def _explain_near_duplicate(row: Row, config: PairingConfig, folder: str, work: str) -> tuple[list[Line], list[str]]:
    copies = read_copies(home_of(folder))
    for name in dict.fromkeys((row["source_id"], row["target_id"])):
        if name in copies:
            return [], [f"{name} shows the clip of {copies[name].of}: no pair of it is used, whatever it looks like"]
    limit = config.near_duplicate_bits
    near = find_repeats(folder, work, [row]).get(row["key"])
    if near is None or near.bits > limit:  # what it repeats is no sample itself
        later = find_repeats(folder, work, [row], _LATER).get(row["key"])
        near = later if later and later.bits <= limit else near
    if near is None:
        return [], ["which pair it repeats nobody can say: that, or what was observed of the faces, is not here any more"]
    return [_beside_limit(near, limit)], [f"repeats {near.key} ({near.verdict})" if near.bits <= limit else _gone(near)]


def _beside_limit(near: Repeat, limit: int) -> Line:
    return "near-duplicate", str(near.bits), f"> {limit} bits", "passed" if near.bits > limit else "failed"


def _gone(near: Repeat) -> str:
    return f"which pair it repeats nobody can say: that is not here any more. The nearest there is: {near.key} ({near.verdict})"


def _explain_quota(row: Row, config: PairingConfig, folder: str) -> tuple[list[Line], list[str]]:
    """The quotas of its people, sources and edits, and what accepted pairs take of them."""
    mine = [row, *find_twins(folder, [row])[0]]
    people, sources = _same_person(row["person"], folder), {row["source_id"], row["target_id"]}
    accepted = _accepted(folder, [*_ENDS, "person", "source_id", "target_id", "edit"])
    theirs = [other for other in accepted if other["person"] in people or sources & {other["source_id"], other["target_id"]}]
    person = [other for other in theirs if other["person"] in people]
    named = row["person"] + (f" and {len(people) - 1} more tracks with that face" if len(people) > 1 else "")
    lines = [_quota(f"quota of the person {named}", _count(person), config.per_identity)]
    lines += [
        _quota(
            f"quota of the source {name}",
            _count(other for other in theirs if name in (other["source_id"], other["target_id"])),
            config.per_source,
        )
        for name in sorted(sources)
    ]
    lines += [
        _quota(f"quota of the edit {edit} of that person", sum(other["edit"] == edit for other in person), config.per_cell)
        for edit in dict.fromkeys(one["edit"] for one in mine)
    ]
    return lines, [] if any(line[3] == "full" for line in lines) else [_NOT_FULL]


_NOT_FULL = "none is full now: pairs that took the places went themselves, for a later reason"


def _explain_cell_quota(row: Row, config: PairingConfig, folder: str) -> tuple[list[Line], list[str]]:
    if config.cell_quota is None:
        return [], []
    mine, taken = _cell(row), set()
    for piece in read_candidate_pieces(folder, ["verdict", *_ENDS, *COLUMNS]):
        accepted = piece.filter(pc.equal(piece["verdict"], "accepted"))
        if len(accepted):
            there = accepted.take(np.flatnonzero(cells_of(accepted) == mine))
            taken |= {frozenset(faces_of(other)) for other in there.to_pylist()}
    line = _quota(f"quota of the cell {_say_cell(row)}", len(taken), config.cell_quota)
    return [line], [] if line[3] == "full" else [_NOT_FULL]


def _cell(row: Row) -> int:
    table = pa.Table.from_pylist([{name: row[name] for name in COLUMNS}], pa.schema([SCHEMA.field(name) for name in COLUMNS]))
    return int(cells_of(table)[0])


def _say_cell(row: Row) -> str:
    steps = [f"{axis} {row[f'step_{axis}']:+d}" for axis in AXES if row[f"step_{axis}"]]
    ends = dict.fromkeys([row["from_expression"], row["to_expression"]])
    return ", ".join([" to ".join(ends) if len(ends) > 1 else "same expression", *steps])


def _explain_bridge(row: Row, folder: str) -> list[str]:
    bridges = set((read_components(home_of(folder)) or {}).get("bridges", ()))
    tracks = [track for track in dict.fromkeys(tracks_of(row)) if track in bridges]
    if not tracks:
        return [
            "which of its tracks is the bridge nobody can say any more: something was forgotten since, and what ties sources went with it"
        ]
    return [
        f"track {track} is the bridge: by its face alone two large groups of people would be one; it ties nobody now" for track in tracks
    ]


_ENDS = ("from_part", "from_row", "to_part", "to_row")


def _accepted(folder: str, columns: list[str]) -> Iterable[Row]:
    for piece in read_candidate_pieces(folder, ["verdict", *columns]):
        yield from piece.filter(pc.equal(piece["verdict"], "accepted")).to_pylist()


def _same_person(person: str, folder: str) -> set[str]:
    """Who counts as that person: of somebody who is not declared, all tracks that faces tie to theirs."""
    links = (read_components(home_of(folder)) or {}).get("links", [])
    graph = networkx.Graph([(link["first"], link["second"]) for link in links])
    return {person} | (set(networkx.node_connected_component(graph, person)) if person in graph else set())


def _count(rows: Iterable[Row]) -> int:
    """Pairs, each once with its reverse."""
    return len({frozenset(faces_of(row)) for row in rows})


def _quota(name: str, used: int, limit: int) -> Line:
    return name, str(used), f"< {limit}", "full" if used >= limit else "has room"
