"""Views and exports: parts of a published version. A view only names samples; an export copies them into shards of their own."""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.pack import (
    MANIFEST,
    beside,
    encode_table,
    home_of,
    licence_text,
    licences_of,
    read_index,
    read_manifest,
    read_members,
    write_shard,
)
from data_pipeline.verify import verify_version
from infra.errors import UserError
from infra.storage import commit, exists, join, sha256_bytes, sha256_json

COMMERCIAL = frozenset({"CC0-1.0", "CC-BY-4.0", "CC-BY-3.0", "CC-BY-2.0", "MIT", "Apache-2.0", "BSD-3-Clause", "PDDL-1.0", "public domain"})
"""Licences that allow commercial use as they stand. All others, `unknown` too, do not."""

_CONDITION = re.compile(r"\s*(\w+)\s*(==|=|!=|<=|>=|<|>|in)\s*(.+?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "in": lambda value, given: value in given,
}  # fmt: skip


def make_view(version: str, name: str, where: str, weight: float = 1.0) -> tuple[str, dict[str, int]]:
    """Publishes a named part of a version beside it: its own manifest and digest, the version's shards.

    Args:
        version: Folder of the version.
        name: Name of the view.
        where: Conditions on manifest columns joined by `and`, for example `kind = video and identity_similarity >= 0.6 and expression in happy,sad`.
            `licence` is asked of both ends of a pair.
        weight: How often training draws these samples, against 1 for others it is mixed with.

    Returns:
        The view's folder, and samples by split.

    Raises:
        UserError: A condition cannot be read, names no column, or nothing is left.
    """
    index, manifest = read_index(version), read_manifest(version)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"name: expected letters, digits, _ and -, given {name!r}")
    if "view_of" in index:
        raise UserError(f"{version}: this is a view itself; make one of {index['view_of']} with both conditions")
    rows = select(manifest, where)
    folder, parent = beside(version, name), version.rsplit("/", 1)[-1]
    known: dict[str, Any] = read_index(folder) if exists(join(folder, "index.json")) else {"view_of": parent}
    if known.get("view_of", "").rsplit("/", 1)[-1] != parent:
        raise UserError(f"{folder}: a version of that name is there already")
    made = {"name": name, "view_of": parent, "parent": index["digest"], "where": where, "weight": weight}
    _publish_view(folder, made, rows, known.get("tombstones", []))
    return folder, dict(Counter(row["split"] for row in rows))


def remake_view(folder: str) -> None:
    """Makes a view again after samples were taken out of its version: its digest joins its tombstones. Where none is left it is published empty."""
    index = read_index(folder)
    version = beside(folder, index["view_of"])
    there = exists(join(version, "index.json"))
    manifest = read_manifest(version) if there else []
    rows = matching(manifest, index["where"]) if manifest else []
    parent = read_index(version)["digest"] if there else index["parent"]
    made = {name: index[name] for name in ("name", "view_of", "where", "weight")} | {"parent": parent}
    tombstones = [*index.get("tombstones", []), index["digest"]]
    _publish_view(folder, made, rows, tombstones)


def _publish_view(folder: str, made: dict[str, Any], rows: list[dict[str, Any]], tombstones: list[str]) -> None:
    data = encode_table(rows)
    commit(join(folder, MANIFEST), data)
    made = made | {"samples": len(rows), "manifest": MANIFEST, "manifest_sha256": sha256_bytes(data), "shards": []}
    made["digest"] = sha256_json({"parent": made["parent"], "manifest": made["manifest_sha256"], "weight": made["weight"]})
    made |= {"tombstones": tombstones} if tombstones else {}
    commit(join(folder, "index.json"), json.dumps(made, indent=1, sort_keys=True).encode())


def export(version: str, folder: str, licences: Sequence[str] = ()) -> tuple[dict[str, int], dict[str, int]]:
    """Copies a version's samples, by licence, into a folder that stands alone.

    Args:
        version: Folder of the version.
        folder: Where to.
        licences: Only these, of both ends of a pair; `commercial` stands for `COMMERCIAL`. None given: all.

    Returns:
        Samples exported and left out, each by licence.

    Raises:
        UserError: Something is published there already, the version is damaged, or nothing is left.
    """
    if exists(join(folder, "index.json")):
        raise UserError(f"{folder}: a version is published there already")
    damage = verify_version(version)
    if damage:  # its copy would have hashes of its own, and look well
        raise UserError(f"{version} is damaged, and is not exported: {'; '.join(damage[:3])}. Build it again.")
    index, manifest, home = read_index(version), read_manifest(version), home_of(version)
    allowed = {name for given in licences for name in (COMMERCIAL if given == "commercial" else (given,))}
    kept = [row for row in manifest if not licences or licences_of(row) <= allowed]
    if not kept:
        known = ", ".join(sorted(set(map(licence_text, manifest))))
        raise UserError(f"{version}: no sample has a licence of {', '.join(licences)}. Licences: {known}")
    shards, rows = [], []
    for shard in read_index(home)["shards"]:
        mine = [row for row in kept if row["shard"] == shard["name"]]
        if not mine:
            continue
        data, new = write_shard([(row, read_members(home, row)) for row in mine], shard["name"])
        commit(join(folder, "shards", shard["name"]), data)
        shards.append({**shard, "count": len(mine), "bytes": len(data), "sha256": sha256_bytes(data)})
        rows += new
    data = encode_table(rows)
    commit(join(folder, MANIFEST), data)
    made = {"name": index["name"], "parent": index["digest"], "samples": len(rows), "shards": shards, "manifest": MANIFEST}
    made |= {"manifest_sha256": sha256_bytes(data), "licences": sorted(licences)}
    made["digest"] = sha256_json({"shards": shards, "manifest": made["manifest_sha256"]})
    commit(join(folder, "index.json"), json.dumps(made, indent=1, sort_keys=True).encode())
    exported = Counter(map(licence_text, kept))
    return dict(exported), dict(Counter(map(licence_text, manifest)) - exported)


def select(rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """As `matching`.

    Raises:
        UserError: A condition cannot be read, or no row is left.
    """
    kept = matching(rows, where)
    if not kept:
        raise UserError(f"where: no sample is left of {len(rows)}")
    return kept


def matching(rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The rows for which every condition of `where` holds; see `make_view`."""
    columns = rows[0].keys() if rows else ()
    kept = rows
    for text in re.split(r"\s+and\s+", where.strip()):
        match = _CONDITION.fullmatch(text)
        if match is None or match.group(1) not in columns:
            raise UserError(f"where: cannot read {text!r}. Write column operator value; columns are {', '.join(columns)}")
        column, sign, value = match.groups()
        wanted = [_typed(part, rows, column) for part in value.split(",")] if sign == "in" else _typed(value, rows, column)
        compare = _OPERATORS[sign]
        kept = [row for row in kept if all(value is not None and compare(value, wanted) for value in _values(row, column))]
    return kept


def _values(row: dict[str, Any], column: str) -> set[Any]:
    return licences_of(row) if column == "licence" else {row[column]}


def _typed(text: str, rows: list[dict[str, Any]], column: str) -> Any:
    text = text.strip().strip("'\"")
    sample = next((row[column] for row in rows if row[column] is not None), "")
    if isinstance(sample, str):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"where: {column} is a number, given {text!r}") from error
