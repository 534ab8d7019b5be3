"""Pack: rendered bytes to WebDataset shards, a manifest with byte offsets and an index. Decodes nothing; equal input, equal bytes."""

from __future__ import annotations

import functools
import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa
from pydantic import Field

from data_pipeline.card import card_hashes
from data_pipeline.extend import Base, read_components
from data_pipeline.published import (
    CANDIDATES,
    INDEX,
    MANIFEST,
    as_table,
    check_shard,
    digest_of,
    encode_table,
    read_index,
    read_manifest,
    read_members,
    write_index,
)
from data_pipeline.succession import WITHDRAWN, read_withdrawn, succeed
from data_pipeline.taken_out import TAKEN_OUT
from infra.addresses import join
from infra.config import Config
from infra.console import Progress
from infra.state import PUBLISHED, there
from infra.storage import commit, commit_changed, copy_file, delete, exists, list_files, read_bytes, sha256_bytes, sha256_file
from lato.pairs import MEMBERS, FacePair, Split, encode_pair

_BLOCK = tarfile.BLOCKSIZE


class PackConfig(Config):
    """How shards are cut."""

    samples_per_shard: int = Field(default=200, ge=1)
    """All shards of a split have this many samples but the last."""
    seed: int = 0
    """Order of samples: by sha256 of seed and key."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A sample to be packed. Of all samples this is held until the last is packed; what is read of one, while its shard is."""

    key: str
    split: Split
    read: Callable[[], tuple[dict[str, Any], FacePair]]
    """Gives its manifest columns, and the pair."""


def pack(
    samples: list[Planned],
    config: PackConfig,
    folder: str,
    name: str,
    created_from: str,
    base: Base | None = None,
    models: Sequence[dict[str, Any]] = (),
    files: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Writes shards, manifest and, last, the index that publishes the version.

    Args:
        samples: What to pack.
        config: Shard size and order.
        folder: The version's folder.
        name: The version's name.
        created_from: Digest of the plan and config.
        base: A version that is extended: its shards come first, as they are.
        models: What had a part in the samples, with sha256 and licence (`models_used`); the index lists them.
        files: What else was written beside the shards, name -> sha256; the index lists it, and the card that will be written.

    Returns:
        The version's digest.
    """
    _check_keys([*(sample.key for sample in samples), *(row["key"] for row in (base.rows if base else ()))])
    progress = Progress("pack", len(samples), "samples")
    shards, taken_over = _take_over(base, folder) if base else ([], [])
    manifest = [as_table(taken_over)] if taken_over else []
    first = _first_numbers(base.index["shards"]) if base else Counter[str]()
    for split in ("train", "val", "test"):
        mine = sorted((s for s in samples if s.split == split), key=lambda s: sha256_bytes(f"{config.seed}/{s.key}".encode()))
        for number, start in enumerate(range(0, len(mine), config.samples_per_shard)):
            group = sorted(mine[start : start + config.samples_per_shard], key=lambda s: s.key)
            shard = f"{split}-{first[split] + number:06d}.tar"
            data, rows = write_shard([_encode(sample) for sample in group], shard)
            commit_changed(join(folder, "shards", shard), data)
            shards.append({"name": shard, "split": split, "count": len(group), "bytes": len(data), "sha256": sha256_bytes(data)})
            manifest.append(as_table(rows))
            progress.advance(len(group))
    names = Counter(shard["name"] for shard in shards)
    assert len(names) == len(shards), f"two shards of one name ({names.most_common(1)[0][0]}): a mistake in the code, nothing is published"
    samples_of_all = pa.concat_tables(manifest or [as_table([])], promote_options="permissive")
    table = encode_table(samples_of_all)
    commit_changed(join(folder, MANIFEST), table)
    index: dict[str, Any] = {
        "name": name,
        "created_from": created_from,
        "samples": len(samples_of_all),
        "shards": shards,
        "manifest": MANIFEST,
        "candidates": CANDIDATES,
        "manifest_sha256": sha256_bytes(table),
        "models": [*models],
    }
    if base:
        index["extends"] = {"name": base.index["name"], "digest": base.index["digest"], "samples": len(base.rows)}
        if base.taken_out:
            index[TAKEN_OUT] = base.taken_out
    index["digest"] = digest_of(index)
    index["files"] = {**files, **card_hashes(index, table, read_components(folder))}
    index |= succeed(read_withdrawn(folder), index["digest"])
    write_index(folder, index)
    sweep(folder)
    return index["digest"]


def _check_keys(keys: list[str]) -> None:
    """A shard with a key twice cannot be read, and one of the two would have the other's pictures: then there is no version."""
    twice = [key for key, count in Counter(keys).items() if count > 1]
    assert not twice, (
        f"{len(twice)} keys are those of two samples each ({', '.join(twice[:3])}): a mistake in the code, nothing is published"
    )


def _first_numbers(shards: list[dict[str, Any]]) -> Counter[str]:
    """Split -> the number of its first new shard: after the highest that there is. There may be fewer shards than numbers, where one was emptied."""
    first = Counter[str]()
    for shard in shards:
        found = re.fullmatch(r"[a-z]+-(\d+)\..*", shard["name"])  # `train-000002.tar`, or written anew: `train-000002.r1.tar`
        assert found, f"{shard['name']}: no name of a shard"
        first[shard["split"]] = max(first[shard["split"]], int(found[1]) + 1)
    return first


def withdraw(folder: str) -> None:
    """Takes a version's index away before files of the same names are written anew for another plan: what is half of either is no version."""
    index = join(folder, INDEX)
    if exists(index):
        commit(join(folder, WITHDRAWN), read_bytes(index))
        delete(index)


def sweep(folder: str) -> None:
    """Deletes what is left of an earlier version of a published version's name: its withdrawn index, and shards that the new one does not name, so that
    who reads `shards/*.tar` reads these samples only."""
    if exists(join(folder, WITHDRAWN)):
        delete(join(folder, WITHDRAWN))
    named = {shard["name"] for shard in read_index(folder)["shards"]}
    for uri in list_files(join(folder, "shards")):
        if uri.rsplit("/", 1)[-1] not in named:
            delete(uri)


def _take_over(base: Base, folder: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The extended version's shards and manifest rows, the files linked where the disk can; shards of which something is taken out are written without it."""
    kept = {row["key"] for row in base.rows}
    touched = {row["shard"] for row in read_manifest(base.folder) if row["key"] not in kept}
    shards, rows = rewrite_shards(base.folder, folder, base.rows, touched, "m1")
    for shard in shards:
        mine, theirs = (join(home, "shards", shard["name"]) for home in (folder, base.folder))
        if exists(mine) and sha256_file(mine) != shard["sha256"]:  # of an earlier version of this name, or damaged
            delete(mine)
        if not exists(mine):
            there(theirs, PUBLISHED, functools.partial(copy_file, theirs, mine))
    return shards, sorted(rows, key=lambda row: (row["shard"], row["key"]))


def rewrite_shards(
    home: str, folder: str, keep: list[dict[str, Any]], touched: set[str], suffix: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Writes touched shards anew with the samples that stay, under new names; the bytes of all others stay.

    Args:
        home: Folder of the version that is read.
        folder: Where the new shards go.
        keep: Manifest rows that stay.
        touched: Names of shards that lose samples.
        suffix: Of the new names.

    Returns:
        Index entries of all shards that have samples, and manifest rows.

    Raises:
        UserError: A touched shard is missing or damaged.
    """
    shards, rows = [], [row for row in keep if row["shard"] not in touched]
    for shard in read_index(home)["shards"]:
        if shard["name"] not in touched:
            shards.append(shard)
            continue
        mine = [row for row in keep if row["shard"] == shard["name"]]
        if not mine:
            continue
        check_shard(home, shard)
        name = f"{shard['name'].split('.')[0]}.{suffix}.tar"
        data, new = write_shard([(row, read_members(home, row)) for row in mine], name)
        commit(join(folder, "shards", name), data)
        shards.append({**shard, "name": name, "count": len(mine), "bytes": len(data), "sha256": sha256_bytes(data)})
        rows += new
    return shards, rows


def _encode(sample: Planned) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Its manifest columns and members."""
    columns, pair = sample.read()
    return {"key": sample.key, "split": sample.split, **columns}, encode_pair(pair)


def write_shard(samples: list[tuple[dict[str, Any], dict[str, bytes]]], shard: str) -> tuple[bytes, list[dict[str, Any]]]:
    """A shard's bytes, and its manifest rows with the offset and length of every member.

    Args:
        samples: Columns (with `key`) and members of each, by key.
        shard: Its file name.
    """
    buffer = io.BytesIO()
    rows = []
    for columns, members in samples:
        row: dict[str, Any] = {**columns, "shard": shard}
        for member in MEMBERS:
            content = members[member]
            header = tarfile.TarInfo(f"{row['key']}.{member}")
            header.size, header.mode, header.mtime = len(content), 0o644, 0
            buffer.write(header.tobuf(tarfile.USTAR_FORMAT))  # one block; `addfile` copies it and the content first
            row[f"{member}_offset"], row[f"{member}_length"] = buffer.tell(), len(content)
            buffer.write(content)
            buffer.write(bytes(-len(content) % _BLOCK))
        rows.append(row)
    buffer.write(bytes(2 * _BLOCK))
    buffer.write(bytes(-buffer.tell() % tarfile.RECORDSIZE))
    return buffer.getvalue(), rows
