"""What tracking costs a training loop in the same process: `python -m tests.benchmarks.tracking_speed`.

The loop is 0.5 s of work a step (hashing: one thread, without Python's lock, as a model's kernels), with a line of 30 numbers each. It runs with and
without tracking in turns, so that a busy machine slows both alike. Beside the loop's time, the processor time of the threads that track is held against
that of the loop: that is hardly disturbed by what else runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

from infra.tracking import Run, default_uri, open_run
from training.follow import Follower

STEP_SECONDS, STEPS, ROUNDS = 0.5, 20, 5


def rows() -> list[tuple[str, str]]:
    """(what, figure) of the table in the docs."""
    alone, tracked, shares = [], [], []
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):  # the follower prints
        run = open_run(default_uri(scratch), "speed", "speed", f"{scratch}/backlog")
        _tracked(Path(scratch) / "warm-up", run)
        for number in range(ROUNDS):
            alone.append(_loop(STEPS, None)[0])
            seconds, own, others = _tracked(Path(scratch) / str(number), run)
            tracked.append(seconds)
            shares.append(others / own)
        run.close()
    slower = statistics.median(tracked) / statistics.median(alone) - 1
    return [
        (f"loop of {STEP_SECONDS} s steps, a line of 30 numbers each, tracked in sqlite: slower by", f"{100 * slower:.2f} %"),
        ("processor time of tracking over that of the loop", f"{100 * statistics.median(shares):.2f} %"),
    ]


def _tracked(folder: Path, run: Run) -> tuple[float, float, float]:
    folder.mkdir()
    follower = Follower("speed", folder, run)
    follower.start()
    result = _loop(STEPS, folder / "metrics.jsonl")
    follower.finish()
    return result


def _loop(steps: int, lines: Path | None) -> tuple[float, float, float]:
    """Seconds that passed, processor seconds of this thread, and of all others of this process."""
    work = bytes(_bytes_a_step())
    started, own, whole = time.perf_counter(), time.thread_time(), _process_seconds()
    for step in range(steps):
        hashlib.sha256(work).digest()
        if lines:
            with lines.open("a") as file:
                numbers = {f"number_{index}": index / (step + 1) for index in range(30)}
                counter = time.time_ns() // 1_000_000  # steps rise over all rounds, so that every line is sent
                file.write(json.dumps({"time": time.time(), "step": counter, **numbers}) + "\n")
    mine = time.thread_time() - own
    return time.perf_counter() - started, mine, _process_seconds() - whole - mine


@functools.cache
def _bytes_a_step() -> int:
    """How much is hashed in a step's time here."""
    size = 64 << 20
    started = time.thread_time()
    hashlib.sha256(bytes(size)).digest()
    return round(size * STEP_SECONDS / (time.thread_time() - started))


def _process_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    for what, figure in rows():
        print(f"{figure:>8}  {what}")
