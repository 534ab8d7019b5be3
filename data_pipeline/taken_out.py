"""What an extension takes out of a version: remembered in its index, so that it comes back under no name; and which sources merges make one person."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import networkx

from data_pipeline.published import sources_of
from infra.addresses import join
from infra.state import INPUT, read_rows
from infra.storage import commit
from lato.pairs import Split

MERGES = "merges.jsonl"
TAKEN_OUT = "taken_out"
"""In an index: what an extension left out of the version that it extends, and what that one had left out, key -> `TakenOut`; later extensions refuse it."""
MERGED = "split conflict"
"""Verdict on a sample that a merge takes out."""
RANK: tuple[Split, ...] = ("train", "val", "test")
"""When two people turn out to be one, the samples in the lower of the two splits go: an evaluation set stays what it was."""


class TakenOut(NamedTuple):
    """A sample that is none any more."""

    verdict: str
    split: Split
    sources: tuple[str, ...]


def read_taken_out(index: dict[str, Any]) -> dict[str, TakenOut]:
    """What an index remembers of samples that its version, or those that this extends, left out."""
    return {key: TakenOut(verdict, split, tuple(sources)) for key, (verdict, split, sources) in index.get(TAKEN_OUT, {}).items()}


def sources_in(rows: Iterable[dict[str, Any]], taken_out: Mapping[str, TakenOut]) -> set[str]:
    """Both ends of manifest rows and of samples that were taken out."""
    return {name for row in rows for name in sources_of(row)} | {name for one in taken_out.values() for name in one.sources}


def splits_of(rows: Iterable[dict[str, Any]]) -> dict[str, Split]:
    """Source id -> split, of both ends of manifest rows."""
    return {name: row["split"] for row in rows for name in sources_of(row)}


def emptied(rows: Iterable[dict[str, Any]], taken_out: Mapping[str, TakenOut]) -> dict[str, Split]:
    """Where the samples were of sources that have none any more and lost them to no merge."""
    merged = {name for one in taken_out.values() if one.verdict == MERGED for name in one.sources}
    stay = merged | splits_of(rows).keys()
    return {name: one.split for one in taken_out.values() for name in one.sources if name not in stay}


def write_merges(work: str, merges: Sequence[tuple[str, str]]) -> None:
    """Keeps what was said."""
    lines = [json.dumps({"first": a, "second": b}, sort_keys=True) for a, b in merges]
    commit(join(work, MERGES), "".join(f"{line}\n" for line in lines).encode())


def read_merges(work: str) -> list[tuple[str, str]]:
    """Pairs of sources that a person said show one person."""
    return [(row["first"], row["second"]) for row in read_rows(join(work, MERGES), ("first", "second"), INPUT)]


def merges_without(merges: Sequence[tuple[str, str]], gone: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Merges of the sources that stay. Who was one person through one that goes stays one: pairs of theirs take its place."""
    kept = [pair for pair in merges if not any(map(gone, pair))]
    graph = networkx.Graph(kept)
    for person in networkx.connected_components(networkx.Graph(list(merges))):
        stays = [name for name in person if not gone(name)]
        graph.add_nodes_from(stays)
        first, *others = sorted(map(min, networkx.connected_components(graph.subgraph(stays)))) or [""]
        kept += [(first, other) for other in others]
    return kept


def merged_away(
    rows: list[dict[str, Any]],
    merges: Sequence[tuple[str, str]],
    components: Mapping[str, str],
    taken_out: Mapping[str, TakenOut] = MappingProxyType({}),
) -> set[str]:
    """Keys that merges take out: of all that is one person now, what is not in the highest of its splits.

    Args:
        rows: Manifest rows.
        merges: Pairs of sources.
        components: Source id -> component. What a version ties on one side goes together, with a declared person's sources.
        taken_out: What was taken out before: a source without samples may be what ties others.
    """
    splits, lower = splits_of(rows), set[str]()
    for person in merged_people(rows, merges, components, emptied(rows, taken_out)):
        mine = {name for name in person if name in splits}
        top = max((RANK.index(splits[name]) for name in mine), default=0)
        lower |= {name for name in mine if RANK.index(splits[name]) < top}
    return {row["key"] for row in rows if sources_of(row) & lower}


def merged_people(
    rows: list[dict[str, Any]], merges: Sequence[tuple[str, str]], components: Mapping[str, str], emptied: Mapping[str, Split]
) -> Iterator[set[str]]:
    """Sources that merges make one person, with all that was one person with them: of those that have samples, and of `emptied`, which have none any more."""
    if not merges:
        return
    splits = {**emptied, **splits_of(rows)}
    graph = networkx.Graph(list(merges))
    for name, split in splits.items():
        if name in components:
            graph.add_edge(name, (components[name], split))
    for row in rows:
        if row["identity"] and not row["identity"].startswith(f"{row['source_id']}/"):  # declared; of others it is source and track
            graph.add_edge(row["source_id"], ("identity", row["identity"]))
    for found in networkx.connected_components(graph):
        mine = {name for name in found if name in splits}
        if mine and any(first in found for first, _ in merges):
            yield mine
