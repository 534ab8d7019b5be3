"""The candidates table: every pair that was judged, with its scores and its verdict, beside the version that came of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.judge import Judged, row_verdicts
from data_pipeline.pairing import SCORE_SCHEMA, edit_texts
from data_pipeline.published import CANDIDATES, home_of, read_index
from data_pipeline.tables import read_pieces, take_rows
from infra.addresses import join
from infra.errors import UserError
from infra.scratch import scratch_for
from infra.state import PUBLISHED, read_table
from infra.storage import commit_file, exists, sha256_file

_KINDS = np.array(["pose", "expression", "compound"])
_DROPPED = ("phash_source", "phash_target", "edit_expression", "edit_intensity")
SCHEMA = pa.schema(
    [
        *(field for field in SCORE_SCHEMA if field.name not in _DROPPED),
        *((name, pa.float32()) for name in ("similarity", "writing")),
        *((name, pa.string()) for name in ("verdict", "edit", "edit_kind", "split", "licence")),
        ("rendered", pa.list_(pa.string())),
    ]
)
"""Columns of the table."""


def write_candidates(
    tables: list[str],
    judged: list[Judged],
    splits: dict[str, str],
    licences: dict[str, str],
    rendered: dict[str, list[str]],
    folder: str,
) -> str:
    """Commits the table of a version, a piece at a time.

    Args:
        tables: Score tables.
        judged: What was decided on their rows.
        splits: Key -> split of those that became samples.
        licences: Source id -> licence.
        rendered: Key -> names of its crops, of those that became samples.
        folder: The version's.

    Returns:
        Its sha256.
    """
    uri, writer = join(folder, CANDIDATES), None
    with scratch_for(uri) as scratch:
        for table_uri, found in zip(tables, judged, strict=True):
            start = 0
            for piece in read_pieces(table_uri):
                here = slice(start, start + len(piece))
                table = _describe(piece, found.codes[here], found.similarity[here], found.writing[here], splits, licences, rendered)
                start += len(piece)
                writer = writer or pq.ParquetWriter(scratch, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=len(table))
        if writer is None:
            pq.write_table(SCHEMA.empty_table(), scratch, compression="zstd")
        else:
            writer.close()
        digest = sha256_file(scratch)
        if not exists(uri) or sha256_file(uri) != digest:
            commit_file(scratch, uri)
    return digest


def _describe(
    piece: pa.Table,
    codes: npt.NDArray[np.int8],
    similarity: npt.NDArray[np.float32],
    writing: npt.NDArray[np.float32],
    splits: dict[str, str],
    licences: dict[str, str],
    rendered: dict[str, list[str]],
) -> pa.Table:
    numbers, texts = edit_texts(piece)
    unique, place = np.unique(numbers, return_inverse=True)
    posed = np.any([np.asarray(piece[f"step_{axis}"]) != 0 for axis in ("yaw", "pitch", "roll")], axis=0)
    changed = np.asarray(piece["edit_expression"]) >= 0
    kind = np.where(changed, np.where(posed, 2, 1), 0)
    keys = piece["key"].to_pylist()
    added = {
        "similarity": pa.array(similarity, pa.float32(), from_pandas=True),  # null where it was not asked for
        "writing": pa.array(writing, pa.float32(), from_pandas=True),
        "verdict": row_verdicts(codes),
        "edit": pa.array(np.array([texts[int(code)] for code in unique], object)[place], pa.string()),
        "edit_kind": pa.array(_KINDS[kind].astype(object), pa.string()),
        "split": pa.array([splits.get(key) for key in keys], pa.string()),
        "licence": pa.array([licences[name] for name in piece["source_id"].to_pylist()], pa.string()),
        "rendered": pa.array([rendered.get(key, []) for key in keys], pa.list_(pa.string())),
    }
    for name, column in added.items():
        piece = piece.append_column(name, column)
    described = piece.select(SCHEMA.names).replace_schema_metadata()  # what a score table says is of that table alone
    assert described.schema.types == SCHEMA.types, "the table is as it is said to be"
    return described


def read_candidates_table(folder: str, columns: list[str] | None = None) -> pa.Table:
    """Rows of a version's table; of a view, those of its version. An export has none. Some columns, or all."""
    uri = _uri(folder)
    return pa.table({}) if uri is None else read_table(uri, columns, PUBLISHED)


def named_keys(folder: str, keys: Collection[str]) -> set[str]:
    """Those of some keys that a version's table has."""
    wanted = pa.array(sorted(keys), pa.string())
    found = (piece["key"].filter(pc.is_in(piece["key"], wanted)) for piece in read_candidate_pieces(folder, ["key"]))
    return {key for some in found for key in some.to_pylist()}


def read_candidate_pieces(folder: str, columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of the same, a row group at a time: of the ten millions that there may be, all of all rows are never in memory at once."""
    uri = _uri(folder)
    if uri is not None:
        yield from (piece for piece in read_pieces(uri, columns, PUBLISHED) if len(piece))


def take_candidates(folder: str, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Rows of the same by their numbers, in the order of these."""
    uri, wanted = _uri(folder), np.fromiter(numbers, np.int64)
    return take_rows(uri, wanted, PUBLISHED).to_pylist() if uri is not None and len(wanted) else []


def find_candidates(folder: str, columns: list[str], wanted: Callable[[pa.Table], pa.ChunkedArray]) -> list[dict[str, Any]]:
    """Rows of the same for which `wanted`, which is given these columns, says so. Only theirs is read of the other columns."""
    numbers, start = [np.zeros(0, np.int64)], 0
    for piece in read_candidate_pieces(folder, columns):
        numbers.append(np.flatnonzero(wanted(piece)) + start)
        start += len(piece)
    return take_candidates(folder, np.concatenate(numbers))


def shrink_candidates(folder: str, lost: Collection[str], name: str) -> str | None:
    """Writes a version's table without some pairs, under another name beside it, where it holds any of them; a row group at a time.

    Args:
        folder: The version's.
        lost: Keys of these pairs.
        name: Of the new file.

    Returns:
        Its sha256; None where there are none of them.
    """
    uri, gone = _uri(folder), pa.array(sorted(lost), pa.string())
    if uri is None or not any(pc.any(pc.is_in(piece["key"], gone)).as_py() for piece in read_candidate_pieces(folder, ["key"])):
        return None
    target, writer = join(folder, name), None
    with scratch_for(target) as scratch:
        for piece in read_pieces(uri, mend=PUBLISHED):
            writer = writer or pq.ParquetWriter(scratch, piece.schema, compression="zstd")
            kept = piece.filter(pc.invert(pc.is_in(piece["key"], gone)))
            if len(kept):
                writer.write_table(kept, row_group_size=len(kept))
        assert writer, "a table that holds any of them has a piece"
        writer.close()
        digest = sha256_file(scratch)
        commit_file(scratch, target)
    return digest


def _uri(folder: str) -> str | None:
    """Of the table of a version, or of the one a view is of; None for an export.

    Raises:
        UserError: The version lacks it.
    """
    home = home_of(folder)
    name = read_index(home).get("candidates")
    if name is None:
        return None
    if not exists(join(home, name)):
        raise UserError(f"{join(home, name)} is missing or damaged: there is no such file. Copy the version again, or build it again.")
    return join(home, name)
