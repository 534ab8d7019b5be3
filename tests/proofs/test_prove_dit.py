"""The proof's machinery on a world of a few people: it learns at all, and an interrupted run ends as one that was not."""

import numpy as np
import pytest
import torch

from tests.proofs.dit_world import Instruments, load_world, train_tokenizer
from tests.proofs.prove_dit import ARMS, Kit, edit, measure, train


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    torch.set_num_threads(1)
    world = load_world(tmp_path_factory.mktemp("world"), people=10, pictures=4, held_out=2)
    tokenizer, _ = train_tokenizer(world, 3, 0.0)
    return Kit(world, Instruments(world.train, torch.zeros(68, 2)).eval(), {"plain": tokenizer, "zeros": tokenizer})


@pytest.mark.slow
def test_the_loss_falls_far_and_a_run_goes_on_where_it_stopped(kit, tmp_path):
    model, curve = train("mapped", 0, 40, kit, every=20, part=tmp_path / "whole", pairs=0)
    assert curve[-1]["loss"] < 0.6 * curve[0]["loss"]
    part = tmp_path / "part"

    class Stopped(RuntimeError):
        pass

    def stop(*_):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", stop)  # said once the state is kept
        with pytest.raises(Stopped):
            train("mapped", 0, 40, kit, every=20, part=part, pairs=0)
    again, _ = train("mapped", 0, 40, kit, every=20, part=part, pairs=0)
    assert all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_drawn_and_measured_under_guidance(kit, arm):
    model, curve = train(arm, 0, 2, kit, every=1, pairs=2)
    assert len(curve) == 2
    for null in ("learned", "zeros"):
        values = measure(model, arm, kit, 2, scale=3.0, noise_px=2.0, null=null)
        assert all(np.isfinite(value) for value in values.values())
    same = edit(model, arm, kit, 2)[1]
    assert torch.equal(same, edit(model, arm, kit, 2)[1])
    assert same.shape == (2, 3, 32, 32)
