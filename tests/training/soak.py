"""Every stage at every ZeRO stage through Ray Train, a rank killed after each checkpoint; the end is compared with that of a run that was left alone.

Run: `make soak-training` (about half an hour).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from infra.console import say
from infra.errors import UserError
from infra.runtime import RuntimeConfig, start_ray, stop_ray
from infra.tracking import default_uri
from tests.training.test_engine import state
from tests.training.test_stages import inputs_of, job, make_home
from tests.training.versions import publish
from training import checkpoint
from training.launch import train
from training.stage_factory import Job

KILLS = 2


def main() -> int:
    """Runs the matrix; returns how many runs ended otherwise than they should."""
    start_ray(RuntimeConfig(num_cpus=2))
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        publish(folder / "v1", {"train": 20, "val": 6, "test": 4})
        home = make_home(folder, folder / "v1")
        for stage in ("tokenizer", "predictor", "dit"):
            for zero in (0, 1, 2, 3):
                started = time.monotonic()
                runs = [
                    job(stage, folder / f"{stage}-{zero}-{name}", home, folder / "v1", zero_stage=zero, steps=8)
                    for name in ("whole", "killed")
                ]
                train(runs[0], inputs_of(runs[0]), default_uri(scratch), "soak")
                kills = _disturbed(runs[1], scratch, random.Random(f"{stage}{zero}"))
                same = _equal(state(runs[0].folder), state(runs[1].folder))
                failed += not same
                say(f"{stage} ZeRO-{zero}: {kills} kills, {'equal' if same else 'DIFFERENT'}, {time.monotonic() - started:.0f} s")
    stop_ray()
    say(f"{12 - failed} of 12 end bit for bit as if they had not been killed")
    return failed


def _disturbed(given: Job, work: str, draw: random.Random) -> int:
    """Trains to the end though a rank is killed after the first and the second checkpoint; returns the number of kills."""
    kills = 0
    while True:
        over = threading.Event()
        killer = threading.Thread(target=_kill_one, args=(given, kills + 1, over, draw)) if kills < KILLS else None
        if killer:
            killer.start()
        try:
            train(given, inputs_of(given), default_uri(work), "soak")
            return kills
        except UserError:
            if kills == KILLS:
                raise  # nobody was killed
            kills += 1
        finally:
            over.set()
            if killer:
                killer.join()


def _kill_one(given: Job, checkpoints: int, over: threading.Event, draw: random.Random) -> None:
    while not over.wait(0.01):
        if len(checkpoint.markers(given.checkpoint_folder)) >= checkpoints:
            victims = sorted((Path(given.folder) / "ranks").glob("rank-*.json"))
            if len(victims) == given.engine.workers:
                os.kill(json.loads(draw.choice(victims).read_text())["pid"], signal.SIGKILL)
                return


def _equal(one: tuple[int, dict[str, torch.Tensor]], other: tuple[int, dict[str, torch.Tensor]]) -> bool:
    return (
        one[0] == other[0]
        and one[1].keys() == other[1].keys()
        and all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())
    )


if __name__ == "__main__":
    sys.exit(main())
