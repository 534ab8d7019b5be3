"""Fits `lato/faces/expression_directions.json` on synthetic people and measures it on others.

Run: `python -m tests.benchmarks.fit_expressions FOLDER_WITH_MODELS [--write]`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from data_pipeline.synthetic.anny_people import AnnyConfig, draw_set
from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, draw_person
from data_pipeline.synthetic.rasterizer import render
from lato.edits import Expression, Intensity
from lato.faces import FaceReader
from lato.faces.expression import classify
from lato.faces.mesh import BLENDSHAPE_NAMES
from lato.pairs import decode_image

PEOPLE = 60
NEUTRAL_BELOW = 0.3
TURNED = (Pose(yaw=30), Pose(yaw=-30), Pose(roll=30), Pose(roll=-30), Pose(pitch=-30))
OUT = Path(__file__).parents[2] / "lato/faces/expression_directions.json"


def collect(models: Path) -> tuple[np.ndarray, list[tuple[int, Expression, Intensity]]]:
    """Blendshape changes (N, 52) of every expression and intensity, and of rest at other poses, and what each was."""
    mesh, reader = load_head(), FaceReader.from_folder(models)

    def look(person, expression, intensity, pose=Pose()):
        image, _ = render(mesh, person, expression, intensity, pose)
        found = reader.detector.detect(image)
        seen = reader.mesh.settle(image, found[0]) if found else None
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
        for pose in TURNED:
            seen = look(person, Expression.NEUTRAL, Intensity.PLAIN, pose)
            if seen is not None and rest is not None:
                changes.append(seen - rest)
                labels.append((number, Expression.NEUTRAL, Intensity.PLAIN))
    return np.array(changes), labels


def as_built(models: Path, people: int = 40) -> list[str]:
    """The builder's own pictures (JPEG, turned by a little or by 30 degrees), read as it reads them: against the mean of a person's rest pictures."""
    reader, right = FaceReader.from_folder(models), defaultdict(list)
    config = AnnyConfig(people=people, images=5)
    for number in range(people):
        pictures, declared = draw_set(config, number)
        seen = []
        for picture, truth in zip(pictures, declared, strict=True):
            image = decode_image(picture, "drawn")
            found = reader.detector.detect(image)
            mesh = reader.mesh.observe(image, found[0]) if found else None
            seen += [] if mesh is None else [(mesh.blendshapes, truth)]
        rest = np.mean([shapes for shapes, truth in seen if truth.expression is Expression.NEUTRAL], axis=0)
        for shapes, truth in seen:
            turned = "turned" if max(abs(truth.yaw), abs(truth.pitch), abs(truth.roll)) > 10 else "frontal"
            what = "rest" if truth.expression is Expression.NEUTRAL else truth.intensity.value
            right[f"{what}, {turned}"].append(classify(shapes, rest).label is truth.expression)
    return [f"as built: {name}: right {np.mean(hits):.2f} of {len(hits)}" for name, hits in sorted(right.items())]


def main() -> None:
    from lato.faces import expression as module

    changes, labels = collect(Path(sys.argv[1]))
    changes = changes * module._mask()
    who = np.array([label[0] for label in labels])
    what = np.array([label[1].value for label in labels])
    grade = np.array([label[2].value for label in labels])
    half = (who < PEOPLE // 2) & (what != "neutral")

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
    held = who >= PEOPLE // 2
    weak = along[np.arange(len(along)), pick] < NEUTRAL_BELOW
    read = np.where(weak, "neutral", np.array(names)[pick])
    for index, name in enumerate(names):
        rows = held & (what == name)
        recall = float((read[rows] == name).mean())
        classes[name]["recall"] = round(recall, 3)
        own = {g: round(float(along[rows & (grade == g), index].mean()), 2) for g in ("slightly", "plain", "strongly")}
        confused = {other: int((read[rows] == other).sum()) for other in ("neutral", *names)}
        nearest = float((pick[rows] == index).mean())
        print(
            f"{name:10s} recall {recall:.2f} (nearest direction {nearest:.2f})  strong {lengths[index]:.2f}  mean intensity {own}  read as {confused}"
        )
    right = read == what
    for name in ("slightly", "plain", "strongly"):
        rows = held & (what != "neutral") & (grade == name)
        print(f"{name:10s} right {right[rows].mean():.2f} of {rows.sum()}")
    rows = held & (what != "neutral")
    print(
        f"all six    right {right[rows].mean():.2f} of {rows.sum()}; by nearest direction {(np.array(names)[pick] == what)[rows].mean():.2f}"
    )
    rows = held & (what == "neutral")
    print(f"rest, turned by 30 degrees: right {right[rows].mean():.2f} of {rows.sum()}")
    for cut in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35):
        at = np.where(along[np.arange(len(along)), pick] < cut, "neutral", np.array(names)[pick]) == what
        print(f"  at a cut of {cut:.2f}: six {at[held & (what != 'neutral')].mean():.3f}, rest {at[rows].mean():.3f}")
    for line in as_built(Path(sys.argv[1])):
        print(line)
    if "--write" in sys.argv:
        data = {
            "source": f"mean unit change of blendshapes from the same person's neutral, {PEOPLE // 2} synthetic people; recall "
            f"(too weak reads as neutral) on {PEOPLE - PEOPLE // 2} others "
            "(tests/benchmarks/fit_expressions.py)",
            "neutral_below": NEUTRAL_BELOW,
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
