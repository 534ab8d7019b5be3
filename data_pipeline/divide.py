"""Which split each accepted pair goes to: new builds by components, extended ones without moving anything that was published."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.conflicts import Conflicts, find_conflicts
from data_pipeline.copies import Copy
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
    tracks: dict[str, list[str]] = field(default_factory=dict)
    """New track (`source/track`) that links people of different splits -> their sources. The others of its source go on."""

    def verdict(self, row: dict[str, Any]) -> str | None:
        """Why an accepted pair may not go on; None if it may."""
        if row["source_id"] in self.conflicts or row["target_id"] in self.conflicts:
            return "split conflict"
        if self.split_of[row["source_id"]] != self.split_of[row["target_id"]]:  # both were published, as two people
            return "split conflict"
        tracks = {f"{row['source_id']}/{row['from_track']}", f"{row['target_id']}/{row['to_track']}"}
        if tracks & self.tracks.keys():
            return "split conflict"
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
        if self.conflicts or self.tracks:
            from data_pipeline.sheet import draw_conflicts

            listed = {"sources": self.conflicts, "tracks": self.tracks}
            shown = {track.rsplit("/", 1)[0]: others for track, others in self.tracks.items()} | self.conflicts
            commit_changed(join(folder, CONFLICTS), json.dumps(listed, indent=1, sort_keys=True).encode())
            commit_changed(join(folder, "conflicts.jpg"), draw_conflicts(shown, self.split_of, work))
        else:
            for uri in (join(folder, CONFLICTS), join(folder, "conflicts.jpg")):
                if exists(uri):
                    delete(uri)


@dataclass(frozen=True)
class Tied:
    """Which sources belong together, and what may not go on."""

    components: Components
    conflicts: Conflicts


def tie(
    accepted: list[dict[str, Any]],
    items: dict[str, WorkItem],
    centroids: dict[str, npt.NDArray[np.float32]],
    base: Base | None,
    config: SplitConfig,
    copies: Mapping[str, Copy],
) -> Tied:
    """Ties sources by what is declared of them, by faces, and copies to what they are copies of.

    Args:
        accepted: New pairs.
        items: All sources.
        centroids: Track -> mean face.
        base: The version that is extended.
        config: Thresholds.
        copies: Sources that are not used: what is declared of them still counts.

    Raises:
        UserError: Sources of the extended version are not listed.
    """
    if base:
        base.check_listed(items)
    ties = _find_ties(items, base, copies)
    known = base.split_of_source if base else {}
    counts = Counter(row["source_id"] for row in [*accepted, *(base.rows if base else ())])
    conflicts = Conflicts({}, {})
    while True:  # without a track or source in conflict others are nearest to each other
        free = [name for name in dict.fromkeys([*items, *known]) if name not in conflicts.sources]
        left = {
            track: face
            for track, face in centroids.items()
            if track not in conflicts.tracks and track.rsplit("/", 1)[0] not in conflicts.sources
        }
        shared = {name: names for name, names in ties.items() if name not in conflicts.sources}
        components = find_components(free, shared, left, config, Counter({name: counts[name] for name in free}))
        published = base.tracks if base else frozenset[str]()
        found = find_conflicts(components.of_source, components.links, shared, left, known, published, config.link_similarity)
        if not (found.sources or found.tracks):
            return Tied(components, conflicts)
        conflicts = Conflicts(conflicts.sources | found.sources, conflicts.tracks | found.tracks)


def divide(accepted: list[dict[str, Any]], items: dict[str, WorkItem], tied: Tied, base: Base | None, config: SplitConfig) -> Division:
    """Splits for the sources of accepted pairs.

    Args:
        accepted: New pairs.
        items: All sources.
        tied: What belongs together.
        base: The version that is extended.
        config: Shares, seed, thresholds.

    Raises:
        UserError: Pins contradict each other, or one component is too large.
    """
    components, conflicts = tied.components, tied.conflicts
    known = base.split_of_source if base else {}
    of = components.of_source
    pins: dict[str, Split] = {}
    for name, side in known.items():
        pins.setdefault(of[name], side)
    for name in of:
        pin = items[name].split if name in items else None
        if pin and pins.setdefault(of[name], pin) != pin and name not in known:
            raise UserError(f"source {name} is pinned to {pin}, but it is tied to a source that is in {pins[of[name]]} ({of[name]})")
    counted = Counter[str]()
    for row in accepted:
        if row["source_id"] not in conflicts.sources:
            counted[of[row["source_id"]]] += 1
    largest = counted.most_common(1)[0][0] if counted else ""
    division = assign(counted, pins, config, [link for link in components.links if of[link.first.rsplit("/", 1)[0]] == largest])
    split_of = {name: division[component] for name, component in of.items() if component in division} | known
    return Division(split_of, components, conflicts.sources, conflicts.tracks)


def _find_ties(items: dict[str, WorkItem], base: Base | None, copies: Mapping[str, Copy]) -> dict[str, list[str]]:
    """Source id -> what it shares with others: declared identity or group, a clip, a merge, a component of the version that is extended.

    Who was one person then stays so, in particular those who lost their samples to a merge; what was published on two sides although alike ties nobody.
    """
    ties: dict[str, list[str]] = defaultdict(list)
    for item in items.values():
        for kind, name in (("identity", item.identity), ("group", item.group)):
            if name:
                ties[item.source_id].append(f"{kind}:{name}")
    for name, copy in copies.items():
        for one in (name, copy.of):
            ties[one].append(f"clip:{copy.of}")
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
