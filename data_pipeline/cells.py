"""Quotas of the whole dataset: how many pairs there may be of one cell, that is of one change of expression with one pose step. What the others are capped
by lies in one table (a person, a source); a cell lies in all, so that this comes after them, over what they accepted.

Both directions of a pair lie in one cell and count once: neutral to happy and back is one change, so that the way back to rest, which every expression has,
does not fill a cell before the rarer expressions come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.pairing import AXES, EXPRESSIONS
from data_pipeline.tables import end_numbers, read_pieces
from lato.edits import POSE_STEP

COLUMNS = ["from_expression", "to_expression", *(f"step_{axis}" for axis in AXES)]
"""What the cell of a pair depends on."""
NEEDED = [*COLUMNS, "key", "sharpness", "from_part", "from_row", "to_part", "to_row"]
"""What quotas are counted from."""
_FEW = 200_000
"""Pairs that are kept in mind before those beyond the quotas are dropped."""


class _Pairs(NamedTuple):
    """Pairs, both directions as one: what puts them in order. Sharpest first, as within a person; then by key, so that no order of tables plays a part."""

    cell: npt.NDArray[np.int64]
    blur: npt.NDArray[np.float32]
    """Negative sharpness."""
    key: npt.NDArray[np.bytes_]
    """The smaller of its directions'."""

    def joined(self, other: _Pairs) -> _Pairs:
        """Both."""
        return _Pairs(
            np.concatenate([self.cell, other.cell]), np.concatenate([self.blur, other.blur]), np.concatenate([self.key, other.key])
        )

    def best(self, rooms: Counter[int], room: int) -> _Pairs:
        """Those within the quotas, in order; `rooms` has the cells in which less than `room` is left."""
        order = np.lexsort((self.key, self.blur, self.cell))
        cell = self.cell[order]
        first = np.flatnonzero(np.diff(cell, prepend=-1))
        rank = np.arange(len(cell)) - np.repeat(first, np.diff(first, append=len(cell)))
        left = np.repeat(np.array([rooms.get(int(number), room) for number in cell[first]], np.int64), np.diff(first, append=len(cell)))
        kept = order[rank < left]
        return _Pairs(self.cell[kept], self.blur[kept], self.key[kept])


def cells_of(table: pa.Table) -> npt.NDArray[np.int64]:
    """The cell of each pair as a number, the same for both of its directions."""
    names = pa.array(EXPRESSIONS)
    source, target = (np.asarray(pc.index_in(table[f"{side}_expression"], names)).astype(np.int64) + 1 for side in ("from", "to"))
    source, target = (np.where(source == target, 0, side) for side in (source, target))  # which one stays is no change
    steps = [np.asarray(table[f"step_{axis}"]).astype(np.int64) // POSE_STEP for axis in AXES]
    return np.minimum(_number(source, target, steps), _number(target, source, [-step for step in steps]))


def _number(source: npt.NDArray[np.int64], target: npt.NDArray[np.int64], steps: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    number = source * 8 + target
    for step in steps:
        number = number * 16 + step + 8
    return number


def over_quota(tables: Sequence[tuple[str, npt.NDArray[np.bool_]]], quota: int, used: Counter[int]) -> Iterator[npt.NDArray[np.int64]]:
    """Numbers of the rows of each table that are beyond their cells' quotas. Reads every table twice, a piece at a time; what it keeps in mind grows with
    what the quotas allow, not with the tables.

    Args:
        tables: Score tables, and which of their rows are accepted so far (those of an extended version left out).
        quota: Pairs a cell may have.
        used: Cell -> pairs of the version that is extended.
    """
    rooms = Counter({cell: max(0, quota - count) for cell, count in used.items()})
    kept = _Pairs(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, "S1"))
    limit = _FEW
    for uri, wanted in tables:
        for _, _, pairs in _read(uri, wanted):
            kept = kept.joined(pairs)
            if len(kept.cell) > limit:
                kept = kept.best(rooms, quota)
                limit = max(_FEW, 2 * len(kept.cell))
    kept = kept.best(rooms, quota)
    last = {int(kept.cell[n]): (kept.blur[n], kept.key[n]) for n in np.flatnonzero(np.diff(kept.cell, append=-1))}
    counts = Counter(kept.cell.tolist())
    open_cells = {cell for cell, count in counts.items() if count < rooms.get(cell, quota)}
    for uri, wanted in tables:
        beyond = [np.zeros(0, np.int64)]
        for rows, place, pairs in _read(uri, wanted):
            ordered = zip(pairs.cell.tolist(), pairs.blur, pairs.key, strict=True)
            over = np.array(
                [cell not in open_cells and (cell not in last or (blur, key) > last[cell]) for cell, blur, key in ordered], np.bool_
            )
            beyond.append(rows[over[place]])
        yield np.concatenate(beyond)


def _read(uri: str, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], _Pairs]]:
    """By piece: the wanted rows' numbers in the table, each one's place among the pairs, and the pairs."""
    start = 0
    for piece in read_pieces(uri, NEEDED):
        rows = np.flatnonzero(wanted[start : start + len(piece)])
        if len(rows):
            taken = piece.take(rows)
            ends = np.sort(end_numbers(taken), axis=0)
            key = np.array(taken["key"].to_pylist(), "S")
            twin = ends[0] * (int(ends.max()) + 1) + ends[1]
            order = np.lexsort((key, twin))
            _, first, place = np.unique(twin[order], return_index=True, return_inverse=True)
            smallest, of_rows = order[first], np.empty_like(place)
            of_rows[order] = place
            pairs = _Pairs(cells_of(taken)[smallest], -np.asarray(taken["sharpness"])[smallest], key[smallest])
            yield rows + start, of_rows, pairs
        start += len(piece)
