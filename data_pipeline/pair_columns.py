"""Accepted pairs as columns: of all pairs of a build what samples are made of is held so, and Python values are made of one at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.judge import Judged
from data_pipeline.observations import SCHEMA, read_part
from data_pipeline.pairing import AXES, SCORE_SCHEMA, STORED_SCORES
from data_pipeline.tables import read_pieces

Ends = tuple[dict[str, Any], dict[str, Any]]
"""The observations of a pair's source and target."""
EDIT = ("edit_expression", "edit_intensity", *(f"step_{axis}" for axis in AXES))
"""Columns of a pair that its edit depends on."""
SCORED = [
    "key", "source_id", "target_id", "person", "scope", *EDIT, *STORED_SCORES, "from_expression", "to_expression", "from_expression_intensity",
    "to_expression_intensity", "crop_source", "crop_target", "from_part", "from_row", "to_part", "to_row",
]  # fmt: skip
"""What is read of a pair's row in its score table."""
OBSERVED = ["source_id", "source_sha256", "image_uri", "frame", "pts", "landmarks", "yaw", "pitch", "roll"]
"""What is read of a pair's two ends."""
_ASKED = [("similarity", pa.float32()), ("writing", pa.float32())]


class Columns:
    """A table whose words are stored once each, and whose rows are read one at a time: by value that takes as long as all at once."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        """`tables`: as `_encoded` gives them, of one schema; at least one."""
        table = pa.concat_tables(tables).unify_dictionaries()
        self.of = {name: table[name].combine_chunks() for name in table.schema.names}

    def read(self, number: int, names: Iterable[str] | None = None) -> dict[str, Any]:
        """A row, or some columns of it."""
        return {name: self.of[name][number].as_py() for name in (names or self.of)}


@dataclass(frozen=True)
class Pairs:
    """Accepted pairs with what was observed of their ends."""

    rows: Columns
    """`SCORED` of each, with its `similarity` and `writing`."""
    faces: Columns
    """`OBSERVED` of each face that is an end of a pair, once."""
    ends: npt.NDArray[np.int32]
    """(N, 2): numbers of source and target in `faces`."""

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, number: int) -> tuple[dict[str, Any], Ends]:
        """A pair, and what was observed of its source and target."""
        source, target = self.ends[number].tolist()
        return self.rows.read(number), (self.faces.read(source), self.faces.read(target))


def read_pairs(tables: Sequence[str], judged: Sequence[Judged], accepted: Iterable[tuple[int, int]], work: str) -> Pairs:
    """Reads pairs, each score table and each part once.

    Args:
        tables: Score tables.
        judged: What was decided on their rows.
        accepted: Numbers of the table and of the row in it, ascending: the order of the pairs.
        work: The build's folder.
    """
    wanted: dict[int, list[int]] = defaultdict(list)
    for number, row in accepted:
        wanted[number].append(row)
    empty = pa.schema([*(SCORE_SCHEMA.field(name) for name in SCORED), *_ASKED]).empty_table()
    rows = Columns([_encoded(empty), *(_read_rows(tables[number], judged[number], np.array(mine)) for number, mine in wanted.items())])
    return Pairs(rows, *_read_faces(rows, work))


def read_ends(row: dict[str, Any], work: str) -> Ends:
    """The ends of one scored pair."""
    source, target = (_read_part(work, row[f"{side}_part"], [row[f"{side}_row"]]).to_pylist()[0] for side in ("from", "to"))
    return source, target


def _read_rows(uri: str, judged: Judged, numbers: npt.NDArray[np.int64]) -> pa.Table:
    found, start = [], 0
    for piece in read_pieces(uri, SCORED):
        found.append(piece.take(numbers[slice(*np.searchsorted(numbers, (start, start + len(piece))))] - start))
        start += len(piece)
    table = pa.concat_tables(found).select(SCORED).replace_schema_metadata()
    # null where it was not asked for
    asked = (
        pa.array(values[numbers], kind, from_pandas=True)
        for values, (_, kind) in zip((judged.similarity, judged.writing), _ASKED, strict=True)
    )
    for (name, _), values in zip(_ASKED, asked, strict=True):
        table = table.append_column(name, values)
    return _encoded(table)


def _read_faces(rows: Columns, work: str) -> tuple[Columns, npt.NDArray[np.int32]]:
    """The faces of pairs, and the numbers of each pair's two."""
    parts = pa.chunked_array([rows.of["from_part"], rows.of["to_part"]]).unify_dictionaries().combine_chunks()
    codes, numbers = np.asarray(parts.indices), np.concatenate([np.asarray(rows.of[f"{side}_row"]) for side in ("from", "to")])
    order = np.argsort(codes, kind="stable")
    found, count = [_encoded(pa.schema([SCHEMA.field(name) for name in OBSERVED]).empty_table())], 0
    ends = np.zeros(len(order), np.int32)
    for mine in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else ():
        wanted, place = np.unique(numbers[mine], return_inverse=True)
        found.append(_encoded(_read_part(work, parts[int(mine[0])].as_py(), wanted)))
        ends[mine] = count + place
        count += len(wanted)
    return Columns(found), ends.reshape(2, -1).T


def _read_part(work: str, part: str, numbers: Sequence[int] | npt.NDArray[np.int32]) -> pa.Table:
    return read_part(work, part).select(OBSERVED).take(numbers).replace_schema_metadata()


def _encoded(table: pa.Table) -> pa.Table:
    """It with words, which many rows share, as numbers of words."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and field.name != "key":
            table = table.set_column(place, field.name, table[field.name].dictionary_encode())
    return table
