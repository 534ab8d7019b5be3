"""Reads the batches of coming steps in threads while the model computes.

Threads, not processes: JPEG decoding, resizing and tensor work let go of the interpreter's lock, nothing is copied between processes, and a reader may
hold what cannot be sent to one (docs/benchmarks_training.md has one measured against the other). What a step sees is a function of the step: neither `ahead` nor
the number of threads changes it, because every draw of a sample has a generator of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from infra.errors import UserError
from training.mixture import Sample
from training.stage import Batch

MicroBatch = tuple[list[Sample], Batch]


class ReadFailed(Exception):
    """A batch could not be read; says which step and samples."""


class Loader:
    """The steps' batches, in order.

    Args:
        read: Makes a batch of samples; called from several threads at once.
        plan: The micro-batches of a step.
        first_step: The first to read.
        last_step: The one before which to stop, as in `range(first_step, last_step)`.
        ahead: Steps read while the consumer works on another; 0 reads in the consumer's thread, when asked.
        threads: That read side by side.
    """

    def __init__(
        self,
        read: Callable[[list[Sample]], Batch],
        plan: Callable[[int], list[list[Sample]]],
        first_step: int,
        last_step: int,
        ahead: int,
        threads: int = 2,
    ) -> None:
        self._read, self._plan, self._ahead = read, plan, ahead
        self._steps = iter(range(first_step, last_step))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader") if ahead else None
        self._waiting: deque[tuple[int, list[tuple[list[Sample], Future[Batch]]]]] = deque()
        self.waited = 0.0
        """Seconds that the consumer waited for the last step's batches."""

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self

    def __next__(self) -> list[MicroBatch]:
        """The micro-batches of the next step.

        Raises:
            UserError: Its samples could not be read, and the user can mend it.
            ReadFailed: Its samples could not be read.
        """
        started = time.monotonic()
        try:
            if self._pool is None:
                step = next(self._steps)
                return [(samples, self._finish(step, samples, None)) for samples in self._plan(step)]
            self._fill(self._ahead + 1)
            if not self._waiting:
                raise StopIteration
            step, parts = self._waiting.popleft()
            return [(samples, self._finish(step, samples, future)) for samples, future in parts]
        except BaseException:
            self.close()
            raise
        finally:
            self.waited = time.monotonic() - started

    def close(self) -> None:
        """Ends the threads; what was read ahead is dropped."""
        self._steps = iter(())
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, steps: int) -> None:
        """Starts reading until that many steps are under way."""
        assert self._pool is not None
        while len(self._waiting) < steps and (step := next(self._steps, None)) is not None:
            self._waiting.append((step, [(samples, self._pool.submit(self._quietly, samples)) for samples in self._plan(step)]))

    def _quietly(self, samples: list[Sample]) -> Batch:
        with torch.no_grad():  # gradients are on in every new thread
            return self._read(samples)

    def _finish(self, step: int, samples: list[Sample], future: Future[Batch] | None) -> Batch:
        try:
            return self._quietly(samples) if future is None else future.result()
        except Exception as error:
            keys = ", ".join(sample.key for sample in samples)  # steps are counted from 1 in all that is said
            kind: Any = UserError if isinstance(error, UserError) else ReadFailed
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            raise kind(f"step {step + 1}: samples could not be read ({keys}): {said}") from error
