"""Writes docs/proof_dit.md from the results of `prove_dit`: tables, curves, a grid of edits of synthetic people, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np

from lato.landmarks import draw_landmarks
from lato.pipeline import to_picture
from tests.proofs.prove_dit import ARMS, BATCH, EULER, NOISES, PAIRS, SCALES, SHOWN, Kit, Pairs, compare

_ORDER = ("none", "image", "learnable", "mapped")
"""The paper's, worst first: LE 58.9, 25.4, 9.63, 2.34."""
_PAPER = {"none": 58.9, "image": 25.4, "learnable": 9.63, "mapped": 2.34}


def write_page(folder: Path, page: Path, kit: Kit) -> None:
    """The page, and its two pictures beside it."""
    runs = [json.loads(file.read_text()) for arm in ARMS for file in sorted(folder.glob(f"{arm}-*.json"))]
    pairs = Pairs.draw(kit.world, PAIRS, np.random.default_rng(4321), held_out=True)
    references = _references(kit, pairs)
    curves, grid = page.with_name("proof_dit_curves.png"), page.with_name("proof_dit_edits.png")
    _draw_curves(runs, references, curves)
    _draw_grid(folder, kit, grid)
    instruments = json.loads((folder / "instruments.json").read_text())
    tokenizers = {name: json.loads((folder / f"tokenizer-{name}.json").read_text())["held_out_px"] for name in ("plain", "zeros")}
    asked = json.loads((folder / "plan.json").read_text())
    text = [
        _INTRODUCTION.format(
            asked=f"MINUTES={asked['minutes']:g} SEEDS={asked['seeds']}",
            steps=" or ".join(str(steps) for steps in sorted({run["steps"] for run in runs})),
            batch=BATCH,
            euler=EULER,
            pairs=PAIRS,
            cpu=sum(run["curve"][-1]["cpu_seconds"] for run in runs) / 60,
            runs=len(runs),
            plain=tokenizers["plain"],
            zeros=tokenizers["zeros"],
            **instruments,
        ),
        _positions(runs, references),
        f"\n![LE while training]({curves.name})\n\n![Edits of held-out synthetic people]({grid.name})\n",
        _nulls(runs),
        _noise(runs),
    ]
    page.write_text("\n".join(text))


_INTRODUCTION = """# Does the DiT follow landmarks?

`make prove-dit {asked}` wrote this page: tables, curves, pictures and the sentences about them. Synthetic people of 32 x 32 px; {runs} runs of {steps} steps of {batch}
pairs, {cpu:.0f} minutes of one core. The transformer (0.9 M parameters; 64 noise, 64 source and 68 landmark tokens), its loss and its drawing ({euler} Euler steps, no
guidance unless said) are the stage's own; pictures go through the lossless codec. 360 people are trained on, 40 others edited ({pairs} pairs): poses anywhere
within 30 degrees of yaw, 18 of pitch, 25 of roll, and seven expressions. There is no language model here: a text is one frozen random vector for each word of the
edit's short form (expression, intensity, change of pose to the nearest 30 degrees). Landmarks are known exactly. Whether the paper's figures hold at the paper's
size is not answered here.

Instruments, on held-out people. Landmarks are read off the small pictures with a mean error of {landmarks_px:.1f} canvas px: the floor of every LE below (the
detector of real faces does not work at 32 px). Identity is a small embedding: cosine {same_person:.2f} between two pictures of a person, {other_person:.2f} between
two people; of (same, other) pairs it orders {ordered_rightly:.1%} rightly, mostly by colours, which drawn people have of their own. The landmark tokenizer's
held-out error is {plain:.1f} px, or {zeros:.1f} px where it was also trained on coordinates set to zero.

## Where landmark tokens stand
"""


def _references(kit: Kit, pairs: Pairs) -> dict[str, dict[str, float]]:
    world = kit.world
    other = Pairs((pairs.people - world.train + 7) % world.held_out + world.train, pairs.sources, pairs.targets)
    return {
        "copy of the source": compare(kit, pairs, world.images[pairs.people, pairs.sources]),
        "the target itself": compare(kit, pairs, world.images[pairs.people, pairs.targets]),
        "another person's picture": compare(kit, pairs, world.images[other.people, other.targets]),
    }


def _positions(runs: list[dict[str, Any]], references: dict[str, dict[str, float]]) -> str:
    lines = ["| | LE, px | identity | change of pixels | seeds |", "|---|---|---|---|---|"]
    for name, values in references.items():
        lines.append(f"| {name} | {values['le']:.1f} | {values['identity']:.2f} | {values['pixels']:.1f} | |")
    means = {}
    for arm in ARMS:
        finals = [run["final"] for run in runs if run["arm"] == arm]
        if finals:
            means[arm] = float(np.mean([final["le"] for final in finals]))
            lines.append(
                f"| {_NAMES[arm]} | {_spread(finals, 'le', 1)} | {_spread(finals, 'identity', 2)} | {_spread(finals, 'pixels', 1)} | {len(finals)} |"
            )
    copied = references["copy of the source"]["le"]
    found = sorted((arm for arm in _ORDER if arm in means), key=lambda arm: -means[arm])
    said = [
        f"Mean over seeds, with lowest and highest where there are several. The paper's LE: {', '.join(f'{arm} {_PAPER[arm]}' for arm in _ORDER)}."
    ]
    if "mapped" in means:
        said.append(f"Mapped positions bring the copy's {copied:.1f} px to {means['mapped']:.1f} px.")
    if len(found) == len(_ORDER):
        same = tuple(found) == _ORDER
        said.append(
            f"The order found, worst first, is {', '.join(found)}: {'the paper' + chr(39) + 's' if same else 'not the paper' + chr(39) + 's'}."
        )
    if "control" in means and "mapped" in means:
        said.append(
            f"Without codes, by places alone (control), LE is {means['control']:.1f} px: codes {'add' if means['control'] > means['mapped'] else 'do not add'} "
            "to positions here."
        )
    return "\n".join(lines) + "\n\n" + " ".join(said)


_NAMES = {
    "mapped": "mapped (the default)",
    "none": "none: all at (0, 0, 0)",
    "learnable": "learnable",
    "image": "image: as an image's first tokens",
    "control": "control: mapped places, null codes",
    "zeros": "mapped, null = coordinates set to zero",
}


def _spread(values: list[dict[str, float]], name: str, digits: int) -> str:
    own = [value[name] for value in values]
    if len(own) == 1:
        return f"{own[0]:.{digits}f}"
    return f"{np.mean(own):.{digits}f} ({min(own):.{digits}f} to {max(own):.{digits}f})"


def _nulls(runs: list[dict[str, Any]]) -> str:
    forms = (("learned", "mapped", "learned"), ("zeros, trained", "zeros", "zeros"), ("zeros, untrained", "mapped", "zeros"))
    lines = [
        "\n## What stands for no landmarks, under guidance\n",
        "Joint guidance against null landmarks and null text. Learned: null tokens. Zeros, trained: where landmarks were dropped in training, coordinates "
        "set to zero went through the tokenizer, which had seen such. Zeros, untrained: the model of the first column, asked with zeros that neither it nor its "
        "tokenizer had seen. "
        "Each cell: LE in px / identity / change of pixels against the source (a copy has 0).\n",
        "| scale | " + " | ".join(name for name, _, _ in forms) + " |",
        "|---|" + "---|" * len(forms),
    ]
    for scale in SCALES:
        cells = []
        for _, arm, null in forms:
            found = [run["guidance"][null][str(scale)] for run in runs if run["arm"] == arm and null in run["guidance"]]
            cells.append(
                " / ".join(f"{np.mean([f[n] for f in found]):.{d}f}" for n, d in (("le", 1), ("identity", 2), ("pixels", 1)))
                if found
                else ""
            )
        lines.append(f"| {scale:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _noise(runs: list[dict[str, Any]]) -> str:
    found = [run["noise"] for run in runs if "noise" in run]
    lines = [
        "\n## Noise on the landmarks\n",
        "Normal noise on each coordinate of what the model is given; LE is against the landmarks without it. The model was trained on exact ones.\n",
        "| noise, px | LE, px | identity |",
        "|---|---|---|",
    ]
    for noise in NOISES:
        own = [run[str(noise)] for run in found]
        if own:
            lines.append(f"| {noise:g} | {_spread(own, 'le', 1)} | {_spread(own, 'identity', 2)} |")
    return "\n".join(lines) + "\n"


def _draw_curves(runs: list[dict[str, Any]], references: dict[str, dict[str, float]], file: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for number, arm in enumerate(ARMS):
        own = [run["curve"] for run in runs if run["arm"] == arm]
        for curve in own:
            steps = [point["step"] for point in curve]
            label = arm if curve is own[0] else None
            left.plot(steps, [point["le"] for point in curve], color=f"C{number}", label=label, alpha=0.8)
            right.plot(steps, [point["loss"] for point in curve], color=f"C{number}", alpha=0.8)
    for name, style in (("copy of the source", "--"), ("the target itself", ":")):
        left.axhline(references[name]["le"], color="grey", linestyle=style, label=name)
    left.set(xlabel="step", ylabel="held-out LE, canvas px", ylim=(0, None))
    right.set(xlabel="step", ylabel="training loss", yscale="log")
    left.legend(fontsize=8)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def _draw_grid(folder: Path, kit: Kit, file: Path) -> None:
    """A row a pair: source, landmarks, the edit of every arm (seed 0), target; each three times as large."""
    pairs = Pairs.draw(kit.world, SHOWN, np.random.default_rng(4321), held_out=True)
    shown = [arm for arm in ARMS if (folder / f"{arm}-0.json").is_file() and (folder / f"{arm}-0.npy").is_file()]
    edits = {arm: np.load(folder / f"{arm}-0.npy") for arm in shown}
    rows = []
    for number, (person, source, target) in enumerate(zip(pairs.people, pairs.sources, pairs.targets, strict=True)):
        landmarks = kit.world.landmarks[person, target].numpy()
        tiles = [_enlarge(to_picture(kit.world.images[person, source])), draw_landmarks(landmarks, size=96)]
        tiles += [_enlarge(edits[arm][number].transpose(1, 2, 0)) for arm in shown]
        rows.append(np.concatenate([*tiles, _enlarge(to_picture(kit.world.images[person, target]))], axis=1))
    names = ["source", "landmarks", *shown, "target"]
    head = np.full((18, 96 * len(names), 3), 255, np.uint8)
    for number, name in enumerate(names):
        cv2.putText(head, name, (96 * number + 4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(str(file), cv2.cvtColor(np.concatenate([head, *rows]), cv2.COLOR_RGB2BGR))


def _enlarge(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(picture), (96, 96), interpolation=cv2.INTER_CUBIC)
