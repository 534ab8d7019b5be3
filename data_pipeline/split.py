"""Splits with no person, source or group on two sides: connected components, assigned by hash."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx
import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.people import Link, find_families, find_people, source_of
from infra.config import Config
from infra.errors import UserError
from infra.storage import sha256_bytes
from lato.faces.identity import RECOGNIZER, SAME_PERSON_THRESHOLD
from lato.pairs import Split


class SplitConfig(Config):
    """How samples are divided."""

    val: float = Field(default=0.08, ge=0, lt=1)
    """Share of samples for held-out loss."""
    test: float = Field(default=0.08, ge=0, lt=1)
    """Share of samples for evaluation."""
    seed: int = 0
    """Another seed, another division."""
    link_similarity: float = SAME_PERSON_THRESHOLD[RECOGNIZER]
    """Cosine from which two tracks of real people count as one person; where it is not given, the recognizer's own (0.50 for buffalo_l)."""
    link_nearest: int = Field(default=10, ge=1)
    """Tracks, then groups of tracks, are linked where they are among each other's this many nearest, until nothing is left to link."""
    max_component: float = Field(default=0.05, gt=0, le=1)
    """Share of the samples that one component may have."""
    small_dataset: int = 2000
    """Below this many samples the limit on a component is not applied: one clip is then more than its share."""


@dataclass(frozen=True)
class Components:
    """Which sources belong together."""

    of_source: dict[str, str]
    links: list[Link]
    """By which tracks (`source/track`) of different sources."""
    bridges: frozenset[str]
    """Tracks that alone joined two large ones, and were left out."""
    person_of: dict[str, str] = field(default_factory=dict)
    """Track of a real person -> the first track of theirs, by faces alone."""
    families: dict[str, str] = field(default_factory=dict)
    """Component -> the first of those that look like it in single tracks and go to one side with it."""


def find_components(
    sources: Iterable[str],
    ties: dict[str, list[str]],
    centroids: dict[str, npt.NDArray[np.float32]],
    config: SplitConfig,
    samples: Counter[str],
) -> Components:
    """Sources tied by declared identity, group, or faces that a recognizer takes for one person.

    Args:
        sources: All source ids.
        ties: Source id -> names it shares with others (`identity:...`, `group:...`).
        centroids: Track (`source/track`) -> mean face of real people.
        config: Thresholds.
        samples: Source id -> samples, by which a component is large.
    """
    names = sorted(sources)
    left, bridges = dict(centroids), frozenset[str]()
    while True:
        people = find_people(left, config.link_similarity, config.link_nearest)
        of_source = _tie(names, ties, people.links)
        found = _find_bridges_of_large(people.links, samples, of_source, config)
        if not found:
            families = find_families(left, people, of_source, config.link_similarity)
            return Components(of_source, people.links, bridges, people.of_track, families)
        bridges |= found  # without them others are nearest to each other
        left = {track: face for track, face in left.items() if track not in bridges}


def check_sizes(samples: Counter[str], components: Components, config: SplitConfig) -> None:
    """Ends a build of which one component has too much.

    Args:
        samples: Component -> number of samples.
        components: What ties them.
        config: The limit.

    Raises:
        UserError: One has more than its share of the samples.
    """
    total = sum(samples.values())
    for name, count in samples.most_common(1):
        if total >= config.small_dataset and count > config.max_component * total:
            links = sorted(link for link in components.links if components.of_source[source_of(link.first)] == name)
            weakest = ", ".join(f"{link.first} = {link.second} ({link.similarity:.2f})" for link in links[:5])
            raise UserError(
                f"one component of the split, {name}, has {count} of {total} samples, over the limit of {config.max_component:.0%}. "
                f"Its sources are tied by identity, group, file or likeness{f'; the weakest likenesses: {weakest}' if weakest else ''}. "
                "Raise split.link_similarity, or split.max_component if it is right."
            )


def assign(
    samples: Counter[str],
    pins: dict[str, Split],
    config: SplitConfig,
    families: Mapping[str, str] | None = None,
) -> dict[str, Split]:
    """Component -> split: a family at a time, by hash order until each share is full.

    A family that is pinned in part follows, to train also where its pins contradict each other, and to val or test only where it is no larger than a
    component may be.

    Args:
        samples: Component -> number of samples.
        pins: Component -> split it must go to.
        config: Shares and seed.
        families: Component -> its family; who is not in it is one alone.
    """
    total = sum(samples.values())
    division: dict[str, Split] = dict(pins)
    filled = Counter({side: sum(samples[c] for c, s in pins.items() if s == side) for side in ("val", "test")})
    families = families or {}
    free, sides = defaultdict[str, list[str]](list), defaultdict[str, set[Split]](set)
    for name in samples.keys() - pins.keys():
        free[families.get(name, name)].append(name)
    for name, pin in pins.items():
        sides[families.get(name, name)].add(pin)
    for family in sorted(free, key=lambda name: sha256_bytes(f"{config.seed}/{name}".encode())):
        count = sum(samples[name] for name in free[family])
        side: Split = "train"
        if family in sides:
            if "train" not in sides[family] and (total < config.small_dataset or count <= config.max_component * total):
                side = max(sides[family], key=lambda one: (one == "test", one))
        elif filled["test"] + count <= config.test * total:
            side = "test"
        elif filled["val"] + count <= config.val * total:
            side = "val"
        filled[side] += count
        division |= dict.fromkeys(free[family], side)
    return division


def _tie(names: list[str], ties: dict[str, list[str]], links: list[Link]) -> dict[str, str]:
    """Source -> its component, named by the component's first source."""
    graph = networkx.Graph()
    graph.add_nodes_from(f"source:{name}" for name in names)
    graph.add_edges_from((f"source:{name}", tie) for name, shared in ties.items() for tie in shared)
    graph.add_edges_from((f"source:{source_of(a)}", f"source:{source_of(b)}") for _, a, b in links)
    of_source = {}
    for found in networkx.connected_components(graph):
        mine = sorted(node for node in found if node.startswith("source:"))
        of_source.update({node.removeprefix("source:"): mine[0] for node in mine})
    return of_source


def _find_bridges_of_large(links: list[Link], samples: Counter[str], of_source: dict[str, str], config: SplitConfig) -> frozenset[str]:
    """Of components over the limit; none in a small dataset."""
    total = sum(samples.values())
    if total < config.small_dataset:
        return frozenset()
    sizes = Counter[str]()
    for name, count in samples.items():
        sizes[of_source[name]] += count
    large = {component for component, count in sizes.items() if count > config.max_component * total}
    return _find_bridges(links, samples, of_source, large, 0.2 * config.max_component * total)


def _find_bridges(links: list[Link], samples: Counter[str], of_source: dict[str, str], large: set[str], least: float) -> frozenset[str]:
    """Tracks of which each alone holds together two parts of a too large component that have `least` samples each.

    Each cuts the graph of links where it stands in several of its blocks (parts that no single node cuts). Blocks and nodes are a tree, so that the sizes of
    all parts come of one walk through it.
    """
    graph: networkx.Graph[Any] = networkx.Graph((a, b) for _, a, b in links if of_source[source_of(a)] in large)
    tracks: dict[str, list[str]] = defaultdict(list)
    for track in graph:
        tracks[source_of(track)].append(track)
    below = Counter[Any]()
    for name, mine in tracks.items():  # tracks of one source stand for each other but for the one in question
        place = ("source", name) if len(mine) > 1 else mine[0]
        below[place] = samples[name]
        graph.add_edges_from((track, place) for track in mine if track != place)
    tree: networkx.Graph[Any] = networkx.Graph()
    for number, block in enumerate(networkx.biconnected_components(graph)):
        tree.add_edges_from((number, node) for node in block)
    bridges: set[str] = set()
    for part in list(networkx.connected_components(tree)):
        root, parts = next(iter(part)), Counter[Any]()
        for parent, node in reversed(list(networkx.bfs_edges(tree, root))):
            below[parent] += below[node]
            parts[parent] += below[node] >= least
        parts.update(node for node in part if node != root and below[root] - below[node] >= least)
        bridges |= {node for node in part if isinstance(node, str) and parts[node] >= 2}
    return frozenset(bridges)
