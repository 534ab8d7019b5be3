"""Work on every score table: here while there are few pairs, on Ray above that. A person's pairs lie in one table, and so do a source's: tables are the
partition by identity, and what one worker finds does not depend on another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.places import scores
from infra.console import Progress
from infra.pool import run_all
from infra.state import DERIVED, reading
from infra.storage import open_read

MANY = 10_000_000
"""Pairs from which on the tables are shared among Ray actors."""
_JOB = 1_000_000
"""Pairs a job, more where a table has more."""
R = TypeVar("R")


def on_each(name: str, work: Callable[[str], R], uris: Sequence[str], workers: int) -> list[R]:
    """`work(uri)` of every table.

    Args:
        name: Of what is done, as its progress is told.
        work: What to do; can be pickled.
        uris: Score tables.
        workers: Ray actors, used above `MANY` pairs; 0 works here.

    Returns:
        The results in the tables' order, the same wherever they were computed.
    """
    sizes = {uri: _count(uri) for uri in uris}
    total = sum(sizes.values())
    jobs: list[list[str]] = []
    room = 0
    for uri, size in sizes.items():
        if room <= 0:
            jobs.append([])
            room = _JOB
        jobs[-1].append(uri)
        room -= size
    progress, found = Progress(name, total, "pairs", quiet=True), dict[str, R]()
    for done in run_all(lambda: _Worker(work), jobs, workers if total > MANY else 0, scores()):
        found.update(zip(done.job, done.result, strict=True))
        progress.advance(sum(sizes[uri] for uri in done.job))
    return [found[uri] for uri in uris]


def read_pieces(uri: str, columns: list[str] | None = None, mend: str = DERIVED) -> Iterator[pa.Table]:
    """The row groups of a table, one at a time.

    Args:
        uri: A score table, or a version's candidates.
        columns: Which; all by default.
        mend: What to do where it is damaged.

    Raises:
        UserError: It is damaged.
    """
    with _opened(uri, mend) as table:
        if columns and table.metadata.num_rows:
            with reading(uri, mend):
                for name in columns:
                    table.schema_arrow.field(name)  # which a row group would pass over
        for number in range(table.num_row_groups):
            with reading(uri, mend):
                piece = table.read_row_group(number, columns=columns)
            yield piece


def take_rows(uri: str, numbers: npt.NDArray[np.int64], mend: str = DERIVED) -> pa.Table:
    """Whole rows by their numbers in the table, in the order of these; only the row groups that have any are read, one at a time.

    Raises:
        UserError: It is damaged.
    """
    ordered, found, start = np.sort(numbers), [], 0
    with _opened(uri, mend) as table:
        for group in range(table.num_row_groups):
            end = start + table.metadata.row_group(group).num_rows
            mine = ordered[slice(*np.searchsorted(ordered, (start, end)))] - start
            if len(mine):
                with reading(uri, mend):
                    found.append(table.read_row_group(group).take(mine))
            start = end
        rows = pa.concat_tables(found) if found else table.schema_arrow.empty_table()
    return rows.take(np.argsort(np.argsort(numbers, kind="stable"), kind="stable"))


@contextmanager
def _opened(uri: str, mend: str) -> Iterator[pq.ParquetFile]:
    with open_read(uri) as file:
        with reading(uri, mend):
            table = pq.ParquetFile(file)
        yield table


def end_numbers(table: pa.Table) -> npt.NDArray[np.int64]:
    """Source and target of each row as a number of its own a face, (2, N)."""
    parts = pa.chunked_array([*table["from_part"].chunks, *table["to_part"].chunks]).combine_chunks().dictionary_encode()
    numbers = np.asarray(parts.indices).astype(np.int64) if isinstance(parts, pa.DictionaryArray) else np.zeros(0, np.int64)
    rows = np.concatenate([np.asarray(table["from_row"]), np.asarray(table["to_row"])]).astype(np.int64)
    _, compact = np.unique(numbers * (int(rows.max()) + 1) + rows, return_inverse=True)
    return compact.reshape(2, -1)


def _count(uri: str) -> int:
    with open_read(uri) as file, reading(uri, DERIVED):
        return int(pq.read_metadata(file).num_rows)


class _Worker(Generic[R]):
    def __init__(self, work: Callable[[str], R]) -> None:
        self._work = work

    def run(self, uris: list[str]) -> list[R]:
        """The results of some tables."""
        return [self._work(uri) for uri in uris]
