"""The proof's machinery on a world of a few people: it learns at all, and an interrupted run ends as one that was not."""

import json

import cv2
import pytest
import torch

from tests.proofs import dit_page, prove_dit
from tests.proofs.dit_world import Instruments, load_world, train_tokenizer
from tests.proofs.prove_dit import Kit, train


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    torch.set_num_threads(1)
    world = load_world(tmp_path_factory.mktemp("world"), people=10, pictures=4, held_out=2)
    tokenizer, _ = train_tokenizer(world, 3, 0.0)
    return Kit(world, Instruments(world.train, torch.zeros(68, 2)).eval(), {"plain": tokenizer, "zeros": tokenizer})


@pytest.mark.slow
def test_the_loss_falls_far_and_a_run_goes_on_where_it_stopped(kit, tmp_path):
    model, curve = train("mapped", 0, 48, kit, every=12, part=tmp_path / "whole", pairs=0)
    assert curve[-1]["loss"] < 0.75 * curve[0]["loss"]
    part = tmp_path / "part"

    class Stopped(RuntimeError):
        pass

    def stop(*_, **__):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", stop)  # said once the state is kept
        with pytest.raises(Stopped):
            train("mapped", 0, 48, kit, every=12, part=part, pairs=0)
    again, _ = train("mapped", 0, 48, kit, every=12, part=part, pairs=0)
    assert all(torch.equal(one, other) for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.slow
def test_every_arm_is_measured_and_the_page_says_what_came_out(kit, tmp_path, monkeypatch):
    for name, value in {"PAIRS": 4, "CURVE_PAIRS": 2, "SHOWN": 2}.items():
        monkeypatch.setattr(prove_dit, name, value)
        monkeypatch.setattr(dit_page, name, value, raising=False)
    monkeypatch.setattr(prove_dit, "prepare", lambda _: kit)
    instruments = {"landmarks_px": 3.0, "same_person": 0.9, "other_person": 0.1, "ordered_rightly": 0.99}
    (tmp_path / "instruments.json").write_text(json.dumps(instruments))
    (tmp_path / "plan.json").write_text(json.dumps({"minutes": 1.0, "seeds": 1, "steps": 2}))
    for name in kit.tokenizers:
        (tmp_path / f"tokenizer-{name}.json").write_text(json.dumps({"held_out_px": 2.0}))
    for arm in prove_dit.ARMS:
        prove_dit.run(arm, 0, 2, tmp_path)
    result = json.loads((tmp_path / "mapped-0.json").read_text())
    assert [point["step"] for point in result["curve"]] == [1, 2]
    assert set(result["guidance"]) == {"learned", "zeros"} and set(result["noise"]) == {"0.0", "2.0", "5.0", "10.0"}
    assert result["noise"]["0.0"] == result["final"] and result["guidance"]["learned"]["1.0"] != result["guidance"]["learned"]["6.0"]
    (tmp_path / "mapped-0.json").touch()
    before = (tmp_path / "mapped-0.json").read_bytes()
    prove_dit.run("mapped", 0, 2, tmp_path)  # is there: nothing is done
    assert (tmp_path / "mapped-0.json").read_bytes() == before
    dit_page.write_page(tmp_path, tmp_path / "proof_dit.md", kit)
    page = (tmp_path / "proof_dit.md").read_text()
    assert "MINUTES=1 SEEDS=1" in page and "6 runs of 2 steps" in page and "The order found, worst first" in page
    assert f"| {result['final']['le']:.1f} |" in page
    assert cv2.imread(str(tmp_path / "proof_dit_edits.png")).shape == (18 + 2 * 96, 9 * 96, 3)
    assert (tmp_path / "proof_dit_curves.png").is_file()
