"""When checkpoints are saved: by the clock, and beside the steps that follow."""

import json
import time
from pathlib import Path

import pytest

from tests.training.test_engine import lines, run
from tests.training.toy import BASE, train_all
from training import checkpoint

pytestmark = pytest.mark.slow


def test_a_run_saves_by_the_clock_too(tmp_path):
    config = BASE | {"steps": 12, "checkpoint_every": 50000, "keep": 50}
    run([(tmp_path / "clock", config | {"save_minutes": 1e-9}), (tmp_path / "none", config)])  # it is time after every step
    clock, none = (
        [marker["step"] for marker in checkpoint.markers(str(tmp_path / name / "checkpoints")).values()] for name in ("clock", "none")
    )
    assert none == [12]
    assert len(clock) > 2 and clock[-1] == 12


def _slow_store(rank, world, jobs):
    """What is written waits until three more steps are done; were they to wait for it, it would give up and say so."""
    folder, config, *_ = jobs[0]
    real = checkpoint.Checkpoints._write

    def write(self, *given):
        step = self._writing.step
        until = time.monotonic() + 120
        while step < config["steps"] and json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])["step"] < step + 3:
            if time.monotonic() > until:
                self._writing.error = "no step was done meanwhile"
                return
            time.sleep(0.01)
        real(self, *given)

    checkpoint.Checkpoints._write = write
    train_all(rank, world, jobs)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path):
    run([(tmp_path, BASE | {"steps": 20, "checkpoint_every": 7, "keep": 9})], target=_slow_store)
    assert [alarm for line in lines(tmp_path) for alarm in line.get("alarms", [])] == []
    assert [marker["step"] for marker in checkpoint.markers(str(tmp_path / "checkpoints")).values()] == [7, 14, 20]
