"""Attempts: what was in flight, told to storage before the work starts, so that a death can be laid to the sources that were there.

A mark is a file that names segments. A bundle that nothing is held against is marked as a whole; what was in flight at a death is marked alone, as its
turn comes. A segment's attempts are the marks that name it; they are let go when every source has its verdict.
"""

from __future__ import annotations

import json
import os
from collections import Counter

from infra.storage import commit, delete, join, list_files, read_bytes


def count_attempts(work: str) -> Counter[str]:
    """Fingerprint -> how often it was about to be looked at."""
    return Counter(name for uri in list_files(join(work, "attempts"), ".json") for name in json.loads(read_bytes(uri)))


def mark(work: str, fingerprints: list[str]) -> str:
    """Says that these are about to be looked at; returns the mark, to be deleted where the machine was at fault."""
    uri = join(work, "attempts", f"{os.urandom(12).hex()}.json")
    commit(uri, json.dumps(fingerprints).encode())
    return uri


def clear_attempts(work: str) -> None:
    """Deletes all marks."""
    for uri in list_files(join(work, "attempts"), ".json"):
        delete(uri)
