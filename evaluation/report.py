"""report.html: one self-contained page. Every number on it is read from a file of the run."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from evaluation.metrics import Mean
from evaluation.run import METRICS, EvalResult, is_uneven, show, unread_samples
from infra.addresses import join
from infra.storage import commit, read_bytes
from lato.landmarks import draw_landmarks
from lato.pairs import FacePair, decode_image

_THUMBNAIL = 200


@dataclass(frozen=True)
class StageCurve:
    """A trained stage on the report."""

    name: str
    unit: str
    """Of its held-out number."""
    lines: list[dict[str, Any]]
    """Its metrics."""
    seconds: float


def write_report(
    uri: str,
    title: str,
    facts: list[tuple[str, str]],
    tiny: str,
    dataset: str,
    sheet: npt.NDArray[np.uint8],
    stages: list[StageCurve],
    evaluation: EvalResult,
    edits: str,
    pipeline: str,
    mlflow_command: str,
) -> None:
    """Writes the page.

    Args:
        uri: Where.
        title: Its heading.
        facts: What was run: name and value.
        tiny: What was small, in words.
        dataset: The version's folder (its funnel is shown).
        sheet: Contact sheet of sample pairs, RGB.
        stages: Trained stages.
        evaluation: Scores and samples.
        edits: Folder of the edited pictures.
        pipeline: Folder of the trained pipeline.
        mlflow_command: What opens MLflow.
    """
    rows = pq.read_table(io.BytesIO(read_bytes(evaluation.scores))).to_pylist()
    editors = list(evaluation.summary)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True)
    page = environment.get_template("report.html.jinja").render(
        title=title,
        facts=facts,
        tiny=tiny,
        funnel=_funnel(dataset),
        sheet=_data_uri(sheet),
        stages=[
            {"name": s.name, "unit": s.unit, "first": s.lines[0]["held_out"], "last": _held_out(s)[-1][1], "seconds": s.seconds}
            for s in stages
        ],
        curves=_curves(stages),
        editors=editors,
        grid=[_grid_row(pair, editors, rows, edits) for pair in evaluation.samples],
        columns=["face found", *(metric.replace("_", " ") for metric in METRICS)],
        scores=[_score_row(editor, values) for editor, values in evaluation.summary.items()],
        common=[_common_row(editor, values) for editor, values in evaluation.summary.items()] if is_uneven(evaluation.summary) else [],
        unread=unread_samples(evaluation.summary),
        mlflow=mlflow_command,
        dataset=dataset,
        pipeline=pipeline,
    )
    commit(uri, page.encode())


def _funnel(dataset: str) -> list[dict[str, Any]]:
    rows = json.loads(read_bytes(join(dataset, "funnel.json")))
    most: dict[str, int] = {}
    for row in rows:
        most[row["step"]] = max(most.get(row["step"], 1), row["count"])
    return [row | {"share": round(100 * row["count"] / most[row["step"]])} for row in rows]


def _held_out(stage: StageCurve) -> list[tuple[int, float]]:
    return [(line["step"], line["held_out"]) for line in stage.lines if "held_out" in line]


def _curves(stages: list[StageCurve]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(stages), figsize=(4.2 * len(stages), 3.2), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        held_out = _held_out(stage)
        axis.plot(*zip(*held_out, strict=True), "o-", label="held-out")
        axis.axhline(held_out[0][1], color="gray", linestyle=":", label="held-out at step 0")
        loss = [(line["step"], line["loss"]) for line in stage.lines if "loss" in line]
        if stage.unit != "px":  # the tokenizer's training loss is in another unit than its held-out error
            axis.plot(*zip(*loss, strict=True), alpha=0.4, label="training")
        axis.set_title(f"{stage.name} ({stage.unit})")
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _grid_row(pair: FacePair, editors: list[str], rows: list[dict[str, Any]], edits: str) -> dict[str, Any]:
    mine = {row["editor"]: row for row in rows if row["key"] == pair.key}
    cells = []
    for editor in editors:
        row = mine[editor]
        image = None
        if row["picture"]:
            picture = decode_image(read_bytes(join(edits, editor, f"{pair.key}.jpg")), pair.key)
            if row["landmarks"] is not None and editor.startswith("lato"):
                picture = draw_landmarks(np.array(row["landmarks"]).reshape(68, 2), picture)
            image = _thumbnail(picture)
        cells.append({"image": image, "state": "" if row["state"] == "ok" else row["state"].replace("_", " ")})
    return {
        "instruction": pair.meta.instruction,
        "kind": f"{pair.meta.provenance.kind}, {pair.meta.edit.kind}",
        "source": _thumbnail(pair.source_image()),
        "target": _thumbnail(draw_landmarks(pair.landmarks[1], pair.target_image())),
        "cells": cells,
    }


def _score_row(editor: str, values: dict[str, Any]) -> dict[str, Any]:
    cells = [show(Mean(**values[metric])) for metric in ("detection", *METRICS)]
    states = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in values["states"].items())
    return {"editor": editor, "cells": cells, "states": states}


def _common_row(editor: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"editor": editor, "cells": [show(Mean(**values["common"][metric])) for metric in METRICS]}


def _thumbnail(image: npt.NDArray[np.uint8]) -> str:
    return _data_uri(cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA))  # type: ignore[arg-type]


def _data_uri(image: npt.NDArray[np.uint8]) -> str:
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
