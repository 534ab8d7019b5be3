"""How long a decoder's child may be silent. What it does itself counts, in seconds of CPU and of sleep; what the machine does to it is no verdict on a source."""

from __future__ import annotations

import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

CPU_SECONDS = 60.0
"""Of work without a decoded frame, asked for or not: then a child hangs."""
IDLE_SECONDS = 60.0
"""Of sleep without one, as in a deadlock: the same."""
MACHINE_SECONDS = 3600.0
"""Of silence in which a child did neither so long: it got no CPU, was stopped, or waits for a disk, and the machine is at fault."""
LOOK_SECONDS = 1.0
"""Of silence between two looks. Looks are what is counted: where all processes stand still, the one that looks does too."""
_ALIVE_SECONDS = 5.0
"""So often a child says that it goes on, while no frame that it decodes is asked for."""
_SLEEPS = {"S"}
"""State of a thread that nothing keeps from going on but what it waits for itself. Runnable (R), stopped (T) and waiting for a disk (D) are others."""


class Patience:
    """Looks at a child while it says nothing."""

    def __init__(self, pid: int) -> None:
        self._pid, self._idle, self._silent = pid, 0.0, 0.0
        self._before: float | None = None

    def look(self) -> tuple[str, str] | None:
        """To be called after each `LOOK_SECONDS` of silence.

        Returns:
            Nothing while there is patience, then what it ends with, and why: `hang` (the source's fault, perhaps) or `machine`.
        """
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):  # a child that died, or a thread that ended
            spent = cpu_seconds(self._pid)
            self._before = spent if self._before is None else self._before
            self._silent += LOOK_SECONDS
            self._idle += LOOK_SECONDS * (_states(self._pid) == _SLEEPS)
            return self._end(spent - self._before)
        return None

    def _end(self, worked: float) -> tuple[str, str] | None:
        if worked >= CPU_SECONDS:
            return "hang", f"no frame for {worked:.0f} s of CPU"
        if self._idle >= IDLE_SECONDS:
            return "hang", f"no frame for {self._idle:.0f} s in which its decoder did nothing"
        if self._silent >= MACHINE_SECONDS:
            kept = "too little CPU is left for it, it was stopped, or a disk does not answer"
            return (
                "machine",
                f"no frame for {self._silent:.0f} s, of which its decoder worked {worked:.0f} s and slept {self._idle:.0f} s: {kept}",
            )
        return None


def cpu_seconds(pid: int) -> float:
    """What a process has taken so far.

    Raises:
        psutil.NoSuchProcess: It is gone.
    """
    spent = psutil.Process(pid).cpu_times()
    return spent.user + spent.system


def _states(pid: int) -> set[str]:
    """Of a process's threads: decord's first one sleeps while another works."""
    return {file.read_text().rpartition(")")[2].split()[0] for file in Path(f"/proc/{pid}/task").glob("*/stat")}


class Alive:
    """Tells the parent now and then that the child goes on: a far start may take a busy machine minutes, and is no hang."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._told = pipe, time.monotonic()

    def tell(self) -> None:
        """To be called for every frame that is decoded."""
        if time.monotonic() - self._told > _ALIVE_SECONDS:
            self._pipe.send(("alive", None))
            self._told = time.monotonic()
