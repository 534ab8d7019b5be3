"""Samples of a published version, read by byte offset in any order, and the order in which training sees them."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from infra.errors import UserError
from infra.storage import exists, join, open_read, read_bytes
from lato.landmarks import Landmarks
from lato.pairs import MEMBERS, FacePair, decode_pair


@dataclass(frozen=True)
class Dataset:
    """A published dataset version."""

    uri: str
    shards: str
    """Folder of its shards: its own, or for a view those of the version it is of."""
    digest: str
    rows: list[dict[str, Any]]
    """The manifest's."""

    @classmethod
    def open(cls, uri: str) -> Dataset:
        """Opens a version.

        Raises:
            UserError: Nothing is published there.
        """
        if not exists(join(uri, "index.json")):
            raise UserError(f"{uri}: no published dataset version here (no index.json). Build one: lato data build")
        index = json.loads(read_bytes(join(uri, "index.json")))
        rows = pq.read_table(io.BytesIO(read_bytes(join(uri, index["manifest"])))).to_pylist()
        shards = index.get("view_of", uri)
        if shards != uri and json.loads(read_bytes(join(shards, "index.json")))["digest"] != index["parent"]:
            raise UserError(f"{uri}: the version that this view is of has changed (samples were removed from it). Make the view again.")
        return cls(uri, join(shards, "shards"), index["digest"], sorted(rows, key=lambda row: row["key"]))

    def split(self, name: str) -> list[dict[str, Any]]:
        """Manifest rows of a split, by key.

        Raises:
            UserError: It has none.
        """
        rows = [row for row in self.rows if row["split"] == name]
        if not rows:
            raise UserError(f"{self.uri}: the split {name!r} has no samples; change the shares under `split` and build again")
        return rows

    def read(self, row: dict[str, Any]) -> FacePair:
        """One sample."""
        with open_read(join(self.shards, row["shard"])) as file:
            return decode_pair(row["key"], {member: _member(file, row, member) for member in MEMBERS})

    def read_landmarks(self, rows: list[dict[str, Any]]) -> Landmarks:
        """(N, 2, 68, 2) source and target landmarks, without the pictures."""
        arrays = []
        for row in rows:
            with open_read(join(self.shards, row["shard"])) as file:
                arrays.append(np.load(io.BytesIO(_member(file, row, "landmarks.npy")), allow_pickle=False))
        return np.stack(arrays).astype(np.float32)


def _member(file: Any, row: dict[str, Any], member: str) -> bytes:
    file.seek(row[f"{member}_offset"])
    return file.read(row[f"{member}_length"])


def batch_indices(step: int, global_batch: int, count: int, seed: int) -> list[tuple[int, int]]:
    """The (sample, epoch) of every place in the global batch of a step: a function of the step alone, whatever the number of ranks.

    Each epoch is a permutation drawn from (seed, epoch); batches run on over its end.
    """
    places = range(step * global_batch, (step + 1) * global_batch)
    orders: dict[int, Any] = {}
    chosen = []
    for place in places:
        epoch, offset = divmod(place, count)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng((seed, epoch)).permutation(count)
        chosen.append((int(orders[epoch][offset]), epoch))
    return chosen


def sample_generator(seed: int, epoch: int, key: str) -> torch.Generator:
    """The source of every random draw of a sample in an epoch."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
