"""What a job shows on the terminal: plain lines that a person can read, a progress line with rate and ETA, tables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")
console = Console(highlight=False, soft_wrap=True)
_EVERY = 5.0
"""Seconds between two progress lines of one task."""


def say(text: str) -> None:
    """Prints one line at once, also into a pipe."""
    console.print(text, markup=False)


def heading(text: str) -> None:
    """Prints a stage's heading."""
    console.print(f"\n[bold]{text}[/bold]")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table; numbers are aligned to the right."""
    view = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        view.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        view.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    console.print(view)


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


class Progress:
    """Counts work done and now and then prints a line: how much, how much waits, how fast, how long still. Set `done` to what stood before.

    One that is `quiet` says nothing of work that ends before a line is due: of stages that have next to nothing to do in most runs.
    """

    def __init__(self, name: str, total: int, unit: str, quiet: bool = False) -> None:
        self.name, self.total, self.unit, self._quiet = name, total, unit, quiet
        self.done = self._here = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Adds finished work."""
        self.done += count
        self._here += count
        now = time.monotonic()
        if now - self._last >= _EVERY or (self.done == self.total and not self._quiet):
            self._last, self._quiet = now, False
            rate = self._here / max(now - self._start, 1e-6)
            speed = f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
            waiting = self.total - self.done
            left = f", {waiting} waiting, {duration(waiting / rate)} left" if waiting > 0 and rate else ""
            say(f"  {self.name}: {self.done}/{self.total} {self.unit}, {speed}{left}")


def each(name: str, items: Sequence[T], unit: str) -> Iterator[T]:
    """The items one after another, with the progress of what is done with them where that takes long."""
    progress = Progress(name, len(items), unit, quiet=True)
    for item in items:
        yield item
        progress.advance()
