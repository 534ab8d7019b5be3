"""Verify: re-reads a published version and says everything that is wrong with it."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from typing import Any

import pyarrow.parquet as pq
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_pipeline.published import digest_of, home_of, read_index, read_manifest
from infra.addresses import join
from infra.storage import exists, list_files, read_bytes, sha256_bytes, sha256_file
from lato.pairs import MEMBERS, decode_pair


def verify_version(folder: str) -> list[str]:
    """Checks all that a version's index names: its samples, and the files beside them (verdicts, settings, funnel, what ties sources, card).

    Args:
        folder: The version's folder.

    Returns:
        What is wrong, a line each; empty when all is well.

    Raises:
        UserError: There is no published version there.
    """
    home = home_of(folder)
    files = sorted(read_index(home).get("files", {}).items())  # an earlier LaTo did not list them
    return verify_samples(folder) + [line for name, digest in files for line in _verify_file(home, name, digest)]


def _verify_file(folder: str, name: str, digest: str) -> list[str]:
    if not exists(join(folder, name)):
        return [f"{name}: missing"]
    return [] if sha256_file(join(folder, name)) == digest else [f"{name}: sha256 differs from index.json; it was changed or cut short"]


def verify_samples(folder: str) -> list[str]:
    """Checks the index' counts and digest, hashes, members, offsets and decodability of every sample, and that no other shard lies there."""
    index = read_index(folder)
    wrong: list[str] = []
    if not exists(join(folder, index["manifest"])):
        return [f"{index['manifest']}: is missing"]
    data = read_bytes(join(folder, index["manifest"]))
    if sha256_bytes(data) != index["manifest_sha256"]:
        return [f"{index['manifest']}: sha256 differs from index.json; it was changed or cut short ({len(data)} bytes)"]
    manifest = defaultdict(list)
    for row in pq.read_table(io.BytesIO(data)).to_pylist():
        manifest[row["shard"]].append(row)
    if digest_of(index) != index["digest"]:
        wrong.append("index.json: its digest is not that of its shards and manifest; it was changed")
    count = sum(map(len, manifest.values()))
    if index["samples"] != count:
        wrong.append(f"index.json: says {index['samples']} samples, the manifest has {count}")
    home = home_of(folder)
    if home != folder:  # a view has no shards of its own: its samples must be there as the version has them
        known = {row["key"]: row for row in read_manifest(home)}
        wrong += [f"{row['key']}: not as in {home}" for rows in manifest.values() for row in rows if known.get(row["key"]) != row]
        return wrong + verify_samples(home)
    named = {shard["name"] for shard in index["shards"]}
    wrong += [f"{name}: {len(manifest[name])} samples in the manifest, but not in the index" for name in sorted(manifest.keys() - named)]
    lying = {uri.rsplit("/", 1)[-1] for uri in list_files(join(folder, "shards"), ".tar")}
    wrong += [
        f"{name}: lies in shards, but is not in the index; readers of shards/*.tar would take it in" for name in sorted(lying - named)
    ]
    for shard in index["shards"]:
        wrong += _verify_shard(folder, shard, manifest[shard["name"]])
    return wrong


def _verify_shard(folder: str, shard: dict[str, object], rows: list[dict[str, Any]]) -> list[str]:
    name = str(shard["name"])
    uri = join(folder, "shards", name)
    if not exists(uri):
        return [f"{name}: missing"]
    data = read_bytes(uri)
    if sha256_bytes(data) != shard["sha256"]:
        return [f"{name}: sha256 differs from index.json ({len(data)} bytes, expected {shard['bytes']})"]
    if len(rows) != shard["count"]:
        return [f"{name}: {len(rows)} samples in the manifest, {shard['count']} in the index"]
    wrong = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
    expected = [f"{row['key']}.{member}" for row in sorted(rows, key=lambda row: str(row["key"])) for member in MEMBERS]
    if names != expected:
        wrong.append(f"{name}: its members are not those of the manifest")
    try:  # what a trainer that opens the shard with plain webdataset will see
        seen = [sample["__key__"] for sample in group_by_keys(tar_file_expander([{"url": name, "stream": io.BytesIO(data)}]))]
        if sorted(seen) != sorted(str(row["key"]) for row in rows):
            wrong.append(f"{name}: webdataset finds {len(seen)} samples, the manifest has {len(rows)}, or their keys differ")
    except ValueError as error:
        wrong.append(f"{name}: webdataset cannot read it: {error.args[0]}")
    for row in rows:
        members = {m: data[row[f"{m}_offset"] : row[f"{m}_offset"] + row[f"{m}_length"]] for m in MEMBERS}
        try:
            pair = decode_pair(str(row["key"]), members)
            pair.source_image()
            pair.target_image()
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    return wrong
