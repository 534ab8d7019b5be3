"""Writes docs/proof_predictor.md, its curves and a grid of synthetic people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

from tests.proofs.prove_predictor import Recipe

DOCS = Path(__file__).parents[2] / "docs"
_KINDS = ("expression", "pose", "compound")


def write_page(recipe: Recipe, curve: list[dict[str, float]], result: dict[str, Any], grid: npt.NDArray[np.uint8]) -> None:
    """The page, from the held-out curve, what `judge` found, and the stage's own picture."""
    _draw(curve, result)
    cv2.imwrite(str(DOCS / "proof_predictor_faces.jpg"), cv2.cvtColor(grid, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    errors = {name: np.array(own) for name, own in result["errors"].items()}
    kinds = np.array(result["kinds"])
    rows = []
    for name, own in errors.items():
        by_kind = " | ".join(f"{own[kinds == kind].mean():.2f}" if (kinds == kind).any() else "-" for kind in _KINDS)
        valid = f"{result['valid'][name]} of {result['samples']}" if name in result["valid"] else "-"
        rows.append(f"| {name} | {valid} | {own.mean():.2f} ± {own.std() / np.sqrt(len(own)):.2f} | {by_kind} |")
    difference = errors["predictor"] - errors["mean shift"]
    margin, spread = float(difference.mean()), float(difference.std() / np.sqrt(len(difference)))
    verdict = (
        f"it beats the mean shift by {-margin:.2f} ± {spread:.2f} px"
        if margin < 0
        else f"it does **not** beat the mean shift at this size: it is {margin:.2f} ± {spread:.2f} px worse"
    )
    size = f"{result['parameters'] / 1e6:.2f} M parameters from scratch ({recipe.num_layers} layers of {recipe.hidden_size}"
    minutes = f"{curve[-1]['cpu_seconds'] / 60:.0f} CPU minutes"
    fall = f"{1 - errors['predictor'].mean() / errors['copy'].mean():.0%}"
    text = f"""# Proof: the predictor learns

`make prove-predictor` makes every figure here (one core, resumable; the run lies in `work/proofs/predictor`). All people are synthetic.

A Qwen2.5-VL of {size}, `compact` syntax, the committed tokenizer, 56 px
pictures), trained by the stage of `lato train predictor` for {recipe.steps:,} steps of {recipe.batch} on {result["train_samples"]:,} pairs of {recipe.people} people,
mirrored at random; {minutes}. Judged on {result["samples"]} pairs of {recipe.held_out} other people. Error is the mean absolute error of a coordinate in
px of the 512 canvas, ± its standard error; an answer that does not parse counts as no change.

| way | answers that parse | error, px | expression | pose | compound |
|---|---|---|---|---|---|
{chr(10).join(rows)}

- `copy` leaves the landmarks as they are. `mean shift` adds the mean displacement of all training pairs with the same edit (the sum of its parts' where there is none).
- The targets' poses hold a jitter of up to 2 degrees that no instruction says: {result["unknowable"]:.2f} px of every error here cannot be known.
- Decoded freely, {result["valid"]["predictor"]} of {result["samples"]} answers have the form; against `copy` the error falls by {fall};
  {verdict} (paired, decoded freely).

![curves](proof_predictor.png)

One held-out answer. Instruction: *{result["example"]["instruction"]}*. Reasoning (numbers are px, degrees after `turn`):

> {result["example"]["reasoning"]}

Held-out people: source with its landmarks, target with its own, target with the predicted ones (decoded freely).

![faces](proof_predictor_faces.jpg)
"""
    (DOCS / "proof_predictor.md").write_text(text)


def _draw(curve: list[dict[str, float]], result: dict[str, Any]) -> None:
    figure, (loss, error) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    loss.plot([point["step"] for point in curve], [point["held_out"] for point in curve], label="held-out cross-entropy")
    loss.set_title("cross-entropy of answers, nats a token", fontsize=10)
    decoded = [point for point in curve if "held_out/landmark_px" in point]
    error.plot(
        [p["step"] for p in decoded],
        [p["held_out/landmark_px"] for p in decoded],
        ".-",
        label="4 samples, decoded freely, where they parse",
    )
    for name, style in (("copy", ":"), ("mean shift", "--"), ("predictor", "-")):
        error.axhline(
            np.mean(result["errors"][name]), color="grey", linestyle=style, label=f"{name}, {result['samples']} samples, at the end"
        )
    error.axhline(result["unknowable"], color="tab:red", linewidth=0.8, label="cannot be known")
    error.set_title("landmark error, px", fontsize=10)
    for axes in (loss, error):
        axes.set_xlabel("steps")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(DOCS / "proof_predictor.png", dpi=110)
    plt.close(figure)
