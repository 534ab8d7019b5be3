"""Published dataset versions and views, read by byte offset in any order, and the mixture of several.

What is wrong with one is said when it is opened, all of it at once: everything that can be seen from index, manifest and a listing of the shards.
Their bytes are compared with the index by `Dataset.check`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from infra.addresses import folder_uri, join
from infra.console import Progress
from infra.errors import UserError
from infra.storage import exists, read_bytes, sha256_bytes, sha256_file, sha256_json
from lato.landmarks import Landmarks
from lato.pairs import MEMBERS, FacePair, decode_pair, read_npy
from training.config import DataSource
from training.mixture import Mixture
from training.ranges import RangeReader, list_sizes

_SHOWN = 5
"""Mistakes of one kind that are named; of more only the number is said."""
_READERS = 8
"""Shards hashed side by side."""


@dataclass(frozen=True)
class Shard:
    """What the index says of a shard."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A published dataset version, or a view of one."""

    uri: str
    name: str
    shards: str
    """Folder of its shards: its own, or for a view those of the version it is of."""
    digest: str
    version: str
    """Digest of the version whose shards are read; `digest` itself but for a view."""
    weight: float | None
    """A view's own weight: how often its samples are drawn, against 1 for others."""
    tombstones: tuple[str, ...]
    """Digests of this version before samples were taken out of it for good."""
    files: dict[str, Shard]
    """Of the version, by name."""
    rows: list[dict[str, Any]]
    """The manifest's, by key."""
    _by_key: dict[str, dict[str, Any]] = field(repr=False, compare=False)
    _reader: RangeReader = field(default_factory=RangeReader, repr=False, compare=False)

    @classmethod
    def open(cls, uri: str, digest: str | None = None) -> Dataset:
        """Opens a version or view and compares what lies there with its index: the manifest's hash, the sizes of all shards.

        Args:
            uri: Its folder.
            digest: The one it must have; None takes what is there.

        Raises:
            UserError: Nothing is published there, it is not what was asked for, or files of it are missing or others.
        """
        uri = folder_uri(uri)
        index = _read_index(uri)
        home, version = _home(uri, index)
        _check_digest(uri, index)
        if digest is not None and digest != index["digest"]:
            withdrawn = digest in index.get("tombstones", [])
            why = "it was withdrawn: samples were taken out of it for good (lato data forget)" if withdrawn else "another one lies there"
            raise UserError(
                f"{uri}: expected the dataset version {digest[:12]}, but {why}; the version there is {index['digest'][:12]}. "
                "Train on it in a new run, and encode it anew."
            )
        rows = _read_manifest(uri, index)
        files = {entry["name"]: Shard(entry["bytes"], entry["sha256"]) for entry in version["shards"]}
        shards = join(home, "shards")
        wrong = _compare(shards, files, rows)
        if wrong:
            raise UserError(
                f"{uri}: the files here are not those of its index:\n"
                + "\n".join(f"  {line}" for line in wrong)
                + "\nCopy the version again as a whole, or build it again."
            )
        rows.sort(key=lambda row: row["key"])
        return cls(
            uri,
            index.get("name", uri.rsplit("/", 1)[-1]),
            shards,
            index["digest"],
            version["digest"],
            index.get("weight"),
            tuple(version.get("tombstones", ())),
            files,
            rows,
            {row["key"]: row for row in rows},
        )

    def check(self) -> None:
        """Reads every shard that its samples lie in and compares its sha256 with the index.

        Raises:
            UserError: Names all that differ.
        """
        names = sorted({row["shard"] for row in self.rows})
        progress = Progress(f"check {self.name}", len(names), "shards")
        wrong = []
        with ThreadPoolExecutor(_READERS) as pool:
            for name, sha256 in zip(names, pool.map(lambda name: sha256_file(join(self.shards, name)), names), strict=True):
                if sha256 != self.files[name].sha256:
                    wrong.append(f"{name}: sha256 is {sha256[:12]}, expected {self.files[name].sha256[:12]}")
                progress.advance()
        if wrong:
            raise UserError(
                f"{self.uri}: shards differ from index.json:\n" + "\n".join(f"  {line}" for line in _few(wrong)) + "\nCopy them again."
            )

    def split(self, name: str) -> list[dict[str, Any]]:
        """Manifest rows of a split, by key.

        Raises:
            UserError: It has none.
        """
        rows = [row for row in self.rows if row["split"] == name]
        if not rows:
            raise UserError(f"{self.uri}: the split {name!r} has no samples; change the shares under `split` and build again")
        return rows

    def row(self, key: str) -> dict[str, Any]:
        """The manifest row of a sample."""
        return self._by_key[key]

    def read(self, row: dict[str, Any]) -> FacePair:
        """One sample, in one read: its members lie side by side.

        Raises:
            UserError: Its bytes are gone, or are no sample.
        """
        start = min(row[f"{member}_offset"] for member in MEMBERS)
        end = max(row[f"{member}_offset"] + row[f"{member}_length"] for member in MEMBERS)
        data = self._reader.read(join(self.shards, row["shard"]), start, end - start)
        members = {}
        for member in MEMBERS:
            offset = row[f"{member}_offset"] - start
            members[member] = data[offset : offset + row[f"{member}_length"]]
        try:
            return decode_pair(row["key"], members)
        except ValueError as error:
            raise UserError(f"{join(self.shards, row['shard'])}: {error}. The shard was changed; copy it again.") from error

    def read_landmarks(self, rows: Sequence[dict[str, Any]]) -> Landmarks:
        """(N, 2, 68, 2) source and target landmarks, without the pictures."""
        pieces = [(join(self.shards, row["shard"]), row["landmarks.npy_offset"], row["landmarks.npy_length"]) for row in rows]
        return np.stack([read_npy(data) for data in self._reader.read_many(pieces)]).astype(np.float32)


def open_sources(sources: Sequence[DataSource]) -> list[Dataset]:
    """Opens what a training reads.

    Raises:
        UserError: One cannot be used, or a sample that one trains on is held out in another.
    """
    if not sources:
        raise UserError("no dataset is given: name at least one published version or view")
    datasets = [Dataset.open(source.uri) for source in sources]
    check_splits(datasets)
    return datasets


def check_splits(datasets: Sequence[Dataset]) -> None:
    """Raises UserError where a sample that one trains on is held out in another."""
    splits = [
        {split: {row["key"] for row in dataset.rows if row["split"] == split} for split in ("train", "val", "test")} for dataset in datasets
    ]
    for one, own in zip(datasets, splits, strict=True):
        for other, theirs in zip(datasets, splits, strict=True):
            for split in ("val", "test"):
                if leaked := own["train"] & theirs[split]:
                    raise UserError(
                        f"{len(leaked)} samples that {one.uri} trains on are in the {split} split of {other.uri} (first: {min(leaked)}). "
                        "Held-out numbers would mean nothing. Leave one of the two out, or make a view without these samples."
                    )


def mixture(datasets: Sequence[Dataset], sources: Sequence[DataSource], seed: int) -> Mixture:
    """The train splits in their shares: the weights given, or else samples times the view's own weight (1 without).

    Raises:
        UserError: Only some have a weight, or a share is so small that it is never drawn.
    """
    keys = [[row["key"] for row in dataset.split("train")] for dataset in datasets]
    given = [source.weight for source in sources]
    if any(given) and not all(given):
        missing = [source.uri for source in sources if source.weight is None]
        raise UserError(f"weights are shares of the mixture: give one to every dataset or to none. Without one: {', '.join(missing)}")
    weights = [weight or len(own) * (dataset.weight or 1.0) for weight, own, dataset in zip(given, keys, datasets, strict=True)]
    mixed = Mixture(keys, weights, seed)
    for dataset, weight, count in zip(datasets, weights, mixed.counts, strict=True):
        if count == 0:
            raise UserError(
                f"{dataset.uri}: its share of the mixture is {weight / sum(weights):.2e}, less than one sample in {sum(mixed.counts)}: "
                "it would never be drawn. Give it a greater weight, or leave it out."
            )
    return mixed


def _read_index(uri: str) -> dict[str, Any]:
    if not exists(join(uri, "index.json")):
        raise UserError(f"{uri}: no published dataset version here (no index.json). Build one: lato data build")
    try:
        index = json.loads(read_bytes(join(uri, "index.json")))
    except ValueError as error:
        raise UserError(f"{uri}/index.json is not readable: {error}. Copy it again.") from error
    missing = [name for name in ("digest", "manifest", "manifest_sha256", "shards") if name not in index]
    if missing:
        raise UserError(f"{uri}/index.json is not the index of a dataset version: it has no {', '.join(missing)}")
    return index


def _check_digest(uri: str, index: dict[str, Any]) -> None:
    made_of = {"parent": index["parent"], "weight": index["weight"]} if "view_of" in index else {"shards": index["shards"]}
    if sha256_json({"manifest": index["manifest_sha256"], **made_of}) != index["digest"]:
        raise UserError(
            f"{uri}/index.json was changed: its digest is not that of what it lists. Copy it again, or build the version again."
        )


def _home(uri: str, index: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Folder and index of the version that holds the shards: a view lies beside its version, wherever both were moved."""
    if "view_of" not in index:
        return uri, index
    home = join(uri.rsplit("/", 1)[0], index["view_of"].rsplit("/", 1)[-1])
    if not exists(join(home, "index.json")):
        raise UserError(f"{uri}: the version that this view is of does not lie beside it, at {home}. Copy both.")
    version = _read_index(home)
    if version["digest"] != index["parent"]:
        how = "samples were removed from it" if index["parent"] in version.get("tombstones", []) else "it was built again"
        raise UserError(f"{uri}: the version that this view is of has changed ({how}). Make the view again.")
    return home, version


def _read_manifest(uri: str, index: dict[str, Any]) -> list[dict[str, Any]]:
    name = index["manifest"]
    if not exists(join(uri, name)):
        raise UserError(f"{uri}: {name} is missing, which index.json names. Copy the version again as a whole.")
    data = read_bytes(join(uri, name))
    if sha256_bytes(data) != index["manifest_sha256"]:
        raise UserError(
            f"{uri}: {name} is not the one of index.json (its sha256 differs): one of the two is from another version, or was changed. "
            "Copy the version again as a whole."
        )
    return pq.read_table(io.BytesIO(data)).to_pylist()


def _compare(folder: str, files: dict[str, Shard], rows: list[dict[str, Any]]) -> list[str]:
    """What of an index does not fit what lies in the folder, from one listing."""
    sizes = list_sizes(folder)
    needed = sorted({row["shard"] for row in rows})
    unknown = [f"{name}: the manifest has samples in it, the index does not name it" for name in needed if name not in files]
    missing = [f"{name}: missing" for name in needed if name in files and name not in sizes]
    other = [
        f"{name}: {sizes[name]:,} bytes, expected {files[name].bytes:,}"
        for name in needed
        if name in files and sizes.get(name, files[name].bytes) != files[name].bytes
    ]
    beyond = [
        f"{row['key']}: ends behind the end of {row['shard']}"
        for row in rows
        if row["shard"] in files and row["target.jpg_offset"] + row["target.jpg_length"] > files[row["shard"]].bytes
    ]
    return _few(unknown) + _few(missing) + _few(other) + _few(beyond)


def _few(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more like this"]
