"""Mutual nearest neighbours among many unit vectors, exactly: by blocks of a float32 product, so that memory does not grow with the square of their number.

Each pair is computed once. Most are below the threshold and are gone at once; of the rest a row keeps its best, and what cannot be among them any more is
not gathered. The work grows with the square of the number, at the speed of the matrix product.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

_ROWS, _COLUMNS = 1024, 8192
_HITS = 8_000_000
"""Pairs gathered before each row is cut to its best again: 128 MB."""
Hits = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Row, column, similarity of pairs above the threshold."""


def mutual_nearest(vectors: npt.NDArray[np.float32], owners: npt.NDArray[np.int64], threshold: float, nearest: int) -> Hits:
    """Pairs of different owners that are among each other's `nearest` of other owners and at least `threshold` alike.

    Args:
        vectors: Unit vectors (N, D).
        owners: Whose each is (N,); of one owner none are compared.
        threshold: Least cosine.
        nearest: How many count as near; equal cosines by their order.

    Returns:
        Pairs with row < column, in order. They are the same for any number of threads.
    """
    best = _Best(len(vectors), threshold, nearest)
    corners = [(top, left) for top in range(0, len(vectors), _ROWS) for left in range(top - top % _COLUMNS, len(vectors), _COLUMNS)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for hits in _in_order(threads, corners, vectors, owners, best):
            best.take(hits)
    return best.mutual()


def _in_order(
    threads: ThreadPoolExecutor,
    corners: list[tuple[int, int]],
    vectors: npt.NDArray[np.float32],
    owners: npt.NDArray[np.int64],
    best: _Best,
) -> Iterator[Hits]:
    """Blocks' pairs as they are asked for, a few blocks ahead."""
    ahead: list[Future[Hits]] = []
    waiting = iter(corners)
    while True:
        ahead += [
            threads.submit(_look, corner, vectors, owners, best.floor)
            for corner in itertools.islice(waiting, 2 * (os.cpu_count() or 1) - len(ahead))
        ]
        if not ahead:
            return
        yield ahead.pop(0).result()


def _look(corner: tuple[int, int], vectors: npt.NDArray[np.float32], owners: npt.NDArray[np.int64], floor: npt.NDArray[np.float32]) -> Hits:
    """Pairs of a block that may be among the best of one of the two, from above the diagonal."""
    top, left = corner
    similar = vectors[top : top + _ROWS] @ vectors[left : left + _COLUMNS].T
    low = np.minimum(floor[top : top + _ROWS].min(), floor[left : left + _COLUMNS].min())
    rows, columns = np.divmod(np.flatnonzero(similar >= low), similar.shape[1])
    found = similar[rows, columns]
    rows, columns = rows + top, columns + left
    keep = (rows < columns) & (owners[rows] != owners[columns]) & ((found >= floor[rows]) | (found >= floor[columns]))
    return rows[keep], columns[keep], found[keep]


class _Best:
    """The best of each row so far."""

    def __init__(self, count: int, threshold: float, nearest: int) -> None:
        self.floor = np.full(count, threshold, np.float32)
        """What a pair must have to be among a row's best."""
        self._nearest = nearest
        self._gathered: list[Hits] = []
        self._size = 0

    def take(self, hits: Hits) -> None:
        """Adds pairs, to both of their rows."""
        rows, columns, similar = hits
        for mine, other in ((rows, columns), (columns, rows)):
            there = similar >= self.floor[mine]
            self._gathered.append((mine[there], other[there], similar[there]))
            self._size += int(there.sum())
        if self._size > _HITS + len(self.floor) * self._nearest:
            self._cut()

    def _cut(self) -> Hits:
        """Leaves each row its best, and raises its floor where it has enough."""
        rows, columns, similar = (np.concatenate(parts) for parts in zip(*self._gathered, strict=True))
        order = np.lexsort((columns, -similar, rows))
        rows, columns, similar = rows[order], columns[order], similar[order]
        first = np.r_[True, rows[1:] != rows[:-1]] if len(rows) else np.zeros(0, bool)
        rank = np.arange(len(rows)) - np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
        last = rank == self._nearest - 1
        floor = self.floor.copy()  # threads may be reading the old one
        floor[rows[last]] = similar[last]
        self.floor = floor
        kept = rank < self._nearest
        cut = (rows[kept], columns[kept], similar[kept])
        self._gathered, self._size = [cut], int(kept.sum())
        return cut

    def mutual(self) -> Hits:
        """Pairs that are among the best of both."""
        if not self._gathered:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        rows, columns, similar = self._cut()
        count = len(self.floor)
        forward = rows < columns
        both = np.isin(rows * count + columns, (columns * count + rows)[~forward]) & forward
        order = np.lexsort((columns[both], rows[both]))
        return rows[both][order], columns[both][order], similar[both][order]
