"""What is refused when the split's components are known: accepted pairs that show again what one of another source shows, where the sources are no copies
(clips under two seconds, or that hardly move, or of which less than half is the same: `copies` takes out the others whole), and those beyond the quotas of
somebody who is not declared and has several tracks. Quotas of the whole dataset come after them (`cells`).

Within a declared person or a track both are refused while pairs are judged (`judge`). Here too the sharpest come first, so that neither workers nor the
order of sources play a part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.pairing import AXES, edit_texts
from data_pipeline.rules import PairingConfig, Usage
from lato.faces.quality import hash_distance

Row = dict[str, Any]
Twin = frozenset[tuple[str, int]]
"""The two faces of a pair, whichever is its source."""
_EDIT = ("edit_expression", "edit_intensity", *(f"step_{axis}" for axis in AXES))


def find_across_sources(
    rows: Sequence[Row], component: Callable[[Row], str], identities: dict[str, str | None], kept: Collection[str], bits: int
) -> set[str]:
    """Finds the pairs that are near-duplicates of a pair of another source.

    Args:
        rows: Accepted rows of score tables; of other verdicts none.
        component: Of a row; only within one are pairs compared.
        identities: Source id -> declared person. Two people who are both declared, and not as one, are not compared.
        kept: Keys that stay whatever they are like: samples of the version that is extended, pairs that a person called good.
        bits: Of 256, within which two faces' hashes are near; below 0 nothing is.

    Returns:
        Keys. A pair and its reverse are in it together; with a key of `kept` they stay.
    """
    if bits < 0:
        return set()
    gathered: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        gathered[component(row)].append(row)
    found: set[str] = set()
    for mine in gathered.values():
        if len({row["source_id"] for row in mine}) > 1:
            found |= _find_in_one(mine, identities, kept, bits)
    return found


def _find_in_one(rows: list[Row], identities: dict[str, str | None], kept: Collection[str], bits: int) -> set[str]:
    """The same in one component."""
    twins, stays = order_twins(rows, kept)
    edits, _ = _edits(rows)
    alike = {edit: np.flatnonzero(edits == edit) for edit in np.unique(edits).tolist()}
    hashes = np.stack([_words([row[name] for row in rows]) for name in ("phash_source", "phash_target")], axis=1)
    sources = _numbers([row["source_id"] for row in rows])
    people = _numbers([identities.get(row["source_id"]) for row in rows])
    chosen = np.zeros(len(rows), bool)

    def shown_elsewhere(n: int) -> bool:
        others = alike[int(edits[n])]
        others = others[chosen[others] & (sources[others] != sources[n])]
        if people[n] >= 0:
            others = others[(people[others] < 0) | (people[others] == people[n])]
        apart = np.bitwise_count(hashes[others] ^ hashes[n]).sum(axis=2, dtype=np.int64)
        return bool((apart <= bits).all(axis=1).any())

    found: set[str] = set()
    for twin in twins:
        if not stays[twin] and any(shown_elsewhere(n) for n in twins[twin]):
            found |= {rows[n]["key"] for n in twins[twin]}
        else:
            chosen[twins[twin]] = True
    return found


def over_quota_of_people(
    rows: Sequence[Row],
    person_of: Mapping[str, str],
    identities: Mapping[str, str | None],
    kept: Collection[str],
    good: Collection[str],
    config: PairingConfig,
) -> set[str]:
    """Finds what is beyond the quotas of people who are not declared: while pairs are judged, each of their tracks counts as a person.

    Args:
        rows: Accepted rows of score tables; of other verdicts none.
        person_of: Track (`source/track`) -> its person, by faces.
        identities: Source id -> declared person.
        kept: Keys that stay and are counted first: samples of the version that is extended.
        good: Keys that a person called good: they come next.
        config: Quotas of a person, and of a person and edit.

    Returns:
        Keys. A pair and its reverse are in it together.
    """
    gathered: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not identities.get(row["source_id"]):
            track = f"{row['source_id']}/{row['from_track']}"
            gathered[person_of.get(track, track)].append(row)
    found: set[str] = set()
    for person, mine in gathered.items():
        if len({(row["source_id"], row["from_track"]) for row in mine}) > 1:  # others were held to their quotas
            found |= _over_quota_of_one(person, mine, kept, good, config)
    return found


def _over_quota_of_one(person: str, rows: list[Row], kept: Collection[str], good: Collection[str], config: PairingConfig) -> set[str]:
    """The same of one person; their sources were held to theirs."""
    twins, stays = order_twins(rows, kept, good)
    edits, texts = _edits(rows)
    used, found = Usage(), set[str]()
    for twin, numbers in twins.items():
        cells = [(person, texts[int(edits[n])]) for n in numbers]
        if stays[twin] or used.has_room(person, (), cells, config):
            used.count(person, (), cells)
        else:
            found |= {rows[n]["key"] for n in numbers}
    return found


def order_twins(rows: Sequence[Row], kept: Collection[str], good: Collection[str] = ()) -> tuple[dict[Twin, list[int]], dict[Twin, bool]]:
    """Numbers of the rows of each pair and its reverse, those that stay first, then those called good, then the sharpest; and which stay."""
    twins: dict[Twin, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        twins[frozenset([(row["from_part"], row["from_row"]), (row["to_part"], row["to_row"])])].append(n)
    stays = {twin: any(rows[n]["key"] in kept for n in numbers) for twin, numbers in twins.items()}

    def rank(twin: Twin) -> tuple[bool, bool, float, str, str]:
        mine = [rows[n] for n in twins[twin]]
        first = min((row["source_id"], row["key"]) for row in mine)  # of equal pictures in two files all of one file stay
        return not stays[twin], not any(row["key"] in good for row in mine), -min(row["sharpness"] for row in mine), *first

    return {twin: twins[twin] for twin in sorted(twins, key=rank)}, stays


def _edits(rows: list[Row]) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    """The edit of each as a number, and the number's text."""
    return edit_texts(pa.table({name: [row[name] for row in rows] for name in _EDIT}))


def _words(hashes: list[bytes]) -> npt.NDArray[np.uint64]:
    """Of 256 bits each, (N, 4)."""
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 4)


def _numbers(names: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """Equal names as equal numbers; None as -1."""
    known: dict[str, int] = {}
    return np.array([-1 if name is None else known.setdefault(name, len(known)) for name in names], np.int64)


class KeptHashes:
    """The hashes of what was kept, by person and edit.

    Args:
        bits: Of 256, within which two faces' hashes are near.
        hashes: Of source and target of all rows.
        cells: Person and edit of each row.
    """

    def __init__(self, bits: int, hashes: tuple[pa.ChunkedArray, pa.ChunkedArray], cells: Sequence[tuple[str, str]]) -> None:
        self._bits, self._hashes, self._cells = bits, hashes, cells
        self._kept: dict[tuple[str, str], list[tuple[bytes, bytes]]] = defaultdict(list)

    def sees(self, group: npt.NDArray[np.int64]) -> bool:
        """Whether one of the pairs shows again what was kept for its cell."""
        return any(
            hash_distance(mine[0], kept[0]) <= self._bits and hash_distance(mine[1], kept[1]) <= self._bits
            for n in group.tolist()
            if (near := self._kept.get(self._cells[n]))
            for mine in [self._of(n)]
            for kept in near
        )

    def keep(self, group: npt.NDArray[np.int64]) -> None:
        """Remembers pairs that were accepted."""
        for n in group.tolist():
            self._kept[self._cells[n]].append(self._of(n))

    def _of(self, n: int) -> tuple[bytes, bytes]:
        return self._hashes[0][n].as_py(), self._hashes[1][n].as_py()
