"""Where Ray actors run: what each takes of a node, the environment it runs in, and whether the cluster can ever have room for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator

from infra.console import say
from infra.errors import UserError
from infra.runtime import quieten

_GB = 1024**3
_SETUP_SECONDS = 600
"""Ray's default."""
NO_ACTORS = "runtime_env is of Ray actors, and with workers=0 there are none: give workers, or leave it out"
"""A user's mistake in any config that has both."""
_LITTLE = 1e-9
"""Shares of a GPU are sums of fractions."""


@dataclass(frozen=True)
class Place:
    """What each actor of a stage asks Ray for, beside one CPU."""

    stage: str
    """In words, for messages."""
    key: str = ""
    """Section of the config with its `gpus` and `runtime_env`."""
    workers_key: str = "workers"
    memory: int = 0
    """Bytes of its node that it may take, with the processes it starts; 0 asks for none."""
    gpus: float = 0.0
    """Share of a GPU, or how many."""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    """Ray's, beside the job's own; empty is the driver's environment."""

    @property
    def setup_seconds(self) -> float:
        """In which a worker must come up in an environment of its own: Ray's own limit on making it, where -1 is none."""
        given = self.runtime_env.get("config", {}).get("setup_timeout_seconds", _SETUP_SECONDS)
        return float("inf") if given == -1 else float(given)

    def needs(self) -> dict[str, float]:
        """Ray's resources, by their names there; those it takes none of are left out."""
        return {name: need for name, need in {"CPU": 1.0, "memory": float(self.memory), "GPU": self.gpus}.items() if need}


class _Nobody:
    """An actor that is never started."""


def _check_runtime_env(given: dict[str, Any]) -> dict[str, Any]:
    """The same, if Ray takes it."""
    if not given:
        return given
    quieten()
    import ray
    from ray.runtime_env import RuntimeEnv as Checked

    known = sorted(name for name in Checked.known_fields if not name.startswith("_"))
    for name in given.keys() - set(known):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise ValueError(f"{name}: unknown key; " + (f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"))
    try:
        ray.remote(runtime_env=Checked(**given))(_Nobody)  # an actor's takes less than a job's: no folders that are sent along
    except (TypeError, ValueError) as error:
        raise ValueError(f"Ray does not take it: {error}") from error
    return given


RuntimeEnv = Annotated[dict[str, Any], AfterValidator(_check_runtime_env)]
"""A config's field: Ray's `runtime_env` of a stage's actors (pip, conda, uv, py_executable, env_vars, image_uri ...), checked as Ray does."""


def room_for(place: Place, workers: int) -> int:
    """How many of these actors are to be started: as many as wanted, fewer where the cluster has the memory for fewer at once (said in a line).

    Args:
        place: What each takes.
        workers: How many are wanted.

    Returns:
        At least 1.

    Raises:
        UserError: No node can ever have room for one: Ray would wait for ever.
    """
    nodes, grown = _nodes()
    need = place.needs()
    if not any(_fit(node, need) for node in [*nodes, *grown]):
        raise UserError(_no_room(place, [*nodes, *grown]))
    if grown:  # nodes are started for what waits
        return workers
    fit = sum(_fit(node, need) for node in nodes)
    if fit < workers and fit < sum(_fit(node, {name: need[name] for name in need if name != "memory"}) for node in nodes):
        _say_once(
            f"  {place.stage}: {fit} of {workers} workers at once; each asks for {_amount('memory', place.memory)}, and the nodes have no more"
        )
        return fit
    return workers


_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        say(line)


def _nodes() -> tuple[Sequence[Mapping[str, float]], Sequence[Mapping[str, float]]]:
    """All that Ray's living nodes have, taken or not; and what those have that are started on demand."""
    import ray
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    # what a cluster file does not say of a node's memory is known once it has started
    grown = [{"memory": float("inf"), **dict(group.resources)} for group in groups if group.max_count]
    return [node["Resources"] for node in ray.nodes() if node["Alive"]], grown


def _fit(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    return min(int(min(node.get(name, 0.0) / each + _LITTLE, 1e6)) for name, each in need.items())


def _no_room(place: Place, nodes: Sequence[Mapping[str, float]]) -> str:
    need = place.needs()
    lacking = [name for name in need if not any(_fit(node, {name: need[name]}) for node in nodes)] or list(need)
    largest = max(nodes, key=lambda node: [node.get(name, 0.0) for name in [*lacking, *need]], default={})
    asked = ", ".join(_amount(name, each) for name, each in need.items())
    has = ", ".join(_amount(name, largest.get(name, 0.0)) for name in need)
    advice = [
        "add a node that has it"
        if "memory" not in lacking
        else "add a node that has it (Ray's memory on a node is what was free when it started)"
    ]
    if "GPU" in lacking:
        advice.append(f"set {place.key}.gpus=0" if place.key else "set gpus=0")
    elif not place.runtime_env and not place.gpus:
        advice.append(f"work without Ray ({place.workers_key}=0)")
    return f"{place.stage}: each worker asks Ray for {asked}, and no node of the cluster can ever have that; the largest has {has}. To go on, {', or '.join(advice)}."


def _amount(name: str, much: float) -> str:
    return f"{much / _GB:.1f} GB of memory" if name == "memory" else f"{much:g} {name}"
