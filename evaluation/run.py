"""Evaluate: editors x held-out samples -> pictures, scores and their table. What is done already is recognised."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.editors import SIDE, CopyEditor, Editor, EditResult, LaToEditor, WarpEditor
from evaluation.metrics import Mean, mean_of, score
from evaluation.samples import choose_samples
from infra.addresses import join
from infra.config import Config
from infra.console import say, table
from infra.storage import commit, exists, read_bytes, sha256_file, sha256_json
from lato.faces import FaceReader
from lato.guidance import Guidance
from lato.landmarks import CANVAS
from lato.pairs import FacePair
from lato.pipeline import LaToPipeline

VERSION = 1
"""Raise it when equal edits would be scored differently."""
METRICS = ("rectified_identity", "identity", "landmark_error", "landmark_nme", "plan_error", "seconds")


class EvalConfig(Config):
    """An evaluation."""

    samples: int = 12
    """Held-out samples, spread over kinds of edit and of people."""
    steps: int = 12
    """Euler steps of the LaTo editors."""
    guidance: float = 2.0
    """Scale of joint guidance."""


@dataclass(frozen=True)
class EvalResult:
    """A finished evaluation."""

    scores: str
    """Parquet, a row an editor and sample."""
    samples: list[FacePair]
    summary: dict[str, dict[str, Any]]
    """Editor -> metric -> `Mean` as a dict; and `detection`, `states`."""


def evaluate(config: EvalConfig, dataset: str, pipeline_folder: Path, models: Path, work: str) -> EvalResult:
    """Edits held-out samples with the baselines and the trained pipeline, and scores them.

    Args:
        config: How many, and how.
        dataset: A published version.
        pipeline_folder: A LaToPipeline folder.
        models: Folder of the perception models.
        work: Pictures go to `work/edits`, scores to `work/scores.parquet`.
    """
    samples = choose_samples(dataset, config.samples)
    fingerprint = _fingerprint(config, samples, pipeline_folder, models)
    scores_uri, mark = join(work, "scores.parquet"), join(work, "edits", "fingerprint.json")
    if exists(mark) and exists(scores_uri) and json.loads(read_bytes(mark)) == fingerprint:
        say("  evaluated already")
        rows = pq.read_table(io.BytesIO(read_bytes(scores_uri))).to_pylist()
        return EvalResult(scores_uri, samples, summarise(rows))
    reader = FaceReader.from_folder(models)
    pipeline = LaToPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    guidance = Guidance("joint", config.guidance)
    editors: list[Editor] = [CopyEditor(), WarpEditor()]
    editors += [LaToEditor(pipeline, predicted, config.steps, guidance) for predicted in (False, True)]
    rows = []
    for editor in editors:
        say(f"  {editor.name}: {len(samples)} edits")
        for pair, result in zip(samples, editor.edit(samples), strict=True):
            rows.append(_score_one(editor.name, pair, result, reader, work))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    commit(scores_uri, buffer.getvalue())
    commit(mark, json.dumps(fingerprint).encode())
    return EvalResult(scores_uri, samples, summarise(rows))


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means by editor; samples without a face or a picture are in `detection` and `states`, not in the means."""
    summary: dict[str, dict[str, Any]] = {}
    for editor in dict.fromkeys(row["editor"] for row in rows):
        mine = [row for row in rows if row["editor"] == editor]
        states: dict[str, int] = {}
        for row in mine:
            states[row["state"]] = states.get(row["state"], 0) + 1
        found = mean_of([1.0 if row["state"] == "ok" else 0.0 for row in mine])
        summary[editor] = {metric: asdict(mean_of([row[metric] for row in mine])) for metric in METRICS}
        summary[editor] |= {"detection": asdict(found), "states": states}
    return summary


def print_summary(summary: dict[str, dict[str, Any]]) -> None:
    """The score table."""
    shown = {"detection": "found", "rectified_identity": "rectified", "landmark_error": "error px", "plan_error": "plan px", "seconds": "s"}
    rows = [(editor, *(brief(Mean(**values[name])) for name in shown)) for editor, values in summary.items()]
    table("Scores on held-out samples: mean (n); the report has all, with intervals", ["editor", *shown.values()], rows)
    say("  judge scores (SC, VQ, NA) need a vision-language judge: none is part of this version, and nothing stands in for one")


def brief(mean: Mean) -> str:
    """A mean as short text."""
    return "-" if mean.value is None else f"{mean.value:.2f} ({mean.count})"


def show(mean: Mean) -> str:
    """A mean as text."""
    if mean.value is None:
        return "-"
    return f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}] n={mean.count}"


def _fingerprint(config: EvalConfig, samples: list[FacePair], pipeline: Path, models: Path) -> str:
    weights = {str(file.relative_to(pipeline)): sha256_file(str(file)) for file in sorted(pipeline.rglob("*.safetensors"))}
    reader = {file.name: sha256_file(str(file)) for file in sorted(models.glob("*.onnx"))}
    keys = [pair.key for pair in samples]
    return sha256_json({"version": VERSION, "config": config.model_dump(), "samples": keys, "weights": weights, "reader": reader})


def _score_one(editor: str, pair: FacePair, result: EditResult, reader: FaceReader, work: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "editor": editor,
        "key": pair.key,
        "kind": pair.meta.provenance.kind,
        "edit_kind": pair.meta.edit.kind,
        "instruction": pair.meta.instruction,
        "seconds": result.seconds,
        "reasoning": result.reasoning,
        "landmarks": None if result.landmarks is None else np.asarray(result.landmarks, np.float32).reshape(-1).tolist(),
        # of the landmarks it drew to, picture or no picture: what a predictor is worth beside copying the source's
        "plan_error": None if result.landmarks is None else float(np.abs(result.landmarks - pair.landmarks[1]).mean()),
    }
    empty = {name: None for name in METRICS if name not in ("seconds", "plan_error")}
    if result.image is None:
        return row | empty | {"state": result.state}
    picture = cv2.imencode(".jpg", cv2.cvtColor(result.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    commit(join(work, "edits", editor, f"{pair.key}.jpg"), picture)
    before, wanted = reader.read(pair.source_image()), reader.read(pair.target_image())
    if before is None or wanted is None:
        return row | empty | {"state": "no_face_in_sample"}
    after = reader.read(result.image)
    scores = score(pair.meta.edit, before, after, wanted, pair.landmarks[1], CANVAS.width / SIDE)
    return row | {name: getattr(scores, name) for name in empty} | {"state": scores.state}
