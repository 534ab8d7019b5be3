"""Whether the ranks have a place to run, said before anything starts: a job that asks for more than there is would wait for ever."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from infra.console import say
from infra.errors import UserError

_PATIENCE = 60.0
"""Seconds that are waited for others to give back what they use."""


def check_ray(workers: int, each: Mapping[str, float], patience: float = _PATIENCE) -> None:
    """Checks that Ray can place the ranks.

    Args:
        workers: Ranks.
        each: What a rank needs (`CPU`, `GPU`).
        patience: Seconds that are waited while other jobs hold what would be enough.

    Raises:
        UserError: It cannot, ever or now; says what is missing.
    """
    import ray

    nodes, grown = _cluster()
    places = _places([grown], each) if grown else _places(nodes, each)
    if places < workers:
        raise UserError(_missing(workers, each, places, [grown] if grown else nodes))
    if grown:
        return
    until = time.monotonic() + patience
    said = False
    while (free := _places([ray.available_resources()], each)) < workers:
        if time.monotonic() > until:
            raise UserError(
                f"engine.workers={workers}: {free} of the {places} places ({_words(each)} each) are free; other jobs hold the rest. "
                f"Wait for them (`ray list jobs`), or train with engine.workers={max(1, free)}"
            )
        if not said:
            say(f"  waiting for {workers} places of {_words(each)}: {free} are free, other jobs hold the rest")
            said = True
        time.sleep(1.0)


def cluster_has_gpus() -> bool:
    """Whether Ray's nodes have GPUs, or will where they are started on demand. Not whether this machine has: the head, which a job is driven from, often has none."""
    nodes, grown = _cluster()
    return any(node.get("GPU", 0.0) > 0 for node in [*nodes, grown])


def check_here(workers: int) -> None:
    """The same for ranks that are processes of this machine.

    Raises:
        UserError: There are fewer GPUs, or without a GPU fewer cores.
    """
    import torch

    gpu = torch.cuda.is_available()
    each = {"GPU": 1.0} if gpu else {"CPU": 1.0}
    there = {"GPU": float(torch.cuda.device_count())} if gpu else {"CPU": float(os.cpu_count() or 1)}
    if _places([there], each) < workers:
        raise UserError(_missing(workers, each, _places([there], each), [there]))


def _cluster() -> tuple[list[Mapping[str, float]], Mapping[str, float]]:
    """Resources of the nodes that are there, and the most that there can be where nodes are started on demand (else nothing)."""
    import ray
    from ray._private.state import state

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return nodes, state.get_max_resources_from_cluster_config() or {}  # Ray Train asks it too


def _places(nodes: Sequence[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """Ranks that fit; each must fit on one node whole."""
    return sum(int(min(node.get(name, 0.0) / need for name, need in each.items() if need)) for node in nodes)


def _missing(workers: int, each: Mapping[str, float], places: int, nodes: Sequence[Mapping[str, float]]) -> str:
    lacking = [
        f"{workers * need - sum(node.get(name, 0.0) for node in nodes):g} {name}"
        for name, need in each.items()
        if sum(node.get(name, 0.0) for node in nodes) < workers * need
    ]
    why = f"missing: {', '.join(lacking)}" if lacking else "there is enough in all, but not together on single nodes"
    advice = f"train with engine.workers={places}" if places else "start a cluster that has them"
    return (
        f"engine.workers={workers}: the ranks need {_words(each)} each, and {places} of them find a place ({why}). Add nodes, or {advice}"
    )


def _words(each: Mapping[str, float]) -> str:
    return " and ".join(f"{need:g} {name}" for name, need in each.items() if need)
