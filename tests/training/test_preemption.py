"""A machine that is about to be taken away: the ranks save, the machine goes, and training ends on another."""

import json
import os
import subprocess
import sys

import pytest

from tests.training.test_engine import lines
from tests.training.test_stages import home, job  # noqa: F401 - a fixture


@pytest.mark.slow
def test_ranks_save_when_their_machine_will_be_taken_away_and_go_on_from_there_on_another(home, small, tmp_path):  # noqa: F811
    given = job("tokenizer", tmp_path / "run", home, small, steps=60, global_batch=2, checkpoint_every=10**6, eval_every=60)
    (tmp_path / "job.json").write_text(given.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.preemption", str(tmp_path / "job.json"), str(tmp_path)],
        env=os.environ | {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    (saved,) = told["saved"]
    assert 5 <= saved < 60
    steps = [line["step"] for line in lines(tmp_path / "run") if "loss" in line]
    until_gone = next((place for place, step in enumerate(steps) if step != place + 1), len(steps))
    assert until_gone >= saved
    assert steps[until_gone:] == list(range(saved + 1, 61)), "it went on from another checkpoint than the one saved on notice"
