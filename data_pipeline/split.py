"""Splits with no person, source or group on two sides: connected components, assigned by hash."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from infra.config import Config
from infra.errors import UserError
from infra.storage import sha256_bytes
from lato.pairs import Split


class SplitConfig(Config):
    """How samples are divided."""

    val: float = 0.08
    """Share of samples for held-out loss."""
    test: float = 0.08
    """Share of samples for evaluation."""
    seed: int = 0
    """Another seed, another division."""
    link_similarity: float = 0.45
    """Cosine from which two sources of real people count as one person."""
    max_component: float = 0.05
    """Share of the samples that one component may have."""
    small_dataset: int = 2000
    """Below this many samples the limit on a component is not applied: one clip is then more than its share."""


def find_components(rows: list[dict[str, Any]], groups: dict[str, str | None], config: SplitConfig) -> dict[str, str]:
    """Source id -> component name: sources tied by declared identity, group, or faces that a recognizer takes for one person.

    Args:
        rows: Observations of all sources.
        groups: Source id -> declared group.
        config: Thresholds.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def tie(a: str, b: str) -> None:
        first, second = sorted((root(a), root(b)))
        parent[second] = first

    for row in rows:
        tie(f"source:{row['source_id']}", f"source:{row['source_id']}")
        if row["identity"]:
            tie(f"source:{row['source_id']}", f"identity:{row['identity']}")
        if groups.get(row["source_id"]):
            tie(f"source:{row['source_id']}", f"group:{groups[row['source_id']]}")
    for a, b in _recognized_links(rows, config.link_similarity):
        tie(f"source:{a}", f"source:{b}")
    return {row["source_id"]: root(f"source:{row['source_id']}") for row in rows}


def assign(samples: Counter[str], pins: dict[str, Split], config: SplitConfig) -> dict[str, Split]:
    """Component -> split, by hash order until each share is full.

    Args:
        samples: Component -> number of samples.
        pins: Component -> split it must go to.
        config: Shares and seed.

    Raises:
        UserError: One component holds too much of the data.
    """
    total = sum(samples.values())
    for name, count in samples.most_common(1):
        if total >= config.small_dataset and count > config.max_component * total:
            raise UserError(
                f"one component of the split, {name}, has {count} of {total} samples, over the limit of {config.max_component:.0%}. "
                "Its sources are tied by identity, group or likeness: raise split.link_similarity, or split.max_component if it is right."
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


def _recognized_links(rows: list[dict[str, Any]], threshold: float) -> list[tuple[str, str]]:
    """Pairs of real sources whose mean faces look like one person. Synthetic people are left out: their identity is declared."""
    vectors: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        if row["representative"] and row["kind"] != "synthetic":
            vectors[row["source_id"]].append(row["embedding"])
    names = sorted(vectors)
    if not names:
        return []
    centroids = np.stack([np.mean(vectors[name], axis=0) for name in names])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    alike = np.argwhere(np.triu(centroids @ centroids.T >= threshold, k=1))
    return [(names[i], names[j]) for i, j in alike]
