"""Which edits either way accepts: (track, source bin, target bin) of the accepted pairs. Part of `make bench-data`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from data_pipeline.groups import Scorer
from data_pipeline.judge import judge
from data_pipeline.pairing import group_people
from data_pipeline.rules import ACCEPTED, PairingConfig, Rules
from data_pipeline.score import write_scores
from data_pipeline.tracks import bin_of


class Known:
    """What could be asked for is all there."""

    def __init__(self, rows: list[dict[str, Any]], name: str = "embedding") -> None:
        self._vectors = {number: np.atleast_1d(row[name]) for number, row in enumerate(rows)}

    def read(self, part: str) -> Mapping[int, npt.NDArray[np.float32]]:
        """Of every row."""
        return self._vectors

    def compute(self, wanted: Mapping[str, set[int]]) -> None:
        """Never called."""
        raise AssertionError(wanted)


def cells(tables: list[str], judged: list[Any], shots: dict[int, int]) -> set[tuple[Any, ...]]:
    """(track, source bin, target bin) of the accepted pairs; a track is named by its shot."""
    found = set()
    for uri, decided in zip(tables, judged, strict=True):
        for row in pq.read_table(uri).take(np.flatnonzero(decided.codes == ACCEPTED)).to_pylist():
            bins = [
                (*(round(row[f"{side}_{axis}"] / 10) for axis in ("yaw", "pitch", "roll")), row[f"{side}_expression"])
                for side in ("from", "to")
            ]
            if bins[0] != bins[1]:
                found.add((shots[row["from_frame"]], *bins))
    return found


def plain_cells(rows: list[dict[str, Any]], scorers: dict[str, Scorer], config: PairingConfig) -> set[tuple[Any, ...]]:
    """The same of the plain loop's faces: paired by the same rule (the three sharpest of a bin) and judged by the same filters."""
    if not rows:
        return set()
    faces = [row["face"] for row in rows]
    extra = [a | b | c for a, b, c in zip(*(scorers[name](faces) for name in ("occlusion", "writing", "fer")), strict=True)]
    whole = [
        row
        | more
        | {"row": n, "part": "p", "source_id": "s", "source_sha256": "x", "kind": "video", "identity": None, "held_out": False}
        | {"own_track": row["track"]}
        for n, (row, more) in enumerate(zip(rows, extra, strict=True))
    ]
    with tempfile.NamedTemporaryFile(suffix=".parquet") as table:
        write_scores(group_people(whole, same_person=False), config.margin, table.name)
        judged = judge([table.name], Rules(config), Known(rows), writing=Known(whole, "writing"))
        return cells([table.name], judged, {row["frame"]: row["track"] for row in rows})


def loose_cells(rows: list[dict[str, Any]], shots: dict[int, int], pairing: PairingConfig) -> set[tuple[Any, ...]]:
    """(track, source bin, target bin) with any two faces that pass identity and sharpness, whatever else they are."""
    good = [row for row in rows if row["sharpness"] >= pairing.min_sharpness]
    if not good:
        return set()
    alike = np.stack([row["embedding"] for row in good]) @ np.stack([row["embedding"] for row in good]).T >= pairing.min_similarity
    places = [(shots[row["frame"]], bin_of(row)[:4]) for row in good]
    return {
        (places[i][0], places[i][1], places[j][1])
        for i, j in np.argwhere(alike)
        if places[i][0] == places[j][0] and places[i][1] != places[j][1]
    }
