"""Column groups computed from face chips: each has a version, models and a fingerprint of its own, so that one can change without the others.

A group never sees a frame: it maps chips to columns. That is what runs on GPU actors, and what `lato data backfill` runs without decoding a video.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import observations
from data_pipeline.chip_scores import (
    FER,
    POINTS68,
    TEXT_DETECTOR,
    Face,
    GroupsConfig,
    Scorer,
    identity_models,
    make_fer,
    make_identity,
    make_occlusion,
    make_surroundings,
    make_writing,
)
from data_pipeline.chips import Chip
from data_pipeline.places import chips as chips_place
from infra import assets
from infra.addresses import join
from infra.console import Progress
from infra.errors import UserError
from infra.pool import run_all
from infra.state import DERIVED, read_schema, read_table, reading
from infra.storage import commit, delete, list_files, list_folders, sha256_json, sha256_model

_FLOATS = pa.list_(pa.float32())
_BUNDLE = 64
"""Sources a job."""
_TOGETHER = 256
"""Faces whose chips are decoded at a time, 50 MB; all groups then score them."""


@dataclass(frozen=True)
class Group:
    """A column group."""

    version: int
    """Raise it when equal chips would give other values."""
    columns: dict[str, pa.DataType]
    models: Callable[[Path, GroupsConfig], list[Path]]
    make: Callable[[Path, GroupsConfig], Scorer]


GROUPS: dict[str, Group] = {
    "identity": Group(2, {"embedding": _FLOATS, "points5": _FLOATS}, identity_models, make_identity),
    "occlusion": Group(1, {"occlusion": pa.float32()}, lambda models, config: [models / POINTS68], make_occlusion),
    "writing": Group(4, {"writing": pa.float32()}, lambda models, config: [models / TEXT_DETECTOR], make_writing),
    "surroundings": Group(1, {"background": _FLOATS, "clothing": _FLOATS}, lambda models, config: [], make_surroundings),
    "fer": Group(1, {"fer_scores": _FLOATS}, lambda models, config: [models / FER], make_fer),
}
"""All that are known. `identity`: unit vector and the five points it was aligned by. `occlusion`: distance between the mesh and an independent 68-point
network in the part of the face (brow, nose, eye, lip) where it is largest, in interocular distances. `writing`: share of the chip that is text.
`surroundings`: colours of background and clothes. `fer`: seven scores of another expression network, in the order of `Expression`."""
_MODELS = b"models"


def group_digests(models: Path, config: GroupsConfig) -> dict[str, str]:
    """Group -> digest of what it depends on beside the chips: version and models.

    Raises:
        UserError: A group is unknown, or a model is missing.
    """
    unknown = [name for name in config.names if name not in GROUPS]
    if unknown:
        raise UserError(f"analyze.groups.names: unknown {', '.join(unknown)}; known: {', '.join(GROUPS)}")
    digests = {}
    for name in config.names:
        files = GROUPS[name].models(models, config)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(f"group {name} needs {', '.join(missing)} in {files[0].parent}. Fetch them: lato assets fetch")
        digests[name] = sha256_json({"version": GROUPS[name].version, "models": [sha256_model(file) for file in files]})
    return digests


def group_models(models: Path, config: GroupsConfig) -> dict[str, str]:
    """`group/file` -> sha256 of every model that the groups read."""
    files = {f"{name}/{file.name}": file for name in config.names for file in GROUPS[name].models(models, config)}
    return {name: sha256_model(file) for name, file in files.items()}


def licence_of(name: str, digest: str, config: GroupsConfig) -> str:
    """Licence of a model (`role` or `group/file`): that of the catalogue where the file is one of its own, else the pack's where it came from that."""
    known = {asset.sha256: asset.licence for asset in assets.load_catalog().values()}
    return known.get(digest) or (config.pack_licence if config.pack and name.startswith("identity/") else "unknown")


def _describe_models(name: str, models: Path, config: GroupsConfig) -> bytes:
    """A group's models, as its column files name them: file -> sha256 and licence, as JSON."""
    hashes = {file.name: sha256_model(file) for file in GROUPS[name].models(models, config)}
    described = {file: {"sha256": digest, "licence": licence_of(f"{name}/{file}", digest, config)} for file, digest in hashes.items()}
    return json.dumps(described, sort_keys=True).encode()


def backfill(parts: Sequence[str], digests: dict[str, str], config: GroupsConfig, models: Path, work: str, workers: int) -> int:
    """Computes the groups' columns for all parts that lack them, from chips alone.

    Args:
        parts: Fingerprints of observation parts.
        digests: Of the groups, from `group_digests`.
        config: Which groups, with what.
        models: Folder of the models.
        work: The build's folder.
        workers: Ray actors; 0 works here.

    Returns:
        How many columns parts were made.
    """
    lacking: dict[str, list[str]] = {part: [] for part in parts}
    for name, digest in digests.items():
        have = set(list_files(join(work, "columns", name), ".parquet"))
        for part in parts:
            if column_uri(work, name, part, digest) not in have:
                lacking[part].append(name)
    alike: dict[tuple[str, ...], list[_Part]] = {}
    for part, names in lacking.items():
        if names:
            alike.setdefault(tuple(names), []).append((part, None))
    return _run(alike, digests, config, models, work, workers)


def compute_rows(
    name: str, wanted: Mapping[str, set[int]], digest: str, config: GroupsConfig, models: Path, work: str, workers: int
) -> int:
    """Computes a group's columns for some representatives only: `wanted` has their numbers by part. Returns how many parts were touched."""
    return _run({(name,): [(part, sorted(wanted[part])) for part in sorted(wanted)]}, {name: digest}, config, models, work, workers)


_Part = tuple[str, list[int] | None]
"""A part, and the numbers of its representatives that are wanted; None for all."""
_Job = tuple[tuple[str, ...], list[_Part]]
"""Groups, and parts that lack them."""


def _run(
    todo: Mapping[tuple[str, ...], list[_Part]], digests: dict[str, str], config: GroupsConfig, models: Path, work: str, workers: int
) -> int:
    jobs: list[_Job] = [(names, parts[start : start + _BUNDLE]) for names, parts in todo.items() for start in range(0, len(parts), _BUNDLE)]
    total = sum(len(names) * len(parts) for names, parts in jobs)
    progress = Progress("columns", total, "parts")
    for done in run_all(functools.partial(_Worker, digests, config, models, work), jobs, workers, chips_place(config)):
        progress.advance(len(done.job[0]) * len(done.job[1]))
    return total


class _Worker:
    def __init__(self, digests: dict[str, str], config: GroupsConfig, models: Path, work: str) -> None:
        cv2.setNumThreads(1)
        self._digests, self._config, self._models, self._work = digests, config, models, work
        self._scorers: dict[str, Scorer] = {}
        self._described: dict[str, bytes] = {}

    def run(self, job: _Job) -> None:
        """Scores representatives of some parts for some groups, each chip decoded once, and commits a columns part for each."""
        names, parts = job
        for name in names:
            self._load(name)
        chips: list[tuple[Chip, npt.NDArray[np.float64]]] = []
        numbers: list[list[int]] = []
        for part, only in parts:
            rows = [row for row in observations.read_chips(self._work, part) if only is None or row[0] in only]
            numbers.append([number for number, _, _ in rows])
            chips += [(chip, landmarks) for _, chip, landmarks in rows]
        scores: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for start in range(0, len(chips), _TOGETHER):
            faces = [Face(chip, chip.place(landmarks)) for chip, landmarks in chips[start : start + _TOGETHER]]
            for name in names:
                scores[name] += self._scorers[name](faces)
        done = 0
        for (part, only), mine in zip(parts, numbers, strict=True):
            for name in names:
                self._commit(name, (part, only), mine, scores[name][done : done + len(mine)])
            done += len(mine)

    def _load(self, name: str) -> None:
        if name not in self._scorers:
            self._scorers[name] = GROUPS[name].make(self._models, self._config)
            self._described[name] = _describe_models(name, self._models, self._config)

    def _commit(self, name: str, part: _Part, numbers: list[int], rows: list[dict[str, Any]]) -> None:
        columns = {column: pa.array([row[column] for row in rows], kind) for column, kind in GROUPS[name].columns.items()}
        table = pa.table({"row": pa.array(numbers, pa.int32()), **columns})
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_MODELS: self._described[name]}), buffer, compression="zstd")
        commit(column_uri(self._work, name, part[0], self._digests[name], part[1]), buffer.getvalue(), exclusive=True)


def column_uri(work: str, name: str, part: str, digest: str, rows: list[int] | None = None) -> str:
    """Where a group's columns for one observation part lie: under the fingerprints of both, and of the rows where they are not all."""
    some = "" if rows is None else f"-{sha256_json(rows)[:16]}"
    return join(work, "columns", name, f"{part}-{digest[:16]}{some}.parquet")


def delete_columns(work: str, parts: Collection[str]) -> None:
    """Deletes all groups' columns of these parts, in whatever way they were computed."""
    for folder in list_folders(join(work, "columns")):
        for uri in list_files(folder):
            if uri.rsplit("/", 1)[-1].split("-")[0] in parts:  # `column_uri`: the part's fingerprint comes first
                delete(uri)


def read_columns(work: str, name: str, part: str, digest: str, columns: Sequence[str] | None = None) -> dict[int, dict[str, Any]]:
    """Row number in the part -> the group's columns, all or some."""
    table = read_table(column_uri(work, name, part, digest), columns if columns is None else ["row", *columns])
    return {row.pop("row"): row for row in table.to_pylist()}


def read_models(work: str, name: str, part: str, digest: str) -> dict[str, dict[str, str]]:
    """File -> sha256 and licence of the models that a group's columns for one part were computed with."""
    uri = column_uri(work, name, part, digest)
    schema = read_schema(uri)
    with reading(uri, DERIVED):
        return json.loads(schema.metadata[_MODELS])


def computed_parts(work: str, name: str) -> dict[str, str]:
    """Part -> digest of those that have all of a group's columns; where it was computed in several ways, those of the one that covers most parts."""
    found: dict[str, dict[str, str]] = {}
    for uri in list_files(join(work, "columns", name), ".parquet"):
        part, digest, *some = uri.rsplit("/", 1)[-1].removesuffix(".parquet").split("-")
        if not some:
            found.setdefault(digest, {})[part] = digest
    return max((found[digest] for digest in sorted(found)), key=len, default={})
