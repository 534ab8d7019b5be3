"""Writes docs/proof_tokenizer.md and its curves."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tests.proofs.prove_tokenizer import RUNS

DOCS = Path(__file__).parents[2] / "docs"


def write_page(curves: dict[str, list[dict[str, float]]], counts: dict[str, int]) -> None:
    """The page, from the runs' held-out curves and the number of faces in each part of the data."""
    _draw(curves)
    ours = curves["ours"][-1]
    faces = {part: counts[f"held_out_{part}"] for part in ("synthetic", "clips")}
    overall = sum(ours[f"{part}_px"] * count for part, count in faces.items()) / sum(faces.values())
    rows = []
    for name, curve in curves.items():
        recipe, last = RUNS[name], curve[-1]
        size = f"{recipe.widths[0]}, {recipe.widths[1]}; {recipe.num_codes:,} x {recipe.code_dim}"
        rows.append(
            f"| {name} | {size} | {last['step']:,} x {recipe.batch} | {last['synthetic_px']:.2f} | {last['clips_px']:.2f} | {last['used']:.1%} | "
            f"{last['perplexity']:,.0f} | {last['revived']:,.0f} | {last['cpu_seconds'] / 60:.1f} |"
        )
    text = f"""# Proof: the tokenizer learns

`make prove-tokenizer` makes every figure here (one core, resumable; runs lie in `work/proofs/tokenizer`). No picture is trained on or kept.

Trained on {counts["train_synthetic"]:,} faces of synthetic people and {counts["train_clips"]:,} of one real clip (franck). Held out are other people:
{counts["held_out_synthetic"]:,} synthetic faces of 300 others and {counts["held_out_clips"]:,} of two other real people (carphone, single_face).
The recipe is that of `training/stages/tokenizer.py`: AdamW, beta 0.25, moving averages of 0.99, small similarities as augmentation.

| run | widths; codes | steps x batch | held-out synthetic, px | held-out clips, px | codes used | perplexity | codes reset | CPU minutes |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Pixels are the mean absolute error of a coordinate on the 512 canvas; codes used are those that all held-out faces together use.

- **Under 1 px at small size:** over all held-out faces {_verdict(overall < 1)} ({overall:.2f} px); on synthetic people {_verdict(ours["synthetic_px"] < 1)} \
({ours["synthetic_px"]:.2f} px), on the two real people {_verdict(ours["clips_px"] < 1)} ({ours["clips_px"]:.2f} px).
- **Over 90 % of 1,024 codes used on held-out people:** {_verdict(ours["used"] > 0.9)} ({ours["used"]:.1%}).
- **The architecture at full size** (8,192 codes of 3,072): {_start_of(curves["full"], RUNS["full"].batch)}; that is the start of a training, not its end.

![curves](proof_tokenizer.png)

## The release's reset rule beside ours

`release` starts as `ours` and differs in the update alone: every 41st, the rows of codes whose average count never reached 1 are overwritten, but their sums and
counts stay, so that the next update computes the old row again ({_resets(curves["release"])}; `pytest tests/proofs` shows one coming undone). Ours looks at
the last 50 steps, moves row, sum and count together, and stops after 80 % of the steps: {curves["ours"][-1]["revived"]:,.0f} resets in all.

`release, own start` also starts its codes as the release does, on the first batch's first rows. Each is then assigned to itself at once, its count reaches 1 at
the first update, and the rule never touches it again: {_resets(curves["release, own start"])}.

{_compared(curves)} (on the same 512 held-out faces at most; one seed each).
"""
    (DOCS / "proof_tokenizer.md").write_text(text)


def _verdict(holds: bool) -> str:
    return "it holds" if holds else "it is missed"


def _start_of(curve: list[dict[str, float]], batch: int) -> str:
    first, last = curve[0], curve[-1]
    return (
        f"{last['step']:,.0f} steps of {batch} in {last['cpu_seconds'] / 60:.0f} CPU minutes bring the held-out error from "
        f"{first['synthetic_px']:.0f} to {last['synthetic_px']:.1f} px"
    )


def _compared(curves: dict[str, list[dict[str, float]]]) -> str:
    at = int(curves["release"][-1]["step"])
    said = []
    for name in ("ours", "release", "release, own start"):
        point = next(point for point in curves[name] if point["step"] == at)
        said.append(f"`{name}` uses {point['used']:.1%} of the codes and errs by {point['synthetic_px']:.2f} px")
    return f"After {at:,} steps of the same schedule " + ", ".join(said)


def _resets(curve: list[dict[str, float]]) -> str:
    count = curve[-1]["revived"]
    return f"{count:,.0f} rows were overwritten in this run" if count else "in this run none was overwritten"


def _draw(curves: dict[str, list[dict[str, float]]]) -> None:
    figure, (error, used, full) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for name, colour in (("ours", "tab:blue"), ("release", "tab:orange"), ("release, own start", "tab:green")):
        steps = [point["step"] for point in curves[name]]
        error.plot(steps, [point["synthetic_px"] for point in curves[name]], color=colour, label=f"{name}, synthetic")
        error.plot(steps, [point["clips_px"] for point in curves[name]], color=colour, linestyle="--", label=f"{name}, clips")
        used.plot(steps, [100 * point["used"] for point in curves[name]], color=colour, label=name)
    error.axhline(1, color="grey", linewidth=0.8)
    full.plot([point["step"] for point in curves["full"]], [point["synthetic_px"] for point in curves["full"]], label="synthetic")
    full.plot(
        [point["step"] for point in curves["full"]], [point["clips_px"] for point in curves["full"]], "--", color="tab:blue", label="clips"
    )
    for axes, title in (
        (error, "held-out error, px (small size)"),
        (used, "codes used on held-out faces, %"),
        (full, "held-out error, px (full size)"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("steps")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    error.set_yscale("log")
    full.set_yscale("log")
    figure.savefig(DOCS / "proof_tokenizer.png", dpi=110)
    plt.close(figure)
