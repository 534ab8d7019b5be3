"""Trying again: only what another try may mend, a few times, waiting longer each time and never all at one moment."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")
_PASSING = ("HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError", "IncompleteRead")
"""Names of the classes by which the clients of object stores and of HTTP mean that a connection failed; which clients are there depends on the sources."""


def passes(error: BaseException) -> bool:
    """Whether another try may go well: a server that is busy or failed within (408, 429, 5xx), a connection that failed, no answer in time. What is not
    there, not allowed, or wrong in itself stays so.
    """
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, (ConnectionError, TimeoutError, http.client.HTTPException)):
        return True
    if any(kind.__name__ in _PASSING for kind in type(error).__mro__):
        return True
    cause = getattr(error, "reason", None) or error.__cause__  # urllib says why; a store's client raises from what it got
    return isinstance(cause, Exception) and passes(cause)


def _status(error: BaseException) -> int | None:
    """HTTP status: of urllib's error, of aiohttp's, of botocore's."""
    answer: Any = getattr(error, "response", None)
    told = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    found = [value for value in (told, getattr(error, "code", None), getattr(error, "status", None)) if isinstance(value, int)]
    return found[0] if found else None


def wait(failed: int, first: float = 1.0, longest: float = 30.0) -> None:
    """Sleeps after the `failed`th failure (from 1): `first` seconds, twice as long each time, at most `longest`; of that a random part from half up."""
    time.sleep(min(longest, first * 2 ** (failed - 1)) * random.uniform(0.5, 1.0))


def retried(act: Callable[[], R], tries: int = 4, first: float = 1.0) -> R:
    """What `act` returns, which is tried again while its error `passes`.

    Args:
        act: May be done again from its beginning.
        tries: In all.
        first: Seconds before the second; see `wait`.
    """
    for failed in range(1, tries):
        try:
            return act()
        except Exception as error:
            if not passes(error):
                raise
        wait(failed, first)
    return act()
