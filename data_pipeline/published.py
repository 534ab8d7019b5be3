"""What is published of a dataset: a version's index and manifest, its samples by byte offset, and how they are read by whoever asks."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.addresses import join
from infra.errors import UserError
from infra.state import PUBLISHED, read_json, read_table, reading, there
from infra.storage import commit, exists, open_read, sha256_file, sha256_json
from lato.pairs import MEMBERS, FacePair, decode_pair

INDEX = "index.json"
"""Of a version's folder, or a view's: it is published when this is there, and what this says holds."""
MANIFEST, CANDIDATES = "manifest.parquet", "candidates.parquet"
"""Names in a version's folder when it is first published; its index says which hold now."""
_TEXT, _WHOLE = pa.string(), pa.int64()
MANIFEST_SCHEMA = pa.schema(
    [
        *(
            (name, _TEXT)
            for name in ("key", "split", "kind", "source_id", "identity", "instruction", "edit_kind", "expression", "intensity")
        ),
        *((name, _WHOLE) for name in ("yaw", "pitch", "roll")),
        ("identity_similarity", pa.float64()),
        *((name, _TEXT) for name in ("licence", "consent", "url", "target_id", "target_licence", "target_consent", "target_url", "shard")),
        *((f"{member}_{what}", _WHOLE) for member in MEMBERS for what in ("offset", "length")),
    ]
)
"""Columns of a manifest; one that an earlier LaTo wrote may have fewer."""


def as_table(rows: list[dict[str, Any]], schema: pa.Schema = MANIFEST_SCHEMA) -> pa.Table:
    """Rows as a table with the columns of all of them.

    Args:
        rows: Of any number; where there is none, the columns of the schema stay.
        schema: Types by name, of the table that they are taken from; of a column that it does not have, or of which it had no value, the type is seen.
    """
    names = dict.fromkeys(name for row in rows for name in row) if rows else schema.names  # rows of an extended version may have fewer
    known = {field.name: field.type for field in schema if not pa.types.is_null(field.type)}
    return pa.table({name: pa.array([row.get(name) for row in rows], known.get(name)) for name in names})


def encode_table(rows: list[dict[str, Any]] | pa.Table, schema: pa.Schema = MANIFEST_SCHEMA) -> bytes:
    """Rows (`as_table`), or a table, as the bytes of a Parquet file; equal rows, equal bytes."""
    buffer = io.BytesIO()
    table = rows.combine_chunks() if isinstance(rows, pa.Table) else as_table(rows, schema)
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_members(folder: str, row: dict[str, Any]) -> dict[str, bytes]:
    """A sample's members as they lie in their shard, by its manifest row.

    Raises:
        UserError: Its shard is missing.
    """
    shard = join(folder, "shards", row["shard"])

    def read() -> dict[str, bytes]:
        members = {}
        with open_read(shard) as file:
            for member in MEMBERS:
                file.seek(row[f"{member}_offset"])
                members[member] = file.read(row[f"{member}_length"])
        return members

    return there(shard, PUBLISHED, read)


def read_pair(folder: str, row: dict[str, Any]) -> FacePair:
    """A sample by its manifest row, for whoever shows it: its pictures can be opened.

    Raises:
        UserError: Its shard is missing or damaged there.
    """
    with reading(join(folder, "shards", row["shard"]), PUBLISHED):
        pair = decode_pair(str(row["key"]), read_members(folder, row))
        pair.source_image(), pair.target_image()
    return pair


def check_shard(folder: str, shard: dict[str, Any]) -> None:
    """For whoever copies samples out of a shard: the copy of a damaged one would have a hash of its own, and look well.

    Args:
        folder: Of the version.
        shard: The shard's entry in its index.

    Raises:
        UserError: It is missing, or is not what the index names.
    """
    uri = join(folder, "shards", shard["name"])
    if there(uri, PUBLISHED, lambda: sha256_file(uri)) != shard["sha256"]:
        raise UserError(f"{uri} is damaged (it is not what {INDEX} names). {PUBLISHED}")


def is_published(folder: str) -> bool:
    """Whether a version or view is there."""
    return exists(join(folder, INDEX))


def write_index(folder: str, index: dict[str, Any]) -> None:
    """Publishes a version or view, or what has changed of it."""
    commit(join(folder, INDEX), json.dumps(index, indent=1, sort_keys=True).encode())


def digest_of(index: dict[str, Any]) -> str:
    """The digest that stands for all bytes of a version's samples: of its shards and manifest; a view's, of its version's digest, its manifest and weight."""
    made_of = ("parent", "weight") if "view_of" in index else ("shards",)
    return sha256_json({"manifest": index["manifest_sha256"], **{name: index[name] for name in made_of}})


def read_index(folder: str) -> dict[str, Any]:
    """The index of a published version.

    Raises:
        UserError: None is published there, or its index is damaged.
    """
    if not is_published(folder):
        raise UserError(f"{folder}: no published version here (there is no {INDEX})")
    index: dict[str, Any] = read_json(join(folder, INDEX), ("manifest", "digest", "shards"), PUBLISHED)
    return index


def home_of(folder: str) -> str:
    """The folder that holds a version's shards: its own, or for a view that of the version it is of.

    Raises:
        UserError: That version has changed since the view was made.
    """
    index = read_index(folder)
    home = beside(folder, index["view_of"]) if "view_of" in index else folder
    if home != folder and read_index(home)["digest"] != index["parent"]:
        raise UserError(
            f"{folder}: the version that this view is of has changed (it was built anew, or samples were removed from it). Make the view again."
        )
    return home


def beside(folder: str, name: str) -> str:
    """The version of that name in the folder that a version or view lies in: wherever that was moved, a view lies beside the version it is of."""
    return join(folder.rsplit("/", 1)[0], name.rsplit("/", 1)[-1])


def sources_of(row: dict[str, Any]) -> set[str]:
    """Sources of a manifest row: the source's, and the target's where it is another. Older manifests name only the first."""
    return {row["source_id"], row.get("target_id") or row["source_id"]}


def licences_of(row: dict[str, Any]) -> set[str]:
    """Licences of a manifest row: a pair is under those of both its ends."""
    return {row["licence"], row.get("target_licence") or row["licence"]}


def consents_of(row: dict[str, Any]) -> set[str | None]:
    """Consents of a manifest row, of both ends; None where an older manifest does not tell. One end never speaks for the other."""
    return {row.get("consent"), row.get("target_consent")}


def licence_text(row: dict[str, Any]) -> str:
    """The same for people."""
    return " and ".join(sorted(licences_of(row)))


def read_manifest(folder: str) -> list[dict[str, Any]]:
    """Rows of a version's manifest.

    Raises:
        UserError: It is missing or damaged.
    """
    return read_manifest_table(folder).to_pylist()


def read_manifest_table(folder: str) -> pa.Table:
    """The same as a table."""
    return read_table(join(folder, read_index(folder)["manifest"]), mend=PUBLISHED)
