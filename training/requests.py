"""What is asked of a running training from outside: stop (SIGTERM, preemption), save now, sample now, or save by the clock. All ranks agree before any acts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from training.zero import reducible

SAVE, SAMPLE, STOP = "save-now", "sample-now", "stop-now"
"""A file of such a name in the run's folder asks for a checkpoint, a sample grid, or a checkpoint and the end; it is deleted when that is done."""


class Preempted(RuntimeError):
    """The run was asked to end: it saved, and goes on from there when it is started again."""


@dataclass(frozen=True)
class Asked:
    """What all ranks agree on after a step."""

    stop: bool
    save: bool
    sample: bool
    writing: bool
    """Some rank's part of a checkpoint is still being written."""
    failed: bool
    """Some rank's part could not be written."""


class Requests:
    """Asks at every step whether somebody wants something."""

    def __init__(self, folder: Path, save_minutes: float | None, preempted: Callable[[], bool]) -> None:
        self._folder, self._every, self._preempted = folder, save_minutes, preempted
        self._last = time.monotonic()
        self._warned = False
        self.stop = False

    def poll(self, writing: bool, failed: bool) -> Asked:
        """What the ranks were asked, and how their checkpoints stand, agreed on by one all-reduce of five numbers. A stop that reached one rank stops all."""
        due = self._every is not None and time.monotonic() - self._last > 60 * self._every
        warned = self._preempted()
        save = due or (self._folder / SAVE).exists() or (warned and not self._warned)
        self._warned = warned
        mine = reducible([self.stop or (self._folder / STOP).exists(), save, (self._folder / SAMPLE).exists(), writing, failed])
        dist.all_reduce(mine, dist.ReduceOp.MAX)
        asked = Asked(*(bool(flag) for flag in mine))
        if asked.save:
            self._last = time.monotonic()
        return asked

    def answered(self, name: str) -> None:
        """A request was met. Called on rank 0."""
        (self._folder / name).unlink(missing_ok=True)


@contextmanager
def listen(folder: Path, save_minutes: float | None, preempted: Callable[[], bool]) -> Iterator[Requests]:
    """Requests of a run; SIGTERM is one of them where this is the main thread (elsewhere Python does not let it be caught, and the file is the way)."""
    requests = Requests(folder, save_minutes, preempted)
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = signal.signal(signal.SIGTERM, lambda *_: setattr(requests, "stop", True))
    try:
        yield requests
    finally:
        signal.signal(signal.SIGTERM, before)
