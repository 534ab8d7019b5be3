"""The proofs at a size that ends in seconds: only that the error falls far."""

import json

import numpy as np
import pytest
import torch

from lato.edits import Edit, Expression
from tests.proofs import prove_predictor, prove_tokenizer
from tests.proofs.pairs import People, mean_shifts, shift_of
from tests.proofs.people import place_on_canvas, synthetic_landmarks


@pytest.mark.slow
def test_the_tokenizer_learns_and_goes_on_where_it_stopped(tmp_path):
    train, held_out = synthetic_landmarks(range(40), 4), synthetic_landmarks(range(1000, 1008), 4)
    data = {"train_synthetic": train, "train_clips": train, "held_out_synthetic": held_out, "held_out_clips": held_out}
    small = {"widths": (32, 32), "code_dim": 16, "num_codes": 128, "batch": 8, "lr": 3e-3, "save_every": 50}
    curve = prove_tokenizer.train(prove_tokenizer.Recipe(steps=100, eval_every=50, **small), data, tmp_path / "whole")
    assert curve[-1]["synthetic_px"] < 0.25 * curve[0]["synthetic_px"]
    recipe = prove_tokenizer.Recipe(steps=100, eval_every=50, **small)
    state = torch.load(tmp_path / "whole/state.pt", weights_only=True)
    assert state["step"] == 100 and prove_tokenizer.train(recipe, data, tmp_path / "whole") == curve
    assert len((tmp_path / "whole/curve.jsonl").read_text().splitlines()) == 3


def test_the_releases_reset_comes_undone_and_ours_does_not():
    """A code that nothing is assigned to: overwritten at update 41, and back at update 42."""
    torch.manual_seed(0)
    vectors = torch.randn(64, 8)
    kept = {}
    for name, quantizer in (("release", prove_tokenizer.ReleaseQuantizer(16, 8)), ("ours", prove_tokenizer.Quantizer(16, 8, 0.99, 41))):
        quantizer.initialise(vectors)
        quantizer.codebook[3] = quantizer.code_sum[3] = 100.0  # far from all
        for _ in range(41):
            quantizer.update(quantizer.statistics(vectors, quantizer.nearest(vectors)))
        assert quantizer.codebook[3].abs().max() < 10, name
        away = torch.full_like(vectors, -50.0)  # the next batch has nothing near the revived code
        quantizer.update(quantizer.statistics(away, quantizer.nearest(away)))
        kept[name] = bool(quantizer.codebook[3].abs().max() < 10)
    assert kept == {"release": False, "ours": True}


@pytest.mark.slow
def test_the_predictors_loss_falls_and_it_is_judged(tmp_path):
    people = People(12, 2)
    recipe = prove_predictor.Recipe(people=12, held_out=2, steps=30, batch=4, lr=1e-2, num_layers=1, eval_every=30, judged=2)
    module, curve = prove_predictor.train(recipe, people, tmp_path)
    assert curve[-1]["held_out"] < 0.8 * curve[0]["held_out"]
    result = prove_predictor.judge(recipe, module, people, tmp_path)
    assert result["valid"]["predictor, grammar"] == 2 and result["valid"]["predictor"] <= 2
    assert set(result["errors"]) == {"copy", "mean shift", "predictor", "predictor, grammar"}
    assert json.loads((tmp_path / "judged.json").read_text())["samples"] == 2


def test_the_baselines_are_what_they_say():
    people = People(8, 1)
    pairs = [people.read(row) for row in people.split("train")]
    shifts = mean_shifts(pairs)
    for pair in pairs[:5]:
        same = [other.landmarks[1] - other.landmarks[0] for other in pairs if other.meta.edit == pair.meta.edit]
        assert np.allclose(shift_of(pair.meta.edit, shifts), np.mean(same, axis=0))
    turn, smile = np.ones((68, 2)), np.full((68, 2), 2.0)
    parts = {Edit(yaw=30): turn, Edit(expression=Expression.HAPPY): smile}
    assert np.array_equal(shift_of(Edit(expression=Expression.HAPPY, yaw=30), parts), turn + smile)
    assert {row["key"][:6] for row in people.split("train")}.isdisjoint(row["key"][:6] for row in people.split("val"))


def test_a_face_lies_on_its_canvas():
    points = synthetic_landmarks(range(1), 1)[0] * 0.3 + [700, 90]
    placed = place_on_canvas(points)
    assert placed.min() > 50 and placed.max() < 462
    assert (placed.max(0) - placed.min(0)).max() == pytest.approx(512 / 1.8, abs=0.1)
