"""Fits `lato/faces/expression_directions.json` on synthetic people and measures it on others.

Run: `python -m tests.benchmarks.fit_expressions FOLDER_WITH_MODELS [--write]`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, draw_person
from data_pipeline.synthetic.rasterizer import render
from lato.edits import Expression, Intensity
from lato.faces import FaceReader
from lato.faces.mesh import BLENDSHAPE_NAMES

PEOPLE = 60
OUT = Path(__file__).parents[2] / "lato/faces/expression_directions.json"


def collect(models: Path) -> tuple[np.ndarray, list[tuple[int, Expression, Intensity]]]:
    """Blendshape changes (N, 52) of every expression and intensity, and what each was."""
    mesh, reader = load_head(), FaceReader.from_folder(models)

    def look(person, expression, intensity):
        image, _ = render(mesh, person, expression, intensity, Pose())
        found = reader.detector.detect(image)
        seen = reader.mesh.observe(image, found[0]) if found else None
        return None if seen is None else seen.blendshapes

    changes, labels = [], []
    for number in range(PEOPLE):
        person = draw_person(np.random.default_rng((77, number)), mesh)
        rest = look(person, Expression.NEUTRAL, Intensity.PLAIN)
        for expression in list(Expression)[1:]:
            for intensity in Intensity:
                seen = look(person, expression, intensity)
                if seen is not None and rest is not None:
                    changes.append(seen - rest)
                    labels.append((number, expression, intensity))
    return np.array(changes), labels


def main() -> None:
    from lato.faces import expression as module

    changes, labels = collect(Path(sys.argv[1]))
    changes = changes * module._mask()
    who = np.array([label[0] for label in labels])
    what = np.array([label[1].value for label in labels])
    grade = np.array([label[2].value for label in labels])
    half = who < PEOPLE // 2

    classes = {}
    for expression in list(Expression)[1:]:
        unit = changes / (np.linalg.norm(changes, axis=1, keepdims=True) + 1e-6)
        direction = unit[half & (what == expression.value)].mean(0)
        # what all expressions share (a face that moves at all) names none of them
        direction = direction - 0.5 * unit[half].mean(0)
        direction /= np.linalg.norm(direction)
        along = changes @ direction
        strong = along[half & (what == expression.value) & (grade == "strongly")].mean()
        classes[expression.value] = {"direction": direction, "strong_length": float(strong)}
    weights = np.stack([entry["direction"] for entry in classes.values()])
    lengths = np.array([entry["strong_length"] for entry in classes.values()])
    names = list(classes)
    pick = np.argmax(changes @ weights.T, axis=1)
    along = (changes @ weights.T) / lengths
    held = ~half
    for index, name in enumerate(names):
        rows = held & (what == name)
        recall = float((pick[rows] == index).mean())
        classes[name]["recall"] = round(recall, 3)
        own = {g: round(float(along[rows & (grade == g), index].mean()), 2) for g in ("slightly", "plain", "strongly")}
        confused = {names[i]: int((pick[rows] == i).sum()) for i in range(6)}
        print(f"{name:10s} recall {recall:.2f}  strong {lengths[index]:.2f}  mean intensity {own}  read as {confused}")
    print("all", float((np.array(names)[pick] == what)[held].mean()), int(held.sum()))
    if "--write" in sys.argv:
        data = {
            "source": f"mean unit change of blendshapes from the same person's neutral, {PEOPLE // 2} synthetic people; recall on {PEOPLE - PEOPLE // 2} others "
            "(tests/benchmarks/fit_expressions.py)",
            "neutral_below": 0.3,
            "cuts": [0.62, 0.88],
            "classes": {
                name: {
                    "recall": entry["recall"],
                    "strong_length": round(entry["strong_length"], 4),
                    "direction": {
                        n: round(float(w), 4) for n, w in zip(BLENDSHAPE_NAMES, entry["direction"], strict=True) if abs(w) >= 0.02
                    },
                }
                for name, entry in classes.items()
            },
        }
        OUT.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
