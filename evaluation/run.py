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
from pydantic import Field

from evaluation.editors import SIDE, CopyEditor, Editor, EditResult, LaToEditor, WarpEditor
from evaluation.metrics import Mean, mean_of, rate_of, score
from evaluation.samples import choose_samples
from infra.addresses import join
from infra.config import Config
from infra.console import say, table
from infra.storage import commit, delete, exists, read_bytes, sha256_bytes, sha256_file, sha256_json
from lato.faces import MODEL_FILES, FaceReader, FaceReading
from lato.guidance import Guidance
from lato.landmarks import CANVAS
from lato.pairs import FacePair, encode_pair
from lato.pipeline import LaToPipeline

VERSION = 2
"""Raise it when equal edits would be scored differently."""
METRICS = ("rectified_identity", "identity", "landmark_error", "landmark_nme", "plan_error", "seconds")
_NO_FACE_IN_SAMPLE = "no_face_in_sample"


class EvalConfig(Config):
    """An evaluation."""

    samples: int = Field(default=12, ge=1)
    """Held-out samples, spread over kinds of edit and of people."""
    steps: int = Field(default=12, ge=1)
    """Euler steps of the LaTo editors."""
    guidance: float = Field(default=2.0, ge=0)
    """Scale of joint guidance."""


@dataclass(frozen=True)
class EvalResult:
    """A finished evaluation."""

    scores: str
    """Parquet, a row an editor and sample."""
    samples: list[FacePair]
    summary: dict[str, dict[str, Any]]
    """Editor -> metric -> `Mean` as a dict; and `detection`, `states`, and `common`: metric -> `Mean` over the samples that all editors did."""


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
    delete(mark)  # before a picture is made over: what is stopped on the way must not pass for what was there
    reader = FaceReader.from_folder(models)
    pipeline = LaToPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)
    guidance = Guidance("joint", config.guidance)
    editors: list[Editor] = [CopyEditor(), WarpEditor()]
    editors += [LaToEditor(pipeline, predicted, config.steps, guidance) for predicted in (False, True)]
    readings = {pair.key: (reader.read(pair.source_image()), reader.read(pair.target_image())) for pair in samples}
    rows = []
    for editor in editors:
        say(f"  {editor.name}: {len(samples)} edits")
        for pair, result in zip(samples, editor.edit(samples), strict=True):
            rows.append(_score_one(editor.name, pair, result, readings[pair.key], reader, work))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    commit(scores_uri, buffer.getvalue())
    commit(mark, json.dumps(fingerprint).encode())
    return EvalResult(scores_uri, samples, summarise(rows))


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means by editor; samples without a face or a picture are in `detection` and `states`, not in the means.

    An editor that loses the hard faces has a good mean over those that are left: `common` has each one's over the samples that all of them did. A sample in
    which no face is read to begin with speaks against no editor.
    """
    summary: dict[str, dict[str, Any]] = {}
    lost = {row["key"] for row in rows if row["state"] != "ok"}
    for editor in dict.fromkeys(row["editor"] for row in rows):
        mine = [row for row in rows if row["editor"] == editor]
        states: dict[str, int] = {}
        for row in mine:
            states[row["state"]] = states.get(row["state"], 0) + 1
        found = rate_of(states.get("ok", 0), len(mine) - states.get(_NO_FACE_IN_SAMPLE, 0))
        common = _means([row for row in mine if row["key"] not in lost])
        summary[editor] = _means(mine) | {"detection": asdict(found), "states": states, "common": common}
    return summary


def is_uneven(summary: dict[str, dict[str, Any]]) -> bool:
    """Whether an editor has scores of samples that another has none of."""
    return any(values["identity"]["count"] != values["common"]["identity"]["count"] for values in summary.values())


def unread_samples(summary: dict[str, dict[str, Any]]) -> int:
    """Samples in which no face is read before they are edited, or in what they should become."""
    return max((values["states"].get(_NO_FACE_IN_SAMPLE, 0) for values in summary.values()), default=0)


def print_summary(summary: dict[str, dict[str, Any]]) -> None:
    """The score table."""
    shown = {"detection": "found", "rectified_identity": "rectified", "landmark_error": "error px", "plan_error": "plan px", "seconds": "s"}
    rows = [(editor, *(brief(Mean(**values[name])) for name in shown)) for editor, values in summary.items()]
    table("Scores on held-out samples: mean (n); the report has all, with intervals", ["editor", *shown.values()], rows)
    if is_uneven(summary):
        del shown["detection"]
        rows = [(editor, *(brief(Mean(**values["common"][name])) for name in shown)) for editor, values in summary.items()]
        table("The same on the samples that all editors did: compare these", ["editor", *shown.values()], rows)
    if unread := unread_samples(summary):
        say(f"  samples in whose own pictures no face is read: {unread}; they count for and against no editor")
    say("  judge scores (SC, VQ, NA) need a vision-language judge: none is part of this version, and nothing stands in for one")


def brief(mean: Mean) -> str:
    """A mean as short text."""
    return "-" if mean.value is None else f"{mean.value:.2f} ({mean.count})"


def show(mean: Mean) -> str:
    """A mean as text."""
    if mean.value is None:
        return "-"
    interval = "" if mean.low is None else f" [{mean.low:.3f}, {mean.high:.3f}]"
    return f"{mean.value:.3f}{interval} n={mean.count}"


def _means(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    people = [row["person"] for row in rows]
    return {metric: asdict(mean_of([row[metric] for row in rows], people)) for metric in METRICS}


def _fingerprint(config: EvalConfig, samples: list[FacePair], pipeline: Path, models: Path) -> str:
    """All that scores are made of. Of the pipeline all but its own face models, which nothing here asks; a version that is built anew keeps keys of samples."""
    files = [file for file in sorted(pipeline.rglob("*")) if file.is_file() and file.relative_to(pipeline).parts[0] != "faces"]
    parts = {str(file.relative_to(pipeline)): sha256_file(str(file)) for file in files}
    reader = {name: sha256_file(str(models / name)) for name in MODEL_FILES.values()}
    shown = [[pair.key, *(sha256_bytes(member) for member in encode_pair(pair).values())] for pair in samples]
    return sha256_json({"version": VERSION, "config": config.model_dump(), "samples": shown, "pipeline": parts, "reader": reader})


def _score_one(
    editor: str, pair: FacePair, result: EditResult, own: tuple[FaceReading | None, FaceReading | None], reader: FaceReader, work: str
) -> dict[str, Any]:
    """A row of the scores; `own` are the faces read in the sample's source and target."""
    row: dict[str, Any] = {
        "editor": editor,
        "key": pair.key,
        "person": pair.meta.provenance.identity,
        "kind": pair.meta.provenance.kind,
        "edit_kind": pair.meta.edit.kind,
        "instruction": pair.meta.instruction,
        "seconds": result.seconds,
        "picture": result.image is not None,
        "reasoning": result.reasoning,
        "landmarks": None if result.landmarks is None else np.asarray(result.landmarks, np.float32).reshape(-1).tolist(),
        # of the landmarks it drew to, picture or no picture: what a predictor is worth beside copying the source's
        "plan_error": None if result.landmarks is None else float(np.abs(result.landmarks - pair.landmarks[1]).mean()),
    }
    empty = {name: None for name in METRICS if name not in ("seconds", "plan_error")}
    if result.image is not None:
        picture = cv2.imencode(".jpg", cv2.cvtColor(result.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        commit(join(work, "edits", editor, f"{pair.key}.jpg"), picture)
    before, wanted = own
    if before is None or wanted is None:
        return row | empty | {"state": _NO_FACE_IN_SAMPLE}
    if result.image is None:
        return row | empty | {"state": result.state}
    after = reader.read(result.image)
    scores = score(pair.meta.edit, before, after, wanted, pair.landmarks[1], CANVAS.width / SIDE)
    return row | {name: getattr(scores, name) for name in empty} | {"state": scores.state}
