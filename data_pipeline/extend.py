"""Extending a version: its samples, splits, keys and shards stay; quotas count on; merges say which of its people are one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from data_pipeline.candidates import read_candidates_table
from data_pipeline.pack import read_index, read_manifest, sources_of
from data_pipeline.rules import Usage
from infra.errors import UserError
from infra.storage import commit, exists, join, read_bytes, sha256_json
from lato.pairs import Split

MERGES = "merges.jsonl"
_RANK: tuple[Split, ...] = ("train", "val", "test")
"""When two people turn out to be one, the samples in the lower of the two splits go: an evaluation set stays what it was."""


@dataclass(frozen=True)
class Base:
    """A version that is extended."""

    work: str
    folder: str
    index: dict[str, Any]
    rows: list[dict[str, Any]]
    """Manifest rows that stay."""
    merged_away: frozenset[str]
    """Keys of samples that a merge takes out."""
    usage: Usage
    rendered: dict[str, list[str]]

    @property
    def keys(self) -> frozenset[str]:
        """Of the samples that stay."""
        return frozenset(row["key"] for row in self.rows)

    @property
    def splits(self) -> dict[str, Split]:
        """Key -> split."""
        return {row["key"]: row["split"] for row in self.rows}

    @property
    def split_of_source(self) -> dict[str, Split]:
        """Source id -> split, of those that have samples."""
        return {row["source_id"]: row["split"] for row in self.rows}

    @property
    def digest(self) -> str:
        """Of what is extended, merges too."""
        return sha256_json([self.index["digest"], sorted(self.merged_away)])


def read_base(folder: str, work: str) -> Base:
    """Reads a version that is to be extended.

    Raises:
        UserError: It is no published version, or a view.
    """
    index = read_index(folder)
    if "view_of" in index:
        raise UserError(f"{folder} is a view; extend the version it is of: {index['view_of']}")
    rows = read_manifest(folder)
    gone = _merged_away(rows, read_merges(work))
    kept = [row for row in rows if row["key"] not in gone]
    table = read_candidates_table(folder, ["key", "person", "source_id", "edit", "from_part", "from_row", "to_part", "to_row", "rendered"])
    judged = {row["key"]: row for row in table.to_pylist() if row["rendered"]}
    usage = Usage()
    twins = set()
    for row in (judged[row["key"]] for row in kept if row["key"] in judged):
        usage.cell[row["person"], row["edit"]] += 1
        twin = frozenset([(row["from_part"], row["from_row"]), (row["to_part"], row["to_row"])])
        if twin not in twins:
            twins.add(twin)
            usage.person[row["person"]] += 1
            usage.source[row["source_id"]] += 1
    return Base(
        work,
        folder,
        index,
        kept,
        frozenset(gone),
        usage,
        {row["key"]: judged[row["key"]]["rendered"] for row in kept if row["key"] in judged},
    )


def read_merges(work: str) -> list[tuple[str, str]]:
    """Pairs of sources that a person said show one person."""
    uri = join(work, MERGES)
    rows = [json.loads(line) for line in read_bytes(uri).splitlines()] if exists(uri) else []
    return [(row["first"], row["second"]) for row in rows]


def merge(work: str, version: str, first: str, second: str) -> dict[str, Any]:
    """Records that two sources show one person. The next version that extends this one drops the samples in the lower of their splits.

    Returns:
        `splits` of both, `dropped`: how many samples will go, and from which split.

    Raises:
        UserError: One of them has no sample in the version.
    """
    rows = read_manifest(join(work, "versions", version))
    splits = {row["source_id"]: row["split"] for row in rows}
    unknown = [name for name in (first, second) if name not in splits]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no sample of version {version} is of that source")
    known = read_merges(work)
    if (first, second) not in known and (second, first) not in known:
        known.append((first, second))
        lines = [json.dumps({"first": a, "second": b}, sort_keys=True) for a, b in known]
        commit(join(work, MERGES), "".join(f"{line}\n" for line in lines).encode())
    gone = _merged_away(rows, [(first, second)])
    return {"splits": (splits[first], splits[second]), "dropped": len(gone)}


def _merged_away(rows: list[dict[str, Any]], merges: list[tuple[str, str]]) -> set[str]:
    """Keys in the lower split of two sources that are one person: of all sources of that person as far as the version names it."""
    splits: dict[str, Split] = {row["source_id"]: row["split"] for row in rows}
    people = {row["source_id"]: row["identity"] for row in rows if row["identity"] and "/" not in row["identity"]}
    gone: set[str] = set()
    for first, second in merges:
        if first not in splits or second not in splits or splits[first] == splits[second]:
            continue
        lower = min((first, second), key=lambda name: _RANK.index(splits[name]))
        mine = {lower} | {name for name, person in people.items() if lower in people and person == people[lower]}
        gone.update(row["key"] for row in rows if sources_of(row) & mine)
    return gone
