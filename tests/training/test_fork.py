"""A fork: weights, average and buffers of another run's newest checkpoint, everything else as at the start of a run."""

import pytest
import torch

from tests.training.test_engine import lines, run, state
from tests.training.toy import BASE
from training import resume_rules


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 3])
def test_a_fork_starts_with_the_weights_and_nothing_else(tmp_path, zero):
    first = tmp_path / "toy"
    config = BASE | {"zero_stage": zero, "ema": 0.9, "steps": 6, "decay_from": 1.0, "warmup": 1}
    run([(first, config)], world=1)
    fork = resume_rules.fork(first, "slow", {"config": {}})
    run([(fork, config | {"steps": 1, "lr": 1e-12, "weight_decay": 0.0})], world=1)  # at such a rate weights stay what they are
    (ended, before), (step, after) = state(first), state(fork)
    assert (ended, step) == (6, 1)
    names = [name.removeprefix("weight/") for name in before if name.startswith("weight/")]
    assert len(names) == 4
    for name in names:
        assert torch.allclose(before[f"weight/{name}"], after[f"weight/{name}"], atol=1e-9)
        average = before[f"ema/{name}"].lerp(before[f"weight/{name}"], 1 - 2 / 11)  # one update, as of a run's first step
        assert torch.allclose(average, after[f"ema/{name}"], atol=1e-7)
        assert not torch.allclose(before[f"exp_avg/{name}"], after[f"exp_avg/{name}"])
    assert after["buffer/moved"].tolist() == (before["buffer/moved"] + 1).tolist()
    told = lines(fork)
    assert [line["step"] for line in told] == [0, 1]
    assert told[0]["held_out"] == pytest.approx(lines(first)[-1]["held_out"], rel=1e-6)
