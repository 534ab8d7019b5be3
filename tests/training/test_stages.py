"""The three real stages at ZeRO 0 to 3: killed and resumed bit for bit; a dead or hanging rank named; each once through Ray Train."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from infra.errors import UserError
from infra.tracking import default_uri
from lato.codec import SpaceToDepthCodec
from lato.predictor import LandmarkPredictor
from lato.text_encoder import TextEncoder, TextEncoderSettings
from lato.tiny_vlm import build_tiny_vlm
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer
from tests.training import ranks
from tests.training.test_engine import equal, lines, state
from training import checkpoint
from training.config import DataSource, EngineConfig
from training.data import Dataset
from training.encode import EncodeConfig, encode
from training.rank import export_one, work
from training.stage_factory import Job, digest_of

pytestmark = pytest.mark.slow
ENGINE = {
    "steps": 6,
    "global_batch": 4,
    "warmup": 2,
    "checkpoint_every": 2,
    "eval_every": 6,
    "log_every": 1,
    "ema": 0.9,
    "timeout_minutes": 1,
    "keep": 5,
}
SIZES = {
    "tokenizer": {"widths": (32, 32), "code_dim": 16, "num_codes": 32},
    "predictor": {"syntax": "compact", "image_size": 28, "hidden_size": 32, "num_layers": 1, "max_new_tokens": 40, "val_samples": 2, "decoded_samples": 1},
    "dit": {"sizes": [(16, 16)], "hidden_size": 32, "num_attention_heads": 1, "context_dim": 32, "num_double_blocks": 1, "num_single_blocks": 1,
            "val_samples": 2, "picture_samples": 1, "picture_steps": 2, "mirror": True, "jitter": 2.0, "masking": 0.3},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory, small):
    return make_home(tmp_path_factory.mktemp("stages"), small)


def make_home(folder, version):
    """An untrained tokenizer, and the version encoded with latents, also mirrored."""
    torch.manual_seed(0)
    tokenizer = LandmarkTokenizer(widths=(32, 32), code_dim=16, num_codes=32)
    tokenizer.initialise_codebook(torch.rand(4, 68, 2) * 300 + 100)
    tokenizer.save_pretrained(folder / "tokenizer")
    SpaceToDepthCodec(2).save_pretrained(folder / "codec")
    model, processor = build_tiny_vlm(hidden_size=32, num_layers=1, image_size=28)
    TextEncoder(model, processor, TextEncoderSettings(min_pixels=28 * 28, max_pixels=28 * 28)).save_pretrained(folder / "vlm")
    encode(
        Dataset.open(str(version)),
        folder / "vlm",
        folder / "encoded",
        EncodeConfig(workers=0, mirror=True, image_size=16),
        folder / "codec",
    )
    return folder


def inputs_of(given):
    """Digests of what a job's result depends on."""
    own = {source.uri: Dataset.open(source.uri).digest for source in given.data}
    return own | {name: digest_of(getattr(given, name), own.values()) for name in ("tokenizer", "encoded") if getattr(given, name)}


def job(stage, folder, home, small, **engine):
    paths = {"tokenizer": str(home / "tokenizer"), "encoded": str(home / "encoded")} if stage == "dit" else {}
    folder.mkdir(parents=True, exist_ok=True)
    return Job(
        stage=stage,
        config=SIZES[stage] | {"engine": EngineConfig(**ENGINE | engine)},
        data=(DataSource(uri=str(small)),),
        folder=str(folder),
        **paths,
    )


def changed(given, engine=None, **config):
    """A job with other settings."""
    settings = given.config.model_dump() | config
    settings["engine"] |= engine or {}
    return given.model_copy(update={"config": type(given.config)(**settings)})


def train_all(rank, world, jobs):
    from training import engine

    for text in jobs:
        given = Job.model_validate_json(text)
        engine.run(given.make(), given.engine, Path(given.folder), given.checkpoints)
    ranks.leave()


def train_one(rank, world, text):
    work(Job.model_validate_json(text))


def wait_for(path, count, processes, seconds=120):
    deadline = time.monotonic() + seconds
    while len(list(path.glob("step-*/COMPLETE"))) < count:
        assert time.monotonic() < deadline and all(process.is_alive() for process in processes), "no checkpoint came"
        time.sleep(0.01)


@pytest.mark.parametrize("stage", ["tokenizer", "predictor", "dit"])
def test_killed_at_any_zero_stage_it_ends_as_if_it_was_not(stage, home, small, tmp_path):
    """kill -9 to one rank after a checkpoint; weights, moments, average, codebook and all are bit for bit those of the run that was left alone."""
    levels = (0, 1, 2, 3)
    ranks.run(train_all, 2, [job(stage, tmp_path / f"whole{zero}", home, small, zero_stage=zero).model_dump_json() for zero in levels])
    for zero in levels:
        given = job(stage, tmp_path / str(zero), home, small, zero_stage=zero)
        processes = ranks.start(train_one, 2, given.model_dump_json())
        wait_for(tmp_path / str(zero) / "checkpoints", 1 + zero % 2, processes)
        os.kill(processes[zero % 2].pid, signal.SIGKILL)
        for process in processes:
            process.join(60)
        assert all(process.exitcode != 0 for process in processes)  # the other rank does not wait for ever
        failure = json.loads((tmp_path / str(zero) / "failures" / f"rank-{1 - zero % 2:05d}.json").read_text())
        assert failure["kind"] == "RankLost"
        assert f"rank {zero % 2} (process {processes[zero % 2].pid}) has ended" in failure["text"]
        assert not (tmp_path / str(zero) / "export").exists()
    ranks.run(train_all, 2, [job(stage, tmp_path / str(zero), home, small, zero_stage=zero).model_dump_json() for zero in levels])
    for zero in levels:
        step, tensors = state(tmp_path / str(zero))
        assert step == 6
        equal(state(tmp_path / f"whole{zero}")[1], tensors, (stage, zero))
    if stage == "tokenizer":
        assert {"buffer/vq.codebook", "buffer/vq.code_sum", "buffer/vq.generator_state"} <= tensors.keys()
    values = [lines(tmp_path / f"whole{zero}")[-1] for zero in levels]
    assert [value["held_out"] for value in values] == pytest.approx([values[0]["held_out"]] * 4, rel=1e-3)


def test_a_rank_that_hangs_is_named_when_the_others_have_waited_long_enough(home, small, tmp_path):
    given = job("tokenizer", tmp_path, home, small, steps=5000, timeout_minutes=0.1, checkpoint_every=10000)
    processes = ranks.start(train_one, 2, given.model_dump_json())
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() or len(lines(tmp_path)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGSTOP)
    processes[0].join(60)
    os.kill(processes[1].pid, signal.SIGKILL)
    failure = json.loads((tmp_path / "failures" / "rank-00000.json").read_text())
    assert failure["kind"] == "RankLost"
    assert f"rank 1 (process {processes[1].pid}" in failure["text"]
    assert "was last heard of" in failure["text"]


LOADS = {"tokenizer": LandmarkTokenizer, "predictor": LandmarkPredictor, "dit": LaToTransformer}


@pytest.mark.parametrize(("stage", "launcher"), [("tokenizer", "plain"), ("predictor", "ray"), ("dit", "ray")])
def test_a_launched_training_is_exported_registered_and_recognised(stage, launcher, home, small, tmp_path, ray_session):
    from mlflow import MlflowClient

    from training.launch import train

    given = job(stage, tmp_path / "run", home, small)
    inputs = inputs_of(given)
    uri = default_uri(str(tmp_path))
    result = train(given, inputs, uri, "tests", launcher=launcher)
    assert LOADS[stage].from_pretrained(result.export) is not None
    client = MlflowClient(uri)
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.inputs.dataset_inputs[0].dataset.digest == inputs[str(small)][:36]
    assert client.get_model_version_by_alias(f"lato-{stage}", "last").run_id == result.run_id
    steps = [entry.step for entry in client.get_metric_history(result.run_id, "loss")]
    assert steps == sorted(set(steps))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = train(given, inputs, uri, "tests", launcher=launcher)
    assert again.run_id == result.run_id
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert export_one(tmp_path / "run", "4")["step"] == 4
    assert LOADS[stage].from_pretrained(tmp_path / "run" / "export-4") is not None
    with pytest.raises(UserError, match="no checkpoint 5; there are those of steps 2, 4, 6"):
        export_one(tmp_path / "run", "5")


def test_ctrl_c_ends_a_training_and_is_not_kept_by_it(home, small, tmp_path, ray_session):
    from training.launch import train

    given = job("tokenizer", tmp_path / "run", home, small, steps=10**6, checkpoint_every=10**6, eval_every=10**6)
    ended = threading.Event()

    def stop_at_step_3():
        while not ((tmp_path / "run" / "metrics.jsonl").exists() and len(lines(tmp_path / "run")) >= 3):
            if ended.wait(0.05):
                return
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=stop_at_step_3, daemon=True).start()
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(given, inputs_of(given), default_uri(str(tmp_path)), "tests")
    ended.set()
    assert signal.getsignal(signal.SIGINT) is usual
    pids = [json.loads(path.read_text())["pid"] for path in (tmp_path / "run" / "ranks").glob("*.json")]
    assert len(pids) == 2
    deadline = time.monotonic() + 10  # one that has ended is there until Ray has taken note of it
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_rank_ends_with_a_driver_that_is_killed():
    """Else it would train on beside those that the same command starts next."""
    rank = "import time; from training.rank import _end_with_driver; _end_with_driver(); print('ready', flush=True); time.sleep(600)"
    driver = (
        "import os, subprocess, sys; from training.rank import DRIVER;"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=os.environ | {DRIVER: str(os.getpid())}).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", driver, rank], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    children = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()
    assert not alive


def test_more_ranks_than_the_cluster_has_are_refused_before_the_start(home, small, tmp_path, ray_session):
    from training.launch import train

    given = job("tokenizer", tmp_path / "run", home, small, workers=64, global_batch=64)
    with pytest.raises(UserError, match=r"engine.workers=64: .* 2 of them find a place \(missing: 62 CPU\)"):
        train(given, inputs_of(given), default_uri(str(tmp_path)), "tests")


def test_a_checkpoint_of_another_architecture_is_refused(home, small, tmp_path):
    given = job("tokenizer", tmp_path, home, small, steps=2)
    ranks.run(train_one, 1, given.model_dump_json())
    assert checkpoint.newest(given.checkpoint_folder)
    wider = changed(given, code_dim=24)
    processes = ranks.start(train_one, 1, wider.model_dump_json())
    processes[0].join(60)
    said = json.loads((tmp_path / "failures" / "rank-00000.json").read_text())["text"]
    assert "this checkpoint is of another model" in said
    assert "encoder.conv_out" in said
    processes = ranks.start(
        train_one, 1, changed(given, num_codes=24).model_dump_json()
    )  # the codebook is a buffer, not trained by gradients
    processes[0].join(60)
    said = json.loads((tmp_path / "failures" / "rank-00000.json").read_text())["text"]
    assert "this checkpoint is of another model" in said
    assert "vq.codebook: (32, 16), here (24, 16)" in said
