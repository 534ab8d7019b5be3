"""What is asked of a running training from outside: stop (SIGTERM, preemption), save now, or save by the clock. All ranks agree before any acts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

SAVE = "save-now"
"""A file of this name in the run's folder asks for a checkpoint; it is deleted when that is written."""


class Preempted(RuntimeError):
    """The run was asked to end: it saved, and goes on from there when it is started again."""


@dataclass(frozen=True)
class Asked:
    """What all ranks are to do after a step."""

    stop: bool
    save: bool


class Requests:
    """Asks at every step whether somebody wants something."""

    def __init__(self, folder: Path, save_minutes: float | None) -> None:
        self._file, self._every = folder / SAVE, save_minutes
        self._last = time.monotonic()
        self.stop = False

    def poll(self) -> Asked:
        """What the ranks were asked, agreed on by one all-reduce of two numbers. A stop that reached one rank stops all."""
        due = self._every is not None and time.monotonic() - self._last > 60 * self._every
        mine = torch.tensor([int(self.stop), int(due or self._file.exists())])
        dist.all_reduce(mine, dist.ReduceOp.MAX)
        stop, save = (bool(flag) for flag in mine)
        if save:
            self._last = time.monotonic()
        return Asked(stop, save)

    def answered(self) -> None:
        """A checkpoint was written: the request is done. Called on rank 0."""
        self._file.unlink(missing_ok=True)


@contextmanager
def listen(folder: Path, save_minutes: float | None) -> Iterator[Requests]:
    """Requests of a run; SIGTERM is one of them where this is the main thread (elsewhere Python does not let it be caught)."""
    requests = Requests(folder, save_minutes)
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = signal.signal(signal.SIGTERM, lambda *_: setattr(requests, "stop", True))
    try:
        yield requests
    finally:
        signal.signal(signal.SIGTERM, before)
