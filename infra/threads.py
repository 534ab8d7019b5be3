"""Several things at a time in threads of this process: for what waits for disks and networks, or lets go of the interpreter while it computes."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def in_threads(work: Callable[[J], R], jobs: Iterable[J], at_once: int, ahead: int) -> Generator[R, None, None]:
    """`work(job)` of each job, in their order; an error is raised when its job's turn has come.

    Who stops early (at an error, Ctrl-C, by `close`) waits for nothing, nor does the process at its end: no other job is begun, and threads in one are
    daemons, as it may take hours. A pool of the standard library would be waited for.

    Args:
        work: What to do; called in threads.
        jobs: To what.
        at_once: Threads.
        ahead: Jobs that may have been begun or be done and not asked for: one that takes long keeps the others waiting only after so many.
    """
    given: SimpleQueue[tuple[J, Future[R]] | None] = SimpleQueue()
    waiting: deque[Future[R]] = deque()
    left = iter(jobs)
    for _ in range(at_once):
        threading.Thread(target=_serve, args=(work, given), daemon=True, name="in_threads").start()
    try:
        while True:
            for job in itertools.islice(left, ahead - len(waiting)):
                waiting.append(Future())
                given.put((job, waiting[-1]))
            if not waiting:
                return
            yield waiting[0].result()
            waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(at_once):
            given.put(None)


def _serve(work: Callable[[J], R], given: SimpleQueue[tuple[J, Future[R]] | None]) -> None:
    while one := given.get():
        job, future = one
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(work(job))
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)
