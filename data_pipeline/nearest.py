"""Mutual nearest neighbours among many vectors, exactly, and which groups of them touch: by blocks of a float32 product, so that memory does not grow with
the square of their number.

Each pair is computed once. Most are below the threshold and are gone at once; of the rest a row keeps its best, and what cannot be among them any more is
not gathered. The work grows with the square of the number, at the speed of the matrix product.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

from infra.console import Progress, each

_ROWS, _COLUMNS = 1024, 8192
_UNIT = "blocks of likenesses"
_HITS = 8_000_000
"""Pairs gathered before each row is cut to its best again: 128 MB."""
Hits = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Row, column, similarity of pairs above the threshold."""


Labels = npt.NDArray[np.int64]
"""A number for each, equal for those that belong together."""
T = TypeVar("T")


def mutual_nearest(
    vectors: npt.NDArray[np.float32], owners: Labels, threshold: float, nearest: int, rows: int | None = None
) -> tuple[Hits, npt.NDArray[np.bool_]]:
    """Pairs of different owners that are among each other's `nearest` of other owners and at least `threshold` alike.

    Args:
        vectors: (N, D); likeness is their product.
        owners: Whose each is (N,); of one owner none are compared.
        threshold: Least likeness.
        nearest: How many count as near; equally near ones by their order.
        rows: Only pairs of which one is among the first so many are asked for; there may be others of the same blocks. None: all.

    Returns:
        Pairs with row < column, in order, the same for any number of threads; and which rows have `nearest` or more that are alike, (N,): of all pairs
        that were asked for and are alike, those that are not among the mutual ones have one of these.
    """
    best = _Best(len(vectors), threshold, nearest)
    for hits in _on_blocks(lambda corner: _look(corner, vectors, owners, best.floor), len(vectors), rows):
        best.take(hits)
    return best.mutual(), best.full


def touching(vectors: npt.NDArray[np.float32], owners: Labels, threshold: float, rows: int) -> Labels:
    """Joins owners of which a vector of one is at least `threshold` like a vector of the other, over others too.

    Args:
        vectors: (N, D); likeness is their product.
        owners: Whose each is (N,).
        threshold: Least likeness.
        rows: Only pairs of which one is among the first so many are asked for.

    Returns:
        By owner: the number of what it belongs to.
    """
    floor = np.full(len(vectors), threshold, np.float32)
    joined = np.arange(int(owners.max(initial=-1)) + 1)
    for first, second, _ in _on_blocks(lambda corner: _look(corner, vectors, owners, floor), len(vectors), rows):
        if len(first):
            joined = join(joined, joined[owners[first]], joined[owners[second]])
    return joined


def join(labels: Labels, first: Labels, second: Labels) -> Labels:
    """Labels in which those that had `first[n]` and `second[n]` have one."""
    count = int(labels.max(initial=-1)) + 1
    found = connected_components(coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count)), directed=False)[1]
    return found.astype(np.int64)[labels]


def most_alike(vectors: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> tuple[Labels, npt.NDArray[np.float32]]:
    """Of each vector: the number of the one of `others` (at least one) that is most like it, and how much."""
    place, likeness = np.zeros(len(vectors), np.int64), np.full(len(vectors), -np.inf, np.float32)
    corners = list(itertools.product(range(0, len(vectors), _ROWS), range(0, len(others), _COLUMNS)))
    for top, left in each("identity", corners, _UNIT):
        similar = vectors[top : top + _ROWS] @ others[left : left + _COLUMNS].T
        found = similar.argmax(axis=1)
        value = similar[np.arange(len(found)), found]
        mine = slice(top, top + len(found))
        better = value > likeness[mine]
        place[mine] = np.where(better, found + left, place[mine])
        likeness[mine] = np.maximum(value, likeness[mine])
    return place, likeness


def _on_blocks(look: Callable[[tuple[int, int]], T], count: int, rows: int | None) -> Iterator[T]:
    """What is found in the blocks of a product of `count` vectors with themselves, as it is asked for, a few blocks ahead."""
    top_end = count if rows is None else rows
    corners = [(top, left) for top in range(0, top_end, _ROWS) for left in range(top - top % _COLUMNS, count, _COLUMNS)]
    waiting, progress = iter(corners), Progress("identity", len(corners), _UNIT, quiet=True)
    ahead: list[Future[T]] = []
    # threads of a product's own would wait for each other
    with threadpool_limits(1), ThreadPoolExecutor(os.cpu_count()) as threads:
        while True:
            ahead += [threads.submit(look, corner) for corner in itertools.islice(waiting, 2 * (os.cpu_count() or 1) - len(ahead))]
            if not ahead:
                return
            yield ahead.pop(0).result()
            progress.advance()


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
        self.full = np.zeros(count, bool)
        """Which rows have as many as are wanted."""
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
        self.full[rows[last]] = True
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
