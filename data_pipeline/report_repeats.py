"""What the report shows of near-duplicates: how far pairs are from the nearest accepted one, and those that are near-duplicates by least, above what they repeat.
Of a sample: hashes lie with the observations, and of ten million pairs not all are read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.candidates import find_candidates, read_candidate_pieces, take_candidates
from data_pipeline.copies import read_copies
from data_pipeline.repeats import Repeat, find_repeats
from data_pipeline.report_pairs import Shown, draw_rejected
from data_pipeline.rules import PairingConfig
from data_pipeline.sheet import Sources

SAMPLED = 600
"""Pairs; keys are digests, so that the first by key are a fair sample."""
_LOOKED_AT = 60
"""Near-duplicates nearest to the limit, among which pairs of different sources are looked for."""


class Sampled:
    """Accepted pairs and near-duplicates of a version, and which pair each is nearest to.

    Args:
        folder: The version's.
        work: The build's.
    """

    def __init__(self, folder: str, work: str) -> None:
        self._folder = folder
        copies = read_copies(folder)  # what is theirs is refused without being compared
        rows = take_candidates(folder, _first_by_key(folder))
        self._rows = [row for row in rows if not {row["source_id"], row["target_id"]} & copies.keys()]
        self._near = find_repeats(folder, work, self._rows)

    @property
    def bits(self) -> npt.NDArray[np.float64]:
        """Distance of each to that pair, (N,); NaN where there is none to compare it with."""
        return np.array([self._near[row["key"]].bits if row["key"] in self._near else np.nan for row in self._rows], np.float64)

    @property
    def accepted(self) -> npt.NDArray[np.bool_]:
        """Which are accepted, (N,)."""
        return np.array([row["verdict"] == "accepted" for row in self._rows], bool)

    def draw(self, sources: Sources, config: PairingConfig, undrawn: Counter[str]) -> list[Shown]:
        """The near-duplicates whose distance is nearest to the limit, of different sources as far as there are, each above the pair that it repeats.

        Args:
            sources: Of the build.
            config: What the version was judged by.
            undrawn: Why pairs cannot be drawn -> how many; it is added to.
        """
        near = {row["key"]: found for row in self._rows if row["verdict"] == "near-duplicate" and (found := self._near.get(row["key"]))}
        near = {key: found for key, found in near.items() if found.bits <= config.near_duplicate_bits}  # of others what they repeat is gone
        first = sorted((row for row in self._rows if row["key"] in near), key=lambda row: (-near[row["key"]].bits, row["key"]))[:_LOOKED_AT]
        wanted = pa.array(sorted({near[row["key"]].key for row in first}), pa.string())
        repeated = {row["key"]: row for row in find_candidates(self._folder, ["key"], lambda piece: pc.is_in(piece["key"], wanted))}

        def told(row: dict[str, Any]) -> str:
            return _said(near[row["key"]], config)

        return draw_rejected(first, lambda row: [row, repeated[near[row["key"]].key]], told, sources, undrawn)


def _said(near: Repeat, config: PairingConfig) -> str:
    return f"{near.bits} of 256 bits from the pair below ({near.key}), needs more than {config.near_duplicate_bits}"


def _first_by_key(folder: str) -> npt.NDArray[np.int64]:
    """Numbers of the first accepted pairs and near-duplicates by key."""
    wanted = pa.array(["accepted", "near-duplicate"])
    keys, numbers, start = np.zeros(0, "S22"), np.zeros(0, np.int64), 0
    for piece in read_candidate_pieces(folder, ["key", "verdict"]):
        mine = np.flatnonzero(pc.is_in(piece["verdict"], wanted))
        keys = np.concatenate([keys, np.array(piece["key"].take(mine).to_pylist(), "S22")])
        numbers = np.concatenate([numbers, mine + start])
        order = np.argsort(keys, kind="stable")[:SAMPLED]
        keys, numbers, start = keys[order], numbers[order], start + len(piece)
    return numbers
