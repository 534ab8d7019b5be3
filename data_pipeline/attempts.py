"""Attempts: what was in flight, told to storage before the work starts, so that a worker's death can be laid to the sources that were there.

A mark is a file that names segments, and the run that they are looked at in; it goes when the work ends, in whatever way it can be seen to end. What a
living driver finds of its own run when a worker has died counts as an attempt; what a driver that died itself left behind counts for nothing. A bundle
that nothing is held against is marked as a whole; what was in flight at a death is marked alone, as its turn comes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infra.addresses import join
from infra.state import read_json
from infra.storage import commit, delete, list_files


@contextmanager
def in_flight(work: str, run: str, fingerprints: list[str]) -> Iterator[None]:
    """Says that these are being looked at, until the block ends: only a death leaves the mark."""
    uri = join(work, "attempts", f"{run}-{os.urandom(12).hex()}.json")
    commit(uri, json.dumps(fingerprints).encode())
    try:
        yield
    finally:
        delete(uri)


def take_marked(work: str, run: str, fingerprints: set[str]) -> set[str]:
    """Which of these were in flight when their worker died; deletes its marks. All of a mark are of one job. Others work on meanwhile: a mark that is gone
    when it is read was of one whose end was seen."""
    found: set[str] = set()
    for uri in list_files(join(work, "attempts"), ".json"):
        if uri.rsplit("/", 1)[-1].startswith(f"{run}-"):
            with suppress(FileNotFoundError):
                named = fingerprints.intersection(read_json(uri))
                if named:
                    found |= named
                    delete(uri)
    return found


def clear_attempts(work: str) -> None:
    """Deletes all marks: those that runs which were killed have left."""
    for uri in list_files(join(work, "attempts"), ".json"):
        delete(uri)
