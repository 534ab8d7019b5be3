"""Starts the ranks of a training and waits for them: by Ray Train (the one file that imports `ray.train`), or as plain processes on this machine.

Ray places and starts ranks; it is given no checkpoint and keeps none. What a rank reports it writes to the run's folder, which the driver follows.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.console import duration, say
from infra.environment import describe_environment
from infra.errors import UserError
from infra.storage import commit, sha256_json
from infra.tracking import ended_run, open_run, send_left
from training import resources, resume_rules
from training.follow import Follower, read_metrics
from training.rank import DRIVER
from training.requests import STOP
from training.stage_factory import Job

VERSION = 2
"""Raise it when equal jobs would train another model."""
Launcher = Literal["ray", "plain"]


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
    job: Job,
    inputs: dict[str, str],
    tracking_uri: str,
    experiment: str,
    parent_run_id: str | None = None,
    launcher: Launcher = "ray",
) -> TrainResult:
    """Trains a stage; a finished one is recognised, an interrupted one goes on from its newest checkpoint.

    Args:
        job: What and where.
        inputs: Digests of what else the result depends on (datasets by URI, tokenizer, text encoder).
        tracking_uri: MLflow.
        experiment: MLflow experiment.
        parent_run_id: MLflow parent.
        launcher: Who starts the ranks.

    Raises:
        UserError: A rank stopped; says why. Or a run of other settings stands there, or there is no place for the ranks.
        KeyboardInterrupt: By Ctrl-C. Or a SIGTERM came when the ranks had nothing more to save: the stage is done, and what follows it is not begun.
    """
    folder = Path(job.folder)
    made = made_of(job, inputs)
    fingerprint = sha256_json(made)
    result_file, backlog = folder / "result.json", str(folder / "mlflow_backlog")
    if result_file.is_file() and (known := json.loads(result_file.read_text()))["fingerprint"] == fingerprint:
        ended = ended_run(tracking_uri, backlog, known["run_id"])
        Follower(job.stage, folder, ended, job.checkpoint_folder).register_missed()
        ended.close(None)
        send_left(tracking_uri, backlog)
        say(f"  {job.stage}: trained already, held-out {known['first']:.4f} -> {known['last']:.4f}")
        return TrainResult(
            job.stage, folder / "export", folder / "metrics.jsonl", known["first"], known["last"], known["seconds"], known["run_id"]
        )
    resume_rules.prepare(folder, made, job.checkpoints)
    for left in ("failures", "ranks"):
        shutil.rmtree(folder / left, ignore_errors=True)
    (folder / STOP).unlink(missing_ok=True)  # what was asked of a run that has ended is not asked of this one
    state = json.loads((folder / "state.json").read_text()) if (folder / "state.json").is_file() else {}
    commit(str(folder / "job.json"), job.model_dump_json().encode())
    run = open_run(tracking_uri, experiment, job.stage, backlog, parent_run_id, state.get("run_id"))
    commit(str(folder / "state.json"), json.dumps({"run_id": run.run_id}).encode())
    run.describe(made, describe_environment())
    for source in job.data:
        run.dataset("pairs", inputs[source.uri], source.uri, source.weight)
    started = time.monotonic()
    follower = Follower(job.stage, folder, run, job.checkpoint_folder)
    follower.start()
    try:
        with _passing_on_stops(folder) as stops:
            (_fit_ray if launcher == "ray" else _fit_plain)(job, folder)
    except BaseException:
        follower.finish(ended_well=False)
        run.close("FAILED")
        raise
    follower.finish()
    held = [line["held_out"] for line in read_metrics(folder / "metrics.jsonl") if "held_out" in line]
    seconds = time.monotonic() - started
    run.close()
    result = {"fingerprint": fingerprint, "first": held[0], "last": held[-1], "seconds": seconds, "run_id": run.run_id}
    commit(str(result_file), json.dumps(result).encode())
    say(f"  {job.stage}: held-out {held[0]:.4f} -> {held[-1]:.4f} in {duration(seconds)}")
    if stops.asked:
        raise KeyboardInterrupt
    return TrainResult(job.stage, folder / "export", folder / "metrics.jsonl", held[0], held[-1], seconds, run.run_id)


def made_of(job: Job, inputs: dict[str, str]) -> dict[str, Any]:
    """What a training's result depends on."""
    data = [{"digest": inputs[source.uri], "weight": source.weight} for source in job.data]
    others = {name: digest for name, digest in inputs.items() if name not in {source.uri for source in job.data}}
    # what lies in these folders counts, and not where they are
    config = job.config.model_dump(mode="json", exclude=others.keys() & {"base", "codec"})
    return {"version": VERSION, "config": config, "data": data, "inputs": others}


@dataclass
class _Stops:
    """What was asked of this driver."""

    asked: bool = False


@contextmanager
def _passing_on_stops(folder: Path) -> Iterator[_Stops]:
    """SIGTERM to the driver asks the ranks to save and end. Where none has been heard of yet (Ray Train may wait for places for hours) there is nothing to
    save, and a second one does not wait: both end the driver as Ctrl-C does. Where this is not the main thread, nothing is passed on. Ray Train takes Ctrl-C
    for itself and would keep it: it is given back, too.
    """
    stops = _Stops()

    def ask(*_: Any) -> None:
        if stops.asked or not any((folder / "ranks").glob("rank-*.json")):
            raise KeyboardInterrupt
        stops.asked = True
        (folder / STOP).touch()

    interrupted = signal.getsignal(signal.SIGINT)
    try:
        before = signal.signal(signal.SIGTERM, ask)
    except ValueError:
        yield stops
        return
    try:
        yield stops
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupted)
        (folder / STOP).unlink(missing_ok=True)


def _fit_ray(job: Job, folder: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = resources.cluster_has_gpus()
    workers = job.engine.workers
    resources.check_ray(workers, {"CPU": 1.0, "GPU": float(gpu)})
    trainer = TorchTrainer(
        _ray_rank,
        train_loop_config={"job": job.model_dump_json()},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1, "GPU": int(gpu)}),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=int(60 * job.engine.timeout_minutes)),
        # a machine that is taken away is replaced and the ranks start again from their newest checkpoint; what fails otherwise is told
        run_config=RunConfig(name=folder.name, storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except SystemExit as ended:  # with 0 or 1: what Ray Train makes of Ctrl-C, when it has ended the ranks
        raise KeyboardInterrupt from ended
    except Exception as error:  # Ray wraps what a rank raised in errors of its own, with several tracebacks
        raise _told(job, folder, f"Ray Train: {str(error).splitlines()[0]}") from error


def _ray_rank(settings: dict[str, Any]) -> None:
    from ray.train.v2._internal.execution.context import get_train_context

    from training.rank import work

    # read here, not by ray.train.get_preemption_info(): that is a barrier of its own at every step, and the ranks agree anyway
    notices = get_train_context().preemption_context
    work(Job.model_validate_json(settings["job"]), lambda: notices.preemption_info is not None)


def _fit_plain(job: Job, folder: Path) -> None:
    """As many processes as ranks, the variables of a process group set, as torchrun does on one machine."""
    resources.check_here(job.engine.workers)
    job_file = folder / "job.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = job.engine.workers
    ranks = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        place[DRIVER] = str(os.getpid())
        command = [sys.executable, "-m", "training.rank", str(job_file)]
        with _said_by(folder, rank).open("w") as said:
            ranks.append(subprocess.Popen(command, env=os.environ | place, stdout=said, stderr=said))
    try:
        while any(process.poll() is None for process in ranks):
            time.sleep(0.1)
            if any(process.poll() not in (None, 0) for process in ranks):
                _wait_for_the_others(ranks)
    finally:
        for process in ranks:
            process.kill()
    ended = {rank: process.returncode for rank, process in enumerate(ranks) if process.returncode}
    if ended:
        last = next((text.strip().splitlines()[-1] for rank in ended if (text := _said_by(folder, rank).read_text()).strip()), "")
        statuses = ", ".join(f"rank {rank}: {status}" for rank, status in ended.items())
        raise _told(job, folder, f"processes ended ({statuses}). {last}")


def _said_by(folder: Path, rank: int) -> Path:
    """The output of a plain process."""
    return folder / f"rank-{rank:05d}.log"


def _wait_for_the_others(ranks: list[subprocess.Popen[bytes]]) -> None:
    """A rank has ended badly: the others notice at their next collective and say so."""
    for process in ranks:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _told(job: Job, folder: Path, otherwise: str) -> UserError:
    """What stopped a training, from what the ranks wrote down: the cause before those that only lost a rank."""
    failures = [json.loads(path.read_text()) for path in sorted((folder / "failures").glob("rank-*.json"))]
    failures.sort(key=lambda failure: failure["kind"] == "RankLost")
    text = failures[0]["text"] if failures else otherwise
    return UserError(f"training of {job.stage} stopped: {text}\n  (in {folder}; the same command goes on from the newest checkpoint)")
