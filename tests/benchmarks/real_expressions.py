"""What expressions are read on real faces: the verifier's reading of each representative beside that of the second network, over the catalogue's clips and photos.

`python -m tests.benchmarks.real_expressions [sheet.png]` (about two minutes); with a file name it also draws the faces, so that one can look at them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_pipeline.analyze import analyze
from data_pipeline.chip_scores import GroupsConfig
from data_pipeline.groups import backfill, group_digests, read_columns
from data_pipeline.observations import read_chips, read_part
from data_pipeline.rules import PairingConfig
from data_pipeline.second_opinion import NAMES
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for
from infra import assets
from infra.console import say, table

CLIPS = ("single_face", "face_noface", "noface_face", "carphone", "franck", "biden", "obama", "obama2", "obama3", "t1")
_SIDE, _COLUMNS = 150, 10


def read_faces(work: str) -> list[dict[str, Any]]:
    """Every representative with its reading, the second network's scores and its chip."""
    models = assets.path("yunet").parent
    config = GroupsConfig(names=("fer",))
    ledger = analyze([item_for(str(assets.path(name))) for name in CLIPS], AnalyzeConfig(workers=0, groups=config), models, work)
    digests = group_digests(models, config)
    parts = [part for row in ledger.usable() for part in row["parts"]]
    backfill(parts, digests, config, models, work, 0)
    faces = []
    for part in parts:
        rows, scores = read_part(work, part).to_pylist(), read_columns(work, "fer", part, digests["fer"])
        for number, chip, _ in read_chips(work, part):
            faces.append(rows[number] | {"fer": np.array(scores[number]["fer_scores"]), "picture": chip.image()})
    return faces


def draw(faces: list[dict[str, Any]], file: str) -> None:
    """The faces, each with both readings; those at rest last."""
    cells = []
    for face in sorted(faces, key=lambda face: (face["expression"] == "neutral", face["expression"], -face["expression_intensity"])):
        cell = np.full((_SIDE + 30, _SIDE, 3), 255, np.uint8)
        cell[:_SIDE] = cv2.cvtColor(cv2.resize(face["picture"], (_SIDE, _SIDE)), cv2.COLOR_RGB2BGR)
        said = f"fer {NAMES[int(face['fer'].argmax())]} {face['fer'].max():.2f}"
        for line, text in enumerate((f"{face['expression']} {face['expression_intensity']:.2f}", said)):
            cv2.putText(cell, text, (2, _SIDE + 12 + 14 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1)
        cells.append(cell)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % _COLUMNS)
    cv2.imwrite(file, np.vstack([np.hstack(cells[start : start + _COLUMNS]) for start in range(0, len(cells), _COLUMNS)]))


def main(sheet: str | None) -> None:
    """Prints a row a class: faces that are strong enough to count, what the second network calls them, and how many it confirms."""
    limits = PairingConfig()
    with tempfile.TemporaryDirectory() as work:
        faces = read_faces(work)
    rows = []
    for name in NAMES:
        mine = [face for face in faces if face["expression"] == name]
        strong = [face for face in mine if name == "neutral" or face["expression_intensity"] >= limits.min_expression]
        others = [NAMES[int(face["fer"].argmax())] for face in strong]
        said = ", ".join(f"{other} {others.count(other)}" for other in NAMES if other in others)
        confirmed = sum(confirms(face["fer"], name) >= limits.min_agreement for face in strong)
        rows.append([name, str(len(mine)), str(len(strong)), said, str(confirmed)])
    table("Expressions read on real faces", ["read as", "faces", "strong enough", "second network says", "confirmed"], rows)
    if sheet:
        draw(faces, sheet)
        say(f"  {Path(sheet)}")


def confirms(scores: Any, name: str) -> float:
    """What the second network gives to an expression, as `pairing` takes it."""
    return float(scores[NAMES.index(name)] + (scores[NAMES.index("fearful")] if name == "surprised" else 0.0))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
