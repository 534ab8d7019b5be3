"""Ray Train around the engine; the one file that imports `ray.train`. Ray places and starts the ranks; it is given no checkpoint and keeps none."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.console import duration, say
from infra.errors import UserError
from infra.storage import commit, sha256_file, sha256_json
from infra.tracking import open_run
from training.config import EngineConfig

VERSION = 1
"""Raise it when equal configs would train another model."""


@dataclass(frozen=True)
class TrainResult:
    """A finished stage."""

    stage: str
    export: Path
    metrics: Path
    """JSON lines of all metrics."""
    first: float
    """Held-out loss at step 0."""
    last: float
    """Held-out loss at the end."""
    seconds: float
    run_id: str


def train(
    stage: str,
    make_stage: Callable[[], Any],
    engine: EngineConfig,
    made_of: dict[str, Any],
    work: str,
    tracking_uri: str,
    experiment: str,
    parent_run_id: str | None,
    dataset: tuple[str, str],
) -> TrainResult:
    """Trains a stage with DeepSpeed on Ray Train; a finished stage is recognised, an interrupted one goes on from its newest checkpoint.

    Args:
        stage: Its name; outputs go to `work/runs/<stage>`.
        make_stage: Builds the stage object, on every rank.
        engine: Steps, batch, ranks.
        made_of: What the result depends on (config, dataset digest, digests of inputs).
        work: The work folder, seen by all ranks.
        tracking_uri: MLflow.
        experiment: MLflow experiment.
        parent_run_id: MLflow parent.
        dataset: Name and digest, for lineage.

    Raises:
        UserError: A rank stopped; says why.
    """
    folder = (Path(work) / "runs" / stage).absolute()
    fingerprint = sha256_json({"version": VERSION, "stage": stage, **made_of})
    result_file = folder / "result.json"
    if result_file.is_file():
        known = json.loads(result_file.read_text())
        if known["fingerprint"] == fingerprint:
            say(f"  {stage}: trained already, held-out {known['first']:.4f} -> {known['last']:.4f}")
            return TrainResult(
                stage, folder / "export", folder / "metrics.jsonl", known["first"], known["last"], known["seconds"], known["run_id"]
            )
    _start_afresh_unless(folder, fingerprint)
    state = json.loads((folder / "state.json").read_text())
    run = open_run(tracking_uri, experiment, stage, str(folder / "mlflow_backlog.jsonl"), parent_run_id, state.get("run_id"))
    commit(str(folder / "state.json"), json.dumps({"fingerprint": fingerprint, "run_id": run.run_id}).encode())
    run.params(made_of)
    run.dataset("pairs", dataset[1], dataset[0])
    started = time.monotonic()
    follower = _Follower(stage, folder / "metrics.jsonl", run)
    follower.start()
    try:
        _fit(make_stage, engine, folder)
    except BaseException:
        follower.finish()
        run.close("FAILED")
        raise
    follower.finish()
    held = [line["held_out"] for line in read_metrics(folder / "metrics.jsonl") if "held_out" in line]
    seconds = time.monotonic() - started
    for file in sorted((folder / "export").glob("*.json")):
        run.artifact(str(file), "export")
    run.close()
    result = {"fingerprint": fingerprint, "first": held[0], "last": held[-1], "seconds": seconds, "run_id": run.run_id}
    commit(str(result_file), json.dumps(result).encode())
    say(f"  {stage}: held-out {held[0]:.4f} -> {held[-1]:.4f} in {duration(seconds)}")
    return TrainResult(stage, folder / "export", folder / "metrics.jsonl", held[0], held[-1], seconds, run.run_id)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; of a step that was made twice (after an interruption) the later counts."""
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        by_step[entry["step"]] = entry
    return [by_step[step] for step in sorted(by_step)]


def _start_afresh_unless(folder: Path, fingerprint: str) -> None:
    """Clears what belongs to another config, and keeps what an interrupted run of this one left."""
    import shutil

    state = folder / "state.json"
    if state.is_file() and json.loads(state.read_text())["fingerprint"] == fingerprint:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commit(str(state), json.dumps({"fingerprint": fingerprint}).encode())


def _fit(make_stage: Callable[[], Any], engine: EngineConfig, folder: Path) -> None:
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = torch.cuda.is_available()
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"make_stage": make_stage, "engine": engine, "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=engine.workers, use_gpu=gpu, resources_per_worker={"CPU": 1, "GPU": int(gpu)}),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=600),
        run_config=RunConfig(name=folder.name, storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps what a rank raised in errors of its own, with several tracebacks
        failure = folder / "failure.txt"
        if failure.is_file():
            raise UserError(f"training of {folder.name} stopped: {failure.read_text()}") from error
        raise


def _rank(settings: dict[str, Any]) -> None:
    import traceback

    import torch

    from training import engine

    torch.set_num_threads(1)
    folder = Path(settings["folder"])
    (folder / "failure.txt").unlink(missing_ok=True)
    try:
        engine.run(settings["make_stage"](), settings["engine"], folder, engine.write_line(folder / "metrics.jsonl"))
    except Exception as error:
        (folder / "failure.txt").write_text(f"{type(error).__name__}: {error}")
        (folder / "traceback.txt").write_text(traceback.format_exc())
        raise


class _Follower(threading.Thread):
    """Reads the metrics file as it grows: prints a line now and then, and logs to MLflow. The driver owns both, so nothing is printed twice."""

    def __init__(self, stage: str, path: Path, run: Any) -> None:
        super().__init__(daemon=True, name=f"follow-{stage}")
        self._stage, self._path, self._run = stage, path, run
        self._over = threading.Event()
        self._read = path.stat().st_size if path.exists() else 0
        self._printed = 0.0
        self._checkpoints: set[str] = set()

    def run(self) -> None:
        while not self._over.wait(1.0):
            self._drain()
        self._drain()

    def finish(self) -> None:
        """Takes what is left and ends."""
        self._over.set()
        self.join()

    def _drain(self) -> None:
        for marker in sorted((self._path.parent / "checkpoints").glob("step-*/COMPLETE")):
            if marker.parent.name not in self._checkpoints:
                self._checkpoints.add(marker.parent.name)
                try:
                    said = {"uri": str(marker.parent), "sha256": sha256_file(str(marker)), **json.loads(marker.read_text())}
                except FileNotFoundError:  # retention took it in this moment
                    continue
                self._run.text(json.dumps(said, indent=1), f"checkpoints/{marker.parent.name}.json")
        if not self._path.exists():
            return
        with self._path.open() as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith("\n"):
                    break  # still being written
                self._read += len(line.encode())
                self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        step = line["step"]
        self._run.metrics({k: v for k, v in line.items() if k not in ("time", "step", "steps", "seconds_left")}, step)
        if "held_out" in line or time.monotonic() - self._printed > 10:
            self._printed = time.monotonic()
            parts = [f"{name} {line[name]:.4f}" for name in ("loss", "held_out") if name in line]
            left = f"{line['steps_per_second']:.2f} steps/s, {duration(line['seconds_left'])} left" if line.get("seconds_left") else ""
            say(f"  {self._stage}: step {step}  " + "  ".join(filter(None, [*parts, left])))
