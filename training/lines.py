"""`metrics.jsonl`: a line a step, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.meter import rounded

Report = Callable[[dict[str, Any]], None]
"""Takes one line of metrics; called on rank 0."""


def line_writer(path: Path) -> Report:
    """A report that appends JSON lines to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def report(values: Mapping[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **rounded(values)})
        try:
            _append(path, line.encode() + b"\n")
        except OSError as error:  # a full disk does not end a training: the line goes where a person or a log collector sees it
            with contextlib.suppress(OSError):  # it may be on the same disk
                print(f"{path}: {error.strerror}; not written: {line}", file=sys.stderr, flush=True)

    return report


def _append(path: Path, line: bytes) -> None:
    """Writes a line whole or not at all: half of one would make one line of it and the next, and both be lost."""
    with path.open("ab", buffering=0) as file:
        size, written = file.tell(), 0
        try:
            while written < len(line):  # a disk that fills takes a part first, and refuses the rest
                written += file.write(line[written:])
        except OSError:
            file.truncate(size)
            raise
