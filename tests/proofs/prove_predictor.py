"""`make prove-predictor`: a small predictor from scratch, on synthetic people it never saw, against changing nothing and against the instruction's mean shift.

Writes docs/proof_predictor.md. The run goes to work/proofs/predictor; a second call goes on where the first ended.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lato.pairs import FacePair
from lato.predictor import LandmarkPredictor, PredictorSettings
from tests.proofs.pairs import People, jitter_error, mean_shifts, shift_of
from training.config import EngineConfig
from training.mixture import Mixture
from training.stages.predictor import PredictorConfig, PredictorStage

WORK = Path("work/proofs/predictor")


@dataclass(frozen=True)
class Recipe:
    """The training."""

    people: int = 800
    held_out: int = 40
    steps: int = 4000
    batch: int = 8
    lr: float = 3e-3
    hidden_size: int = 96
    num_layers: int = 3
    eval_every: int = 100
    judged: int = 240
    """Held-out samples that are decoded at the end, with the grammar and without."""


def make_stage(recipe: Recipe, people: People) -> PredictorStage:
    """The stage of `lato train predictor`, on these people."""
    config = PredictorConfig(
        syntax="compact", image_size=56, mirror=True, hidden_size=recipe.hidden_size, num_layers=recipe.num_layers, max_new_tokens=400,
        val_samples=32, decoded_samples=4, engine=EngineConfig(seed=0),
    )  # fmt: skip
    return PredictorStage(config, [people], Mixture([[row["key"] for row in people.split("train")]], [1.0], 0))  # type: ignore[list-item]


def train(recipe: Recipe, people: People, folder: Path) -> tuple[Any, list[dict[str, float]]]:
    """Trains from where `folder` stands to the end; returns the module and the held-out curve."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = make_stage(recipe, people)
    module: Any = stage.build()
    optimizer = torch.optim.AdamW(module.parameters(), recipe.lr, betas=(0.9, 0.99), weight_decay=0.01)
    step, seconds, curve = 0, 0.0, [{"step": 0, "cpu_seconds": 0.0, **stage.validate(module)}]
    if (folder / "state.pt").is_file():
        state = torch.load(folder / "state.pt", weights_only=True)
        module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, curve = state["step"], state["seconds"], state["curve"]
    while step < recipe.steps:
        started, done = time.process_time(), step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = (
                recipe.lr * min(1.0, (step + 1) / min(50, recipe.steps / 10)) * (1.0 if done < 0.4 else 1 - 0.95 * (done - 0.4) / 0.6)
            )
        loss = stage.loss(module, stage.read(stage.data.batch(step, recipe.batch))).per_sample.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, seconds = step + 1, seconds + time.process_time() - started
        if step % recipe.eval_every == 0 or step == recipe.steps:
            curve.append({"step": step, "cpu_seconds": seconds, "loss": float(loss.detach()), **stage.validate(module)})
            print({name: round(value, 3) for name, value in curve[-1].items()}, flush=True)
            state = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds, "curve": curve}
            torch.save(state, folder / "state.tmp")
            (folder / "state.tmp").replace(folder / "state.pt")
            (folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    return module, curve


def judge(recipe: Recipe, module: Any, people: People, folder: Path) -> dict[str, Any]:
    """Decodes held-out samples with and without the grammar. Errors are mean absolute px a sample; an answer that does not parse counts as no change."""
    pairs = [people.read(row) for row in people.split("val")]
    pairs = pairs[:: max(1, len(pairs) // recipe.judged)][: recipe.judged]
    shifts = mean_shifts([people.read(row) for row in people.split("train")])
    stage = make_stage(recipe, people)
    predictor = LandmarkPredictor(module.eval(), stage._processor, PredictorSettings("compact", 512, 56, 600))
    truth = np.stack([pair.landmarks[1] for pair in pairs])
    source = np.stack([pair.landmarks[0] for pair in pairs])
    errors = {
        "copy": _errors(source, truth),
        "mean shift": _errors(source + np.stack([shift_of(pair.meta.edit, shifts) for pair in pairs]), truth),
    }
    valid, predictions = {}, {}
    for name, constrained in (("predictor", False), ("predictor, grammar", True)):
        found = [
            prediction for start in range(0, len(pairs), 16) for prediction in _predict(predictor, pairs[start : start + 16], constrained)
        ]
        valid[name] = sum(prediction.landmarks is not None for prediction in found)
        placed = [pair.landmarks[0] if prediction.landmarks is None else prediction.landmarks for pair, prediction in zip(pairs, found)]
        errors[name], predictions[name] = _errors(np.stack(placed), truth), found
    example = {"instruction": pairs[0].meta.instruction, "reasoning": predictions["predictor"][0].reasoning}
    kinds = [pair.meta.edit.kind for pair in pairs]
    result = {
        "samples": len(pairs), "valid": valid, "errors": {name: own.tolist() for name, own in errors.items()}, "kinds": kinds,
        "unknowable": jitter_error(pairs), "train_samples": len(people.split("train")), "example": example,
        "parameters": sum(p.numel() for p in module.parameters()),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judged.json").write_text(json.dumps(result, indent=1))
    return result


def _predict(predictor: LandmarkPredictor, pairs: list[FacePair], constrained: bool) -> list[Any]:
    sources = np.stack([pair.landmarks[0] for pair in pairs])
    return predictor.predict([pair.source_image() for pair in pairs], sources, [pair.meta.instruction for pair in pairs], constrained)


def _errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.abs(found - truth).mean((1, 2))


def main() -> None:
    """Trains, judges and writes the page."""
    from tests.proofs.predictor_page import write_page

    torch.set_num_threads(1)
    recipe = Recipe()
    people = People(recipe.people, recipe.held_out)
    module, curve = train(recipe, people, WORK)
    if sys.argv[1:] != ["train"]:
        write_page(recipe, curve, judge(recipe, module, people, WORK), make_stage(recipe, people).pictures(module)["landmarks"])


if __name__ == "__main__":
    main()
