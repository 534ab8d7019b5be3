"""Extending a version: its samples, splits, keys and shards stay, but for what is taken out of it; quotas count on; merges say which of its people are one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.candidates import SCHEMA, read_candidate_pieces
from data_pipeline.cells import COLUMNS, cells_of
from data_pipeline.published import read_index, read_manifest, sources_of
from data_pipeline.rules import Usage
from data_pipeline.tables import read_pieces
from data_pipeline.taken_out import (
    MERGED,
    RANK,
    TAKEN_OUT,
    TakenOut,
    emptied,
    merged_away,
    merged_people,
    read_merges,
    read_taken_out,
    sources_in,
    splits_of,
    write_merges,
)
from data_pipeline.versions import check_judged, whole_version
from infra.addresses import join
from infra.errors import UserError
from infra.state import PUBLISHED, read_json
from infra.storage import exists, sha256_json
from lato.pairs import Split

COMPONENTS = "components.json"
NEEDED = [
    *("key", "person", "source_id", "target_id", "edit", "rendered"),
    *("from_part", "from_row", "from_track", "to_part", "to_row", "to_track"),
    *COLUMNS,
]
"""What is read of the candidates of the version that is extended."""


@dataclass(frozen=True)
class Base:
    """A version that is extended."""

    work: str
    folder: str
    index: dict[str, Any]
    rows: list[dict[str, Any]]
    """Manifest rows that stay."""
    taken_out: dict[str, TakenOut] = field(default_factory=dict)
    """Key -> why it is refused, of samples that go: those that a merge takes out, that were called bad, or are held out now; and of all that went before, of the
    versions that this one extends."""
    usage: Usage = field(default_factory=Usage)
    """What the samples that stay use of the quotas."""
    rendered: dict[str, list[str]] = field(default_factory=dict)
    """Key -> names of its crops, of those."""
    components: dict[str, str] = field(default_factory=dict)
    """Source id -> its component, of all its sources; empty where something was forgotten since."""
    tracks: frozenset[str] = frozenset()
    """Tracks (`source/track`) that have samples."""
    judged: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Key -> its candidate (`NEEDED`), of all its samples."""

    @cached_property
    def keys(self) -> frozenset[str]:
        """Of the samples that stay."""
        return frozenset(row["key"] for row in self.rows)

    @property
    def faces(self) -> dict[str, frozenset[int]]:
        """Part -> rows of the faces of all its samples."""
        found: dict[str, set[int]] = defaultdict(set)
        for row in self.judged.values():
            for side in ("from", "to"):
                found[row[f"{side}_part"]].add(row[f"{side}_row"])
        return {part: frozenset(rows) for part, rows in found.items()}

    def as_joined_in(self, tables: Sequence[str]) -> Base:
        """It with its samples' tracks and people as this build's score tables have them: where a piece of a long video was looked at again, what was two tracks
        may be one, with one person's quotas."""
        keys, now = pa.array(sorted(self.keys), pa.string()), dict[str, dict[str, Any]]()
        for piece in (piece for uri in tables for piece in read_pieces(uri, ["key", "person", "from_track", "to_track"])):
            now |= {row["key"]: row for row in piece.filter(pc.is_in(piece["key"], keys)).to_pylist()}
        return replace(self, judged={key: row | now.get(key, {}) for key, row in self.judged.items()}).without({})

    @property
    def splits(self) -> dict[str, Split]:
        """Key -> split."""
        return {row["key"]: row["split"] for row in self.rows}

    @property
    def trained(self) -> frozenset[str]:
        """Keys of those in train."""
        return frozenset(row["key"] for row in self.rows if row["split"] == "train")

    @property
    def split_of_source(self) -> dict[str, Split]:
        """Source id -> split, of those that have samples, at either end."""
        return splits_of(self.rows)

    @property
    def sources(self) -> set[str]:
        """Those, and those whose samples were taken out."""
        return sources_in(self.rows, self.taken_out)

    def sides(self, listed: Collection[str], merges: Sequence[tuple[str, str]]) -> dict[str, Split]:
        """Splits of sources that have samples, and of listed ones whose samples were taken out: what else they give, unless they are given up, goes where these
        were."""
        gone, given_up = emptied(self.rows, self.taken_out), self.given_up(merges)
        return {name: split for name, split in gone.items() if name in listed and name not in given_up} | self.split_of_source

    def given_up(self, merges: Sequence[tuple[str, str]]) -> frozenset[str]:
        """Sources that give nothing more: it would go to the other side, and may look like what was published on theirs. A merge took all samples out of them; or
        something else did, and merges say that they show somebody of another side."""
        there, gone = self.split_of_source, emptied(self.rows, self.taken_out)
        given_up = {name for one in self.taken_out.values() if one.verdict == MERGED for name in one.sources} - there.keys()
        for person in merged_people(self.rows, merges, self.components, gone):
            known = {there[name] for name in person if name in there} or {max((gone[name] for name in person), key=RANK.index)}
            given_up |= {name for name in person if name in gone and gone[name] not in known}
        return frozenset(given_up)

    @property
    def digest(self) -> str:
        """Of what is extended, and of what is taken out of it."""
        return sha256_json([self.index["digest"], sorted(self.taken_out.items())])

    def without(self, gone: Mapping[str, str]) -> Base:
        """It without some of its samples (key -> why they are refused): their quotas are free again."""
        left = [row for row in self.rows if row["key"] not in gone]
        taken = {
            row["key"]: TakenOut(gone[row["key"]], row["split"], tuple(sorted(sources_of(row)))) for row in self.rows if row["key"] in gone
        }
        found = [self.judged[row["key"]] for row in left if row["key"] in self.judged]
        tracks = {f"{row[source]}/{row[f'{side}_track']}" for row in found for source, side in (("source_id", "from"), ("target_id", "to"))}
        rendered = {row["key"]: row["rendered"] for row in found}
        return replace(self, rows=left, taken_out=self.taken_out | taken, usage=_count(found), rendered=rendered, tracks=frozenset(tracks))

    def count_taken_out(self) -> Counter[str]:
        """Verdict -> samples of this very version that go."""
        before = self.index.get(TAKEN_OUT, {})
        return Counter(one.verdict for key, one in self.taken_out.items() if key not in before)


def _count(rows: list[dict[str, Any]]) -> Usage:
    """What candidates that are samples use of the quotas; a pair and its reverse count once."""
    cells = cells_of(pa.Table.from_pylist(rows, pa.schema([SCHEMA.field(name) for name in NEEDED]))).tolist()
    usage, twins = Usage(), set()
    for row, cell in zip(rows, cells, strict=True):
        usage.cell[row["person"], row["edit"]] += 1
        twin = frozenset([(row["from_part"], row["from_row"]), (row["to_part"], row["to_row"])])
        if twin not in twins:
            twins.add(twin)
            usage.person[row["person"]] += 1
            usage.source.update({row["source_id"], row["target_id"]})
            usage.dataset[cell] += 1
    return usage


def read_base(folder: str, work: str, labels: Mapping[str, bool] = MappingProxyType({})) -> Base:
    """Reads a version that is to be extended, without what merges and labels take out of it.

    Args:
        folder: The version's.
        work: The build's.
        labels: Key -> what a person said of the pair.

    Raises:
        UserError: It is no published version, a view, or an export.
    """
    index = read_index(folder)
    if "view_of" in index:
        raise UserError(f"{folder} is a view; extend the version it is of: {index['view_of']}")
    check_judged(folder)
    rows = read_manifest(folder)
    components = (read_components(folder) or {}).get("components", {})
    gone = {row["key"]: "labelled bad" for row in rows if labels.get(row["key"]) is False}
    before = read_taken_out(index)
    gone |= dict.fromkeys(merged_away(rows, read_merges(work), components, before), MERGED)
    samples = [piece.filter(pc.greater(pc.list_value_length(piece["rendered"]), 0)) for piece in read_candidate_pieces(folder, NEEDED)]
    table = pa.concat_tables([pa.schema([SCHEMA.field(name) for name in NEEDED]).empty_table(), *samples], promote_options="permissive")
    judged = {row["key"]: row for row in table.to_pylist()}
    return Base(work, folder, index, rows, before, components=components, judged=judged).without(gone)


def read_components(folder: str) -> dict[str, Any] | None:
    """What ties the sources of a version (`divide`); None for a view, and where something was forgotten since."""
    uri = join(folder, COMPONENTS)
    return read_json(uri, ("components", "links", "bridges"), PUBLISHED) if exists(uri) else None


def merge(work: str, version: str, first: str, second: str) -> dict[str, Any]:
    """Records that two sources show one person: builds put them on one side, and one that extends this version drops the samples in the lower of their splits.

    Returns:
        `splits` of both, `dropped`: how many samples will go, with those of earlier merges.

    Raises:
        UserError: They are one source, or one of them has no sample in the version.
    """
    if first == second:
        raise UserError(f"{first}: this is one source; give two that show one person")
    folder = whole_version(work, version)
    rows = read_manifest(folder)
    splits = splits_of(rows)
    unknown = [name for name in (first, second) if name not in splits]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no sample of version {version} is of that source")
    known = read_merges(work)
    if (first, second) not in known and (second, first) not in known:
        known.append((first, second))
        write_merges(work, known)
    gone = merged_away(rows, known, (read_components(folder) or {}).get("components", {}), read_taken_out(read_index(folder)))
    return {"splits": (splits[first], splits[second]), "dropped": len(gone)}
