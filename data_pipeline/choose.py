"""What is taken of a person's pairs that pass every limit: best first, as far as quotas have room, no near-duplicate, and asked for identity and writing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.identities import Asked
from data_pipeline.near_duplicates import KeptHashes
from data_pipeline.pairing import edit_texts
from data_pipeline.rules import ACCEPTED, CODE, PairingConfig, Usage, passes
from data_pipeline.tables import end_numbers

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Said:
    """What is said of a table's rows beside their scores, each (N,): published; published in train; called no near-duplicate; called good."""

    frozen: Flags
    trained: Flags
    distinct: Flags
    good: Flags

    def take(self, rows: Numbers) -> Said:
        """That of some rows."""
        return Said(self.frozen[rows], self.trained[rows], self.distinct[rows], self.good[rows])


class Chosen:
    """Caps what a person, a source and an edit contribute, and asks for identity and writing of what they leave.

    A pair and its reverse count once, and are kept or dropped together where no label says otherwise; of one that is published the reverse alone may go.
    What is published comes first, then what a person called good, or no near-duplicate: of a person's near-duplicates that one stays.

    Args:
        taken: The rows that pass all limits; a person's lie together in one table.
        said: Of them.
        config: Thresholds and quotas.
        asked: Identity and writing.
    """

    def __init__(self, taken: pa.Table, said: Said, config: PairingConfig, asked: Asked) -> None:
        self.code = np.full(len(taken), ACCEPTED, np.int8)
        """Verdicts, (N,) like the next two."""
        self.similar, self.text = np.full(len(taken), np.nan, np.float32), np.full(len(taken), np.nan, np.float32)
        self._said, self._config, self._asked = said, config, asked
        self._declared = said.good | np.asarray(pc.equal(taken["kind"], "synthetic"))
        self._person, source, target = (taken[name].to_pylist() for name in ("person", "source_id", "target_id"))
        self._ends = list(zip(source, target, strict=True))
        edits, texts = edit_texts(taken)
        self._cells = [(who, texts[edit]) for who, edit in zip(self._person, edits.tolist(), strict=True)]
        twin = _twins(taken)
        self._counted, self._preferred = _any_of_twins(twin, said.frozen), _any_of_twins(twin, said.good | said.distinct)
        self._near = KeptHashes(config.near_duplicate_bits, (taken["phash_source"], taken["phash_target"]), self._cells)
        self._near.keep(np.flatnonzero(said.frozen))
        people = np.unique(np.array(self._person), return_inverse=True)[1]
        sharp = _worst_of_twins(twin, np.asarray(taken["sharpness"]))
        order = np.lexsort((np.arange(len(taken)), twin, -sharp, ~self._preferred, ~self._counted, people))
        asked.open(taken)
        self._groups = _groups(order, twin, people)

    def run(self, used: Usage) -> None:
        """Decides on all, and counts what is taken."""
        for group in self._groups:
            counted = bool(self._counted[group[0]])
            if counted:
                group = self._keep_published(group)
            if len(group):
                self._decide(group, used, counted)

    def _keep_published(self, group: Numbers) -> Numbers:
        """Keeps what is published of a pair and its reverse, unless it is in train and held out; returns the one that is not."""
        published, n = self._said.frozen[group], int(group[0])
        stays = group[published]
        self.similar[stays], self.text[stays] = self._asked.similarity(n), self._asked.text(n)
        if self._asked.barred(n):
            self.code[group[self._said.trained[group]]] = CODE["held out"]
        return group[~published]

    def _decide(self, group: Numbers, used: Usage, counted: bool) -> None:
        """Takes a pair and its reverse, or says why not. `counted`: its reverse is published, and counted in the usage of the version that is extended."""
        n, cells = int(group[0]), [self._cells[n] for n in group]
        who, ends = self._person[n], set(self._ends[n])
        if not self._preferred[n] and self._near.sees(group):
            self.code[group] = CODE["near-duplicate"]
        elif not used.has_room(who, ends, cells, self._config, counted):
            self.code[group] = CODE["quota"]
        else:
            self._ask(group)
            kept = group[self.code[group] == ACCEPTED]
            if len(kept):
                used.count(who, ends, [self._cells[n] for n in kept], counted)
                self._near.keep(kept)

    def _ask(self, group: Numbers) -> None:
        """Refuses what identity or writing refuses, and who is held out."""
        n = int(group[0])
        self.similar[group], self.text[group] = self._asked.similarity(n), self._asked.text(n)
        self.code[group[~passes(self.text[group], self._config.max_writing, -1) & ~self._said.good[group]]] = CODE["writing"]
        self.code[group[~passes(self.similar[group], self._config.min_similarity, 1) & ~self._declared[group]]] = CODE["identity"]
        if self._asked.barred(n):
            self.code[group[self.code[group] == ACCEPTED]] = CODE["held out"]


def _twins(taken: pa.Table) -> Numbers:
    """Of each row a number that is that of its reverse too."""
    ends = end_numbers(taken)
    return np.minimum(ends[0], ends[1]) * (int(ends.max()) + 1) + np.maximum(ends[0], ends[1])


def _groups(order: Numbers, twin: Numbers, people: Numbers) -> Iterator[Numbers]:
    """The order, cut wherever another pair or another person begins."""
    begins = np.flatnonzero(np.diff(twin[order]) | np.diff(people[order])) + 1
    return (order[start:stop] for start, stop in pairwise([0, *begins.tolist(), len(order)]))


def _worst_of_twins(twin: Numbers, sharpness: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unique, place = np.unique(twin, return_inverse=True)
    worst = np.full(len(unique), np.inf, np.float32)
    np.minimum.at(worst, place, sharpness)
    return worst[place]


def _any_of_twins(twin: Numbers, which: Flags) -> Flags:
    """Pairs of which one direction is among those given."""
    return np.isin(twin, twin[which]) if which.any() else which
