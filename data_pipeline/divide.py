"""Which split each accepted pair goes to: new builds by components, extended ones without moving anything that was published."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.extend import COMPONENTS, Base, read_merges
from data_pipeline.split import Components, SplitConfig, assign, find_components
from data_pipeline.worklist import WorkItem
from infra.errors import UserError
from infra.storage import commit_changed, delete, exists, join
from lato.pairs import Split

CONFLICTS = "conflicts.json"


@dataclass(frozen=True)
class Division:
    """Splits of sources, and sources that may not go on."""

    split_of: dict[str, Split]
    """Source id -> split."""
    components: Components
    conflicts: dict[str, list[str]] = field(default_factory=dict)
    """New source -> sources of different splits that it would tie."""

    def verdict(self, row: dict[str, Any]) -> str | None:
        """Why an accepted pair may not go on; None if it may."""
        if row["source_id"] in self.conflicts or row["target_id"] in self.conflicts:
            return "split conflict"
        if self.split_of[row["source_id"]] != self.split_of[row["target_id"]]:  # both were published, as two people
            return "split conflict"
        tracks = {f"{row['source_id']}/{row['from_track']}", f"{row['target_id']}/{row['to_track']}"}
        return "bridge" if tracks & self.components.bridges else None

    def write(self, folder: str, work: str) -> None:
        """Writes what ties sources, and the conflicts with their contact sheet, beside the version."""
        sizes = Counter(self.components.of_source.values())
        found: dict[str, Any] = {
            "components": self.components.of_source,
            "sizes": sizes.most_common(20),
            "bridges": sorted(self.components.bridges),
        }
        found |= {"links": [link._asdict() for link in self.components.links]}
        commit_changed(join(folder, COMPONENTS), json.dumps(found, indent=1, sort_keys=True).encode())
        if self.conflicts:
            from data_pipeline.sheet import draw_conflicts

            commit_changed(join(folder, CONFLICTS), json.dumps(self.conflicts, indent=1, sort_keys=True).encode())
            commit_changed(join(folder, "conflicts.jpg"), draw_conflicts(self.conflicts, work))
        else:
            for uri in (join(folder, CONFLICTS), join(folder, "conflicts.jpg")):
                if exists(uri):
                    delete(uri)


def divide(
    accepted: list[dict[str, Any]],
    items: dict[str, WorkItem],
    centroids: dict[str, npt.NDArray[np.float32]],
    base: Base | None,
    config: SplitConfig,
) -> Division:
    """Splits for the sources of accepted pairs.

    Args:
        accepted: New pairs.
        items: All sources.
        centroids: Track -> mean face.
        base: The version that is extended.
        config: Shares, seed, thresholds.

    Raises:
        UserError: Sources of the extended version are not listed, pins contradict each other, or one component is too large.
    """
    if base:
        base.check_listed(items)
    ties = _find_ties(items, base)
    known = base.split_of_source if base else {}
    samples = Counter(row["source_id"] for row in accepted)
    held = Counter(row["source_id"] for row in base.rows) if base else Counter[str]()
    conflicts: dict[str, list[str]] = {}
    while True:  # without a source in conflict others are nearest to each other
        free = [name for name in dict.fromkeys([*items, *known]) if name not in conflicts]
        kept = {track: face for track, face in centroids.items() if track.rsplit("/", 1)[0] not in conflicts}
        counts = Counter({name: samples[name] + held[name] for name in free})
        components = find_components(free, {name: ties[name] for name in ties if name not in conflicts}, kept, config, counts)
        found = _find_conflicts(components, ties, known)
        if not found:
            break
        conflicts |= found
    of = components.of_source
    pins: dict[str, Split] = {}
    for name, side in known.items():
        pins.setdefault(of[name], side)
    for name in of:
        pin = items[name].split if name in items else None
        if pin and pins.setdefault(of[name], pin) != pin and name not in known:
            raise UserError(f"source {name} is pinned to {pin}, but it is tied to a source that is in {pins[of[name]]} ({of[name]})")
    counted = Counter[str]()
    for name, count in samples.items():
        if name not in conflicts:
            counted[of[name]] += count
    largest = counted.most_common(1)[0][0] if counted else ""
    division = assign(counted, pins, config, [link for link in components.links if of[link.first.rsplit("/", 1)[0]] == largest])
    return Division({name: division[component] for name, component in of.items() if component in division} | known, components, conflicts)


def _find_ties(items: dict[str, WorkItem], base: Base | None) -> dict[str, list[str]]:
    """Source id -> what it shares with others: declared identity or group, a merge, a component of the version that is extended.

    Who was one person then stays so, in particular those who lost their samples to a merge; what was published on two sides although alike ties nobody.
    """
    ties: dict[str, list[str]] = defaultdict(list)
    for item in items.values():
        for kind, name in (("identity", item.identity), ("group", item.group)):
            if name:
                ties[item.source_id].append(f"{kind}:{name}")
    if base:
        for number, (first, second) in enumerate(read_merges(base.work)):
            for name in (first, second):
                ties[name].append(f"merge:{number}")
        known = base.split_of_source
        sides: dict[str, set[Split]] = defaultdict(set)
        for name, component in base.components.items():
            sides[component] |= {known[name]} if name in known else set()
        for name, component in base.components.items():
            if len(sides[component]) < 2:
                ties[name].append(f"component:{component}")
    return ties


def _find_conflicts(components: Components, ties: dict[str, list[str]], known: dict[str, Split]) -> dict[str, list[str]]:
    """New sources that tie published ones of different splits, over others too; taken in order, each is added unless it would.

    Returns:
        New source -> published sources that it would tie, at least one of each split.
    """
    parent: dict[str, str] = {}
    sides: dict[str, dict[Split, str]] = {name: {split: name} for name, split in known.items()}
    """Root -> its splits, each with a published source. Two where published sources turn out to be alike: they stay, and nobody joins them."""

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join_names(names: list[str]) -> None:
        first, *others = sorted({root(name) for name in names})
        for other in others:
            parent[other] = first
            sides[first] = sides.pop(other, {}) | sides.get(first, {})

    neighbours: dict[str, set[str]] = defaultdict(set)
    for _, a, b in components.links:
        first, second = a.rsplit("/", 1)[0], b.rsplit("/", 1)[0]
        neighbours[first].add(second)
        neighbours[second].add(first)
    present = set(known)
    for name in sorted(known):
        join_names([name, *neighbours[name] & present, *ties.get(name, [])])
    conflicts: dict[str, list[str]] = {}
    for name in sorted(set(components.of_source) - present):
        touched = [*sorted(neighbours[name] & present), *ties.get(name, [])]
        reached: dict[Split, str] = {}
        for other in touched:
            reached = sides.get(root(other), {}) | reached
        if len(reached) > 1:
            conflicts[name] = sorted({*reached.values(), *(other for other in touched if other in known)})
            continue
        join_names([name, *touched])
        present.add(name)
    return conflicts
