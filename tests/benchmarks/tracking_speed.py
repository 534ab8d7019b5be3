"""What tracking costs beside a training loop: `python -m tests.benchmarks.tracking_speed`.

The loop writes a line of 30 numbers every half second, as the engine does; the driver's threads log them to sqlite. What is measured is the processor time
of those threads: it is the most that a loop can lose to them, even one that has no other processor, and it is hardly disturbed by what else runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import tempfile
import time
from pathlib import Path

from infra.tracking import default_uri, open_run
from training.follow import Follower

STEP_SECONDS, STEPS, NUMBERS = 0.5, 60, 30


def rows() -> list[tuple[str, str]]:
    """(what, figure) of the table in the docs."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):  # the follower prints
        folder = Path(scratch)
        run = open_run(default_uri(scratch), "speed", "speed", f"{scratch}/backlog")
        run.metrics({"warm up": 0.0})
        follower = Follower("speed", folder, run)
        follower.start()
        time.sleep(10 * STEP_SECONDS)  # the first sending imports and makes what the later ones use
        own, whole = time.thread_time(), _process_seconds()
        for step in range(STEPS):
            time.sleep(STEP_SECONDS)
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(
                    json.dumps({"time": time.time(), "step": step, **{f"number_{at}": at / (step + 1) for at in range(NUMBERS)}}) + "\n"
                )
        used = (_process_seconds() - whole) - (time.thread_time() - own)
        follower.finish()
        run.close()
    per_step = used / STEPS
    return [
        (f"processor time of tracking, a line of {NUMBERS} numbers", f"{1000 * per_step:.1f} ms"),
        (f"as a share of a step of {STEP_SECONDS} s", f"{100 * per_step / STEP_SECONDS:.2f} %"),
    ]


def _process_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    for what, figure in rows():
        print(f"{figure:>8}  {what}")
