"""What is measured, or ends, in a process of its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def alone(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`call(*args, **kwargs)` in a new process.

    Python's memory is counted so: where other threads allocate meanwhile, as Ray's do in a test's process, `tracemalloc.stop` of Python 3.11 ends the
    process now and then (github.com/python/cpython/issues/128679).
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(call, *args, **kwargs).result()
