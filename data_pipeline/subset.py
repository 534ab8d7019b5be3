"""Views and exports: parts of a published version. A view only names samples; an export copies them into shards of their own."""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from data_pipeline.card import card_hashes, write_card
from data_pipeline.licences import normal, why_not_commercial
from data_pipeline.pack import write_shard
from data_pipeline.published import (
    MANIFEST,
    beside,
    consents_of,
    digest_of,
    encode_table,
    home_of,
    is_published,
    licence_text,
    licences_of,
    read_index,
    read_manifest,
    read_manifest_table,
    read_members,
    write_index,
)
from data_pipeline.succession import entomb, succeed
from data_pipeline.verify import verify_samples
from data_pipeline.versions import check_unchanged
from infra.addresses import join
from infra.console import say
from infra.errors import UserError
from infra.storage import commit, exists, list_files, sha256_bytes

_CONDITION = re.compile(r"\s*(\w+)\s*(==|=|!=|<=|>=|<|>|(?<=\s)in(?=\s))\s*(.+?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "in": lambda value, given: value in given,
}  # fmt: skip

_SYNTAX = (
    'Write column operator value, joined by and: "kind = video and yaw >= 30 and expression in happy,sad". Operators: = != < <= > >= in; '
    "in takes one of several; there is no or, and there are no brackets. A column without a value is unequal to any, and nothing else."
)
_MANY = 12


def make_view(version: str, name: str, where: str, weight: float = 1.0) -> tuple[str, dict[str, int]]:
    """Publishes a named part of a version beside it: its own manifest and digest, the version's shards.

    Args:
        version: Folder of the version.
        name: Name of the view.
        where: Conditions on manifest columns joined by `and`, for example `kind = video and identity_similarity >= 0.6 and expression in happy,sad`.
            `licence` and `consent` are asked of both ends of a pair. No value is unequal to any: `expression != sad` keeps pairs of which only the pose changes.
        weight: How often training draws these samples, against 1 for others it is mixed with.

    Returns:
        The view's folder, and samples by split.

    Raises:
        UserError: A condition cannot be read, names no column, or nothing is left; or the weight is none.
    """
    if not 0 < weight < math.inf:
        raise UserError(f"weight: expected a number above 0, given {weight:g}")
    index, manifest = read_index(version), read_manifest(version)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"name: expected letters, digits, _ and -, given {name!r}")
    if "view_of" in index:
        raise UserError(f"{version}: this is a view itself; make one of {index['view_of']} with both conditions")
    if not manifest:
        raise UserError(f"{version} has no samples: all were taken out of it")
    rows = select(manifest, where)
    folder, parent = beside(version, name), version.rsplit("/", 1)[-1]
    known: dict[str, Any] = read_index(folder) if is_published(folder) else {"view_of": parent}
    if known.get("view_of", "").rsplit("/", 1)[-1] != parent:
        raise UserError(f"{folder}: a version of that name is there already")
    made = {"name": name, "view_of": parent, "parent": index["digest"], "where": where, "weight": weight}
    _publish_view(folder, made, rows, known, read_manifest_table(version).schema)
    return folder, dict(Counter(row["split"] for row in rows))


def remake_view(folder: str) -> None:
    """Makes a view again after samples were taken out of its version: its digest joins its tombstones. Where none is left it is published empty."""
    index = read_index(folder)
    version = beside(folder, index["view_of"])
    there = is_published(version)
    manifest = read_manifest(version) if there else []
    rows = matching(manifest, index["where"]) if manifest else []
    parent = read_index(version)["digest"] if there else index["parent"]
    made = {name: index[name] for name in ("name", "view_of", "where", "weight")} | {"parent": parent}
    _publish_view(folder, made, rows, entomb(succeed(index, None)), read_manifest_table(folder).schema)


def _publish_view(folder: str, made: dict[str, Any], rows: list[dict[str, Any]], earlier: dict[str, Any], schema: pa.Schema) -> None:
    data = encode_table(rows, schema)
    commit(join(folder, MANIFEST), data)
    made = made | {"samples": len(rows), "manifest": MANIFEST, "manifest_sha256": sha256_bytes(data), "shards": []}
    made["digest"] = digest_of(made)
    made |= succeed(earlier, made["digest"])
    write_index(folder, made)


def export(version: str, folder: str, licences: Sequence[str] = ()) -> tuple[dict[str, int], dict[str, int]]:
    """Copies a version's samples, by licence, into a folder that stands alone.

    Args:
        version: Folder of the version.
        folder: Where to.
        licences: Only these, of both ends of a pair, whatever their case and spaces; `commercial` stands for all that allow that (`licences`). None given: all.

    Returns:
        Samples exported by licence, and samples left out by licence and why.

    Raises:
        UserError: Something is published there already or would be mixed with it, the version is damaged or changed meanwhile, or nothing is left.
    """
    beside_it = folder.rsplit("/", 1)[0]
    if beside_it.endswith("/versions") and exists(join(beside_it.rsplit("/", 1)[0], "worklist.parquet")):
        raise UserError(f"{folder}: that is among the versions of a build, and an export is none of them. Give a folder elsewhere")
    if is_published(folder):
        raise UserError(f"{folder}: a version is published there already. Give another folder")
    damage = verify_samples(version)
    if damage:  # its copy would have hashes of its own, and look well
        raise UserError(f"{version} is damaged, and is not exported: {'; '.join(damage[:3])}. Build it again.")
    index, manifest, home = read_index(version), read_manifest(version), home_of(version)
    known = sorted(set[str]().union(*map(licences_of, manifest)))
    here = {"commercial", *map(normal, known)}
    unknown = sorted({given for given in licences if normal(given) not in here})
    if unknown:
        say(f"  warning: licence: no sample is under {', '.join(unknown)}; there are {', '.join(known)}")
    refused = {name: why for name in known if (why := _why_left_out(name, licences))}
    kept = [row for row in manifest if not licences_of(row) & refused.keys()]
    if not manifest:
        raise UserError(f"{version} has no samples: all were taken out of it")
    if not kept:
        pairs = "; ".join(sorted({_left_out(row, refused) for row in manifest}))
        raise UserError(f"{version}: no sample has a licence of {', '.join(licences)}. Licences: {pairs}")
    names = {row["shard"] for row in kept}
    others = [uri for uri in list_files(join(folder, "shards"), ".tar") if uri.rsplit("/", 1)[-1] not in names]
    if others:  # of an export of more that was stopped: readers of shards/*.tar would take them in
        raise UserError(f"{others[0]} lies there, and is not of this export. Delete what is in {folder}, or give another folder")
    whole = read_index(home)
    shards, rows = [], []
    for shard in whole["shards"]:
        mine = [row for row in kept if row["shard"] == shard["name"]]
        if not mine:
            continue
        with _meanwhile(home, whole):
            data, new = write_shard([(row, read_members(home, row)) for row in mine], shard["name"])
        commit(join(folder, "shards", shard["name"]), data)
        shards.append({**shard, "count": len(mine), "bytes": len(data), "sha256": sha256_bytes(data)})
        rows += new
    data = encode_table(rows)
    commit(join(folder, MANIFEST), data)
    made = {"name": index["name"], "parent": index["digest"], "samples": len(rows), "shards": shards, "manifest": MANIFEST}
    made |= {"manifest_sha256": sha256_bytes(data), "licences": sorted(licences)}
    made |= {name: value for name, value in whole.items() if name == "models"}
    made["digest"] = digest_of(made)
    made["files"] = card_hashes(made, data, None)
    check_unchanged(version, index)
    check_unchanged(home, whole)
    write_index(folder, made)
    write_card(folder)
    left = Counter(_left_out(row, refused) for row in manifest if licences_of(row) & refused.keys())
    return dict(Counter(map(licence_text, kept))), dict(left)


@contextmanager
def _meanwhile(folder: str, index: dict[str, Any]) -> Iterator[None]:
    """A shard that is gone is told as what took it away: the version is read without holding its build, which may be read-only here."""
    try:
        yield
    except UserError:
        check_unchanged(folder, index)
        raise


def _why_left_out(licence: str, asked: Sequence[str]) -> str | None:
    """Why samples under a licence are not exported; None where they are."""
    if not asked or normal(licence) in map(normal, asked):
        return None
    return why_not_commercial(licence) if "commercial" in asked else "was not asked for"


def _left_out(row: dict[str, Any], refused: dict[str, str]) -> str:
    """A row's licences, and why it is left out by them."""
    mine = licences_of(row)
    why = [refused[name] if len(mine) == 1 else f"{name} {refused[name]}" for name in sorted(mine & refused.keys())]
    return f"{licence_text(row)} ({', '.join(why)})"


def restricted_models(folder: str) -> list[str]:
    """Names and licences of the models that had a part in a version and whose licence is not known to allow commercial use. They are no licence of its samples, and
    export does not filter by them; whoever uses it commercially should know. What a licence has in brackets only explains it."""
    models = read_index(folder).get("models", [{"name": "not listed (an earlier LaTo published this version)", "licence": "unknown"}])
    return [f"{model['name']}: {model['licence']}" for model in models if why_not_commercial(model["licence"].split(" (")[0])]


def select(rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """As `matching`; tells which values no row has.

    Raises:
        UserError: A condition cannot be read, or no row is left.
    """
    kept = matching(rows, where)
    columns = dict.fromkeys(column for column, _, _ in _conditions(where))
    lacking = []
    for column, sign, value in _conditions(where):
        known = _known(rows, column)
        if sign in ("=", "==", "!=", "in") and all(isinstance(name, str) for name in known):
            lacking += [(column, name) for name in _names(sign, value) if name not in known]
    for column, name in lacking:
        if re.search(r"\bor\b|[()\[\]]", name, re.IGNORECASE):
            raise UserError(f"where: no {column} is {name!r}. {_SYNTAX}")
    there = "; ".join(f"{column}: {_shown(_known(rows, column))}" for column in columns)
    if not kept:
        raise UserError(f"where: no sample is left of {len(rows)}. There are {there}")
    for column, name in lacking:
        say(f"  warning: where: no sample has {column} {name!r}; there are {_shown(_known(rows, column))}")
    return kept


def matching(rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The rows for which every condition of `where` holds; see `make_view`."""
    columns = rows[0].keys() if rows else ()
    kept = rows
    for column, sign, value in _conditions(where):
        if column not in columns:
            shown = ", ".join(name for name in columns if not name.endswith(("_offset", "_length")))
            raise UserError(f"where: cannot read {column!r}: there is no such column. Columns: {shown}. {_SYNTAX}")
        if sign in ("<", "<=", ">", ">=") and any(isinstance(known, str) for row in rows for known in _values(row, column)):
            raise UserError(f"where: {column} is text, which is not {sign} than another. {_SYNTAX}")
        names = _names(sign, value)
        wanted = [_typed(name, rows, column) for name in names] if sign == "in" else _typed(names[0], rows, column)
        compare = _OPERATORS[sign]
        untold = sign == "!=" and column != "consent"  # of a consent that an older manifest does not tell nothing is known
        kept = [row for row in kept if all(untold if value is None else compare(value, wanted) for value in _values(row, column))]
    return kept


def _conditions(where: str) -> list[tuple[str, str, str]]:
    """Column, operator and value of each."""
    found = []
    for text in re.split(r"\s+and\s+", where.strip(), flags=re.IGNORECASE):
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise UserError(f"where: cannot read {text!r}. {_SYNTAX}")
        found.append((match[1], match[2], match[3]))
    return found


def _names(sign: str, value: str) -> list[str]:
    return [name.strip().strip("'\"") for name in (value.split(",") if sign == "in" else (value,))]


def _values(row: dict[str, Any], column: str) -> set[Any]:
    if column == "licence":
        return licences_of(row)
    return consents_of(row) if column == "consent" else {row[column]}


def _known(rows: list[dict[str, Any]], column: str) -> list[Any]:
    return sorted({value for row in rows for value in _values(row, column) if value is not None})


def _shown(known: list[Any]) -> str:
    if known and not isinstance(known[0], str):
        return f"{known[0]:g} to {known[-1]:g}"
    return ", ".join(known[:_MANY]) + (f", ... ({len(known)})" if len(known) > _MANY else "") or "none"


def _typed(text: str, rows: list[dict[str, Any]], column: str) -> Any:
    sample = next((row[column] for row in rows if row[column] is not None), "")
    if isinstance(sample, str):
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"where: {column} is a number, given {text!r}. {_SYNTAX}")
    return number
