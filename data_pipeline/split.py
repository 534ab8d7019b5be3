"""Splits with no person, source or group on two sides: connected components, assigned by hash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import networkx
import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.nearest import mutual_nearest
from infra.config import Config
from infra.errors import UserError
from infra.storage import sha256_bytes
from lato.pairs import Split


class SplitConfig(Config):
    """How samples are divided."""

    val: float = Field(default=0.08, ge=0, lt=1)
    """Share of samples for held-out loss."""
    test: float = Field(default=0.08, ge=0, lt=1)
    """Share of samples for evaluation."""
    seed: int = 0
    """Another seed, another division."""
    link_similarity: float = 0.45
    """Cosine from which two tracks of real people count as one person; where it is not given, the recognizer's own (0.50 for buffalo_l)."""
    link_nearest: int = Field(default=10, ge=1)
    """Only tracks that are among each other's this many nearest are linked."""
    max_component: float = Field(default=0.05, gt=0, le=1)
    """Share of the samples that one component may have."""
    small_dataset: int = 2000
    """Below this many samples the limit on a component is not applied: one clip is then more than its share."""


class Link(NamedTuple):
    """Two tracks that a recognizer takes for one person."""

    similarity: float
    first: str
    second: str


@dataclass(frozen=True)
class Components:
    """Which sources belong together."""

    of_source: dict[str, str]
    links: list[Link]
    """By which tracks (`source/track`) of different sources."""
    bridges: frozenset[str]
    """Tracks that alone joined two large ones, and were left out."""


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
    links = find_links(centroids, config.link_similarity, config.link_nearest)
    total, bridges = sum(samples.values()), frozenset[str]()
    of_source = _tie(names, ties, links)
    if total >= config.small_dataset:
        sizes = Counter[str]()
        for name, count in samples.items():
            sizes[of_source[name]] += count
        large = {component for component, count in sizes.items() if count > config.max_component * total}
        bridges = _find_bridges(links, samples, of_source, large, 0.2 * config.max_component * total)
        links = [link for link in links if link.first not in bridges and link.second not in bridges]
        of_source = _tie(names, ties, links)
    return Components(of_source, links, bridges)


def assign(samples: Counter[str], pins: dict[str, Split], config: SplitConfig, links: list[Link] | None = None) -> dict[str, Split]:
    """Component -> split, by hash order until each share is full.

    Args:
        samples: Component -> number of samples.
        pins: Component -> split it must go to.
        config: Shares and seed.
        links: To name the weakest where a component is too large.

    Raises:
        UserError: One component holds too much of the data.
    """
    total = sum(samples.values())
    for name, count in samples.most_common(1):
        if total >= config.small_dataset and count > config.max_component * total:
            weakest = ", ".join(f"{link.first} = {link.second} ({link.similarity:.2f})" for link in sorted(links or [])[:5])
            raise UserError(
                f"one component of the split, {name}, has {count} of {total} samples, over the limit of {config.max_component:.0%}. "
                f"Its sources are tied by identity, group or likeness{f'; the weakest likenesses: {weakest}' if weakest else ''}. "
                "Raise split.link_similarity, or split.max_component if it is right."
            )
    division: dict[str, Split] = dict(pins)
    filled = Counter({side: sum(samples[c] for c, s in pins.items() if s == side) for side in ("val", "test")})
    for name in sorted(samples, key=lambda name: sha256_bytes(f"{config.seed}/{name}".encode())):
        if name in division:
            continue
        side: Split = "train"
        if filled["test"] + samples[name] <= config.test * total:
            side = "test"
        elif filled["val"] + samples[name] <= config.val * total:
            side = "val"
        filled[side] += samples[name]
        division[name] = side
    return division


def find_links(centroids: dict[str, npt.NDArray[np.float32]], threshold: float, nearest: int) -> list[Link]:
    """Tracks of different sources that are among each other's `nearest` in other sources and at least `threshold` alike. Time grows with their number
    squared, memory with their number."""
    names = sorted(centroids)
    if len(names) < 2:
        return []
    numbers: dict[str, int] = {}
    owners = np.array([numbers.setdefault(name.rsplit("/", 1)[0], len(numbers)) for name in names])
    found = mutual_nearest(np.stack([centroids[name] for name in names]), owners, threshold, nearest)
    return [Link(round(float(similar), 6), names[a], names[b]) for a, b, similar in zip(*found, strict=True)]


def _tie(names: list[str], ties: dict[str, list[str]], links: list[Link]) -> dict[str, str]:
    """Source -> its component, named by the component's first source."""
    graph = networkx.Graph()
    graph.add_nodes_from(f"source:{name}" for name in names)
    graph.add_edges_from((f"source:{name}", tie) for name, shared in ties.items() for tie in shared)
    graph.add_edges_from((f"source:{a.rsplit('/', 1)[0]}", f"source:{b.rsplit('/', 1)[0]}") for _, a, b in links)
    of_source = {}
    for found in networkx.connected_components(graph):
        mine = sorted(node for node in found if node.startswith("source:"))
        of_source.update({node.removeprefix("source:"): mine[0] for node in mine})
    return of_source


def _find_bridges(links: list[Link], samples: Counter[str], of_source: dict[str, str], large: set[str], least: float) -> frozenset[str]:
    """Tracks of which each alone holds together two parts of a too large component that have `least` samples each."""
    bridges = set()
    for component in sorted(large):
        graph = networkx.Graph()
        for _, a, b in links:
            if of_source[a.rsplit("/", 1)[0]] == component:
                graph.add_edge(a, b)
        for track in list(graph):  # tracks of one source stand for each other but for the one in question
            graph.add_edge(track, f"source:{track.rsplit('/', 1)[0]}")
        for track in sorted(set(networkx.articulation_points(graph)) - {node for node in graph if node.startswith("source:")}):
            rest = graph.copy()
            rest.remove_node(track)
            parts = [part for part in networkx.connected_components(rest) if any(not node.startswith("source:") for node in part)]
            sizes = [sum(samples[node.removeprefix("source:")] for node in part if node.startswith("source:")) for part in parts]
            if sum(size >= least for size in sizes) >= 2:
                bridges.add(track)
    return frozenset(bridges)
