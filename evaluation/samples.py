"""Held-out samples to edit."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from typing import Any

import pyarrow.parquet as pq

from infra.addresses import join
from infra.errors import UserError
from infra.storage import exists, open_read, read_bytes, sha256_bytes
from lato.pairs import MEMBERS, FacePair, decode_pair


def choose_samples(dataset: str, count: int) -> list[FacePair]:
    """`count` samples of the test split, spread over real and synthetic people and over kinds of edit; val fills up.

    Raises:
        UserError: The version has neither.
    """
    if not exists(join(dataset, "index.json")):
        raise UserError(f"{dataset}: no published dataset version here. Build one: lato data build")
    rows = pq.read_table(io.BytesIO(read_bytes(join(dataset, json.loads(read_bytes(join(dataset, "index.json")))["manifest"])))).to_pylist()
    held_out = [row for split in ("test", "val") for row in rows if row["split"] == split]
    if not held_out:
        raise UserError(f"{dataset}: neither test nor val has samples; change the shares under `split` and build again")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in held_out:
        groups[(row["split"] != "test", row["kind"] == "synthetic", row["edit_kind"])].append(row)
    for group in groups.values():
        group.sort(key=lambda row: sha256_bytes(row["key"].encode()))
    chosen: list[dict[str, Any]] = []
    for val in (False, True):
        mine = [groups[key] for key in sorted(groups) if key[0] is val]
        while len(chosen) < count and any(mine):
            chosen += [group.pop(0) for group in mine if group]
    return [_read(dataset, row) for row in chosen[:count]]


def _read(dataset: str, row: dict[str, Any]) -> FacePair:
    members = {}
    with open_read(join(dataset, "shards", row["shard"])) as file:
        for member in MEMBERS:
            file.seek(row[f"{member}_offset"])
            members[member] = file.read(row[f"{member}_length"])
    return decode_pair(row["key"], members)
