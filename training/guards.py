"""What watches over a run: nothing that is not finite passes, and what looks wrong or slow is told by name."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import UserError
from infra.storage import commit
from training.mixture import Sample
from training.zero import reducible

SPIKE = 4.0
"""A loss this many times the median of the last ones (and beyond their spread) is a spike."""
_WINDOW = 100
SLOW = 1.5
"""A rank that works this many times as long as the median rank, and a second longer since the last line, is slow."""


class NotFinite(RuntimeError):
    """A loss or gradient was NaN or infinite."""


class RankLost(RuntimeError):
    """A collective was given up: a rank is dead or hangs."""


class GradientWatch:
    """Sees every gradient before ranks are averaged, at every ZeRO stage, without waiting for the device.

    It adds up: a sum is finite only where all its terms are, and costs one reading of the gradient (`isfinite` costs several).
    """

    def __init__(self, module: nn.Module) -> None:
        self._sums: list[Tensor] = []
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._look)

    def _look(self, gradient: Tensor) -> None:
        self._sums.append(gradient.detach().sum(dtype=torch.float32))

    def taken(self) -> Tensor:
        """Whether all gradients since the last call were finite (a scalar on the device)."""
        sums, self._sums = self._sums, []
        return torch.isfinite(torch.stack(sums)).all() if sums else torch.ones((), dtype=torch.bool)


def stop_unless_finite(flags: list[Tensor], what: str, step: int, batches: list[list[Sample]]) -> None:
    """Stops all ranks when one of them saw something that is not finite; a collective.

    Args:
        flags: A bool scalar for each micro-batch looked at.
        what: `loss` or `gradient`.
        step: Steps done before this one.
        batches: The samples of these micro-batches.

    Raises:
        NotFinite: On all ranks, with the step, the ranks and their samples.
    """
    all_finite = torch.stack(flags).all().to(torch.int32)
    dist.all_reduce(all_finite, dist.ReduceOp.MIN)
    if int(all_finite):
        return
    keys = [sample.key for flag, batch in zip(flags, batches, strict=True) if not bool(flag) for sample in batch]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, keys)
    guilty = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in enumerate(everyone) if names)
    raise NotFinite(
        f"the {what} of step {step + 1} is not finite ({guilty}). Nothing was changed by this step. Look at these samples, or lower the rate."
    )


class Alarms:
    """Tells of a loss that jumps, and of metrics below their floor.

    Args:
        floors: Metric -> (limit, what to say).
        warmup: Steps in which floors do not count.
    """

    def __init__(self, floors: Mapping[str, tuple[float, str]], warmup: int) -> None:
        self._floors, self._warmup = floors, warmup
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._low: set[str] = set()

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """What is wrong with a step, in words; a floor is told once until its metric has risen again."""
        said = []
        loss = metrics["loss"]
        if len(self._losses) >= 20:
            middle = statistics.median(self._losses)
            spread = statistics.median(abs(other - middle) for other in self._losses)
            if loss > SPIKE * middle and loss > middle + 10 * spread:
                said.append(f"loss {loss:.4g} at step {step} is {loss / middle:.1f} times the median of the last {len(self._losses)} steps")
        self._losses.append(loss)
        for name, (limit, text) in self._floors.items():
            low = step > self._warmup and metrics.get(name, limit) < limit
            if low and name not in self._low:
                said.append(f"{name} is {metrics[name]:.4g} at step {step}, below {limit:.4g}: {text}")
            if name in metrics:
                (self._low.add if low else self._low.discard)(name)
        return said


def slow_ranks(own_seconds: float) -> list[str]:
    """Ranks whose own work took clearly longer than the others'; a collective. Waiting for others is not own work."""
    mine = reducible([own_seconds])
    everyone = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    seconds = [float(value) for value in everyone]
    middle = statistics.median(seconds)
    return [
        f"rank {rank} works {value / middle:.1f} times as long as the median rank"
        for rank, value in enumerate(seconds)
        if value > SLOW * middle > 0 and value > middle + 1
    ]


class Heartbeat:
    """A small file a rank, from which the others read who is missing when a collective is given up."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._last, self._phase = 0.0, ""

    def beat(self, step: int, phase: str) -> None:
        """Says where this rank is: when the phase changes, and otherwise at most once a second."""
        now = time.monotonic()
        if phase != self._phase or now - self._last >= 1.0:
            self._last, self._phase = now, phase
            about = {
                "rank": self._rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "step": step,
                "phase": phase,
                "time": time.time(),
            }
            with contextlib.suppress(
                UserError, OSError
            ):  # a full disk or a hiccup of it does not end a training; what must be written there tells of it
                commit(str(self._folder / f"rank-{self._rank:05d}.json"), json.dumps(about).encode())

    def missing(self) -> str:
        """The ranks that were last heard of longest ago, in words."""
        heard = [json.loads(path.read_text()) for path in sorted(self._folder.glob("rank-*.json"))]
        ranks = range(self._world_size)  # a larger run before may have left more
        others = [about for about in heard if about["rank"] in ranks and about["rank"] != self._rank]
        if not others:
            return "no other rank has been heard of"
        here = [about for about in others if about["host"] == socket.gethostname()]
        for _ in range(20):  # a connection is closed a moment before its process has ended
            dead = [about for about in here if not _is_running(about["pid"])]
            if dead:
                return "; ".join(
                    f"rank {about['rank']} (process {about['pid']}) has ended; it was at step {about['step']}" for about in dead
                )
            time.sleep(0.1)
        oldest = min(about["time"] for about in others)
        silent = [about for about in others if about["time"] < oldest + 5]
        return "; ".join(
            f"rank {about['rank']} (process {about['pid']} on {about['host']}) was last heard of {time.time() - about['time']:.0f} s ago, "
            f"at step {about['step']} ({about['phase']})"
            for about in silent
        )


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
