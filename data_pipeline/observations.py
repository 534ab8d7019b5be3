"""Observations: one row a face in a frame, and the part file that holds a segment's rows together with its ledger row."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.chips import Chip
from infra.addresses import join
from infra.errors import UserError
from infra.state import DERIVED, read_schema, read_table, reading
from infra.storage import commit, list_files

_FLOATS = pa.list_(pa.float32())

SCHEMA = pa.schema(
    {
        "source_id": pa.string(),
        "source_sha256": pa.string(),
        "kind": pa.string(),
        "identity": pa.string(),  # declared person, or null
        "track": pa.int32(),  # one face followed through one shot; an image set of one person is one track
        "frame": pa.int64(),  # `Frame.number`
        "pts": pa.float64(),  # seconds; in an image set the image's number
        "image_uri": pa.string(),  # where its picture lay then, null in videos; it may lie elsewhere now: `picture_uri`
        "width": pa.int32(),
        "height": pa.int32(),
        "detection_score": pa.float32(),  # of the detector's last look at the track
        "box": _FLOATS,  # 4: left, top, right, bottom
        "landmarks": _FLOATS,  # 136, image pixels
        "blendshapes": _FLOATS,  # 52
        "yaw": pa.float32(),
        "pitch": pa.float32(),
        "roll": pa.float32(),
        "expression": pa.string(),
        "expression_intensity": pa.float32(),
        "expression_scores": _FLOATS,  # 7
        "declared": pa.string(),  # JSON, or null
        "at_start": pa.bool_(),  # in the first frame that was looked at of a piece of a video; null for images, like the next
        "goes_on": pa.bool_(),  # in the last one, and no cut comes before the first frame of the next piece
        "representative": pa.bool_(),
        "chip": pa.binary(),  # JPEG; representatives only, like all below
        "chip_transform": pa.list_(pa.float64()),  # 6: from image pixels to chip pixels, row by row
        "sharpness": pa.float32(),
        "brightness": pa.float32(),
        "noise": pa.float32(),
        "face_px": pa.float32(),
        "clipped": pa.float32(),
        "blockiness": pa.float32(),
        "letterbox": pa.float32(),
        "skin_ita": pa.float32(),
        "phash": pa.binary(32),
    }
)
_LEDGER, _MADE = b"ledger", b"made"
CHIP_COLUMNS = ("representative", "chip", "chip_transform", "landmarks")
"""What column groups are computed from."""


def commit_part(work: str, fingerprint: str, rows: list[dict[str, Any]], ledger: dict[str, Any], made: dict[str, Any]) -> None:
    """Commits a segment's observations, its ledger row, and what it was made `of` and `with`, in one atomic write. The first part of a fingerprint wins."""
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    said = {key: json.dumps(value, sort_keys=True).encode() for key, value in ((_LEDGER, ledger), (_MADE, made))}
    table = pa.table(columns, schema=SCHEMA.with_metadata(said))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    commit(part_uri(work, fingerprint), buffer.getvalue(), exclusive=True)


def part_uri(work: str, fingerprint: str) -> str:
    """Where a fingerprint's part lies."""
    return join(work, "parts", f"{fingerprint}.parquet")


def committed_fingerprints(work: str) -> set[str]:
    """Fingerprints of all committed parts."""
    return {uri.rsplit("/", 1)[-1].removesuffix(".parquet") for uri in list_files(join(work, "parts"), ".parquet")}


def read_part(work: str, fingerprint: str) -> pa.Table:
    """A part's observations."""
    return read_table(part_uri(work, fingerprint))


def read_columns(work: str, fingerprint: str, names: list[str]) -> pa.Table:
    """Some columns of a part's observations."""
    return read_table(part_uri(work, fingerprint), names)


def read_representatives(work: str, fingerprint: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns, `representative` among them, of a part's representatives, each with its number in the part as `row`."""
    table = read_table(part_uri(work, fingerprint), list(names))
    numbers = np.flatnonzero(np.asarray(table["representative"]))
    return [row | {"row": int(number)} for number, row in zip(numbers, table.take(numbers).to_pylist(), strict=True)]


def read_chips(work: str, fingerprint: str) -> list[tuple[int, Chip, npt.NDArray[np.float64]]]:
    """Number in the part, chip and landmarks (68, 2) in image pixels of a part's representatives."""
    table = read_table(part_uri(work, fingerprint), list(CHIP_COLUMNS))
    numbers = np.flatnonzero(np.asarray(table["representative"]))
    return [
        (
            int(number),
            Chip(row["chip"], np.array(row["chip_transform"]).reshape(2, 3)),
            np.array(row["landmarks"], np.float64).reshape(68, 2),
        )
        for number, row in zip(numbers, table.take(numbers).to_pylist(), strict=True)
    ]


def read_ledger_row(work: str, fingerprint: str) -> dict[str, Any]:
    """A part's ledger row."""
    uri = part_uri(work, fingerprint)
    schema = read_schema(uri)
    with reading(uri, DERIVED):
        return json.loads(schema.metadata[_LEDGER])


def read_made(work: str, fingerprint: str) -> dict[str, Any]:
    """`of`: what the part's name is the digest of (version, content, config, item, models); `with`: the machine and libraries that made it.

    Raises:
        UserError: The part is of a time when none said so.
    """
    uri = part_uri(work, fingerprint)
    said = read_schema(uri).metadata
    if _MADE not in said:
        raise UserError(f"part {fingerprint} was written by an earlier LaTo and does not say what it was made of. Build into a new folder.")
    with reading(uri, DERIVED):
        return json.loads(said[_MADE])
