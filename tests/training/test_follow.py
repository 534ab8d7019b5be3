"""What the driver makes of a run's folder: points, pictures, checkpoints, registered exports; each once, whoever was killed."""

import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from infra.runs import delete_artifacts
from infra.tracking import open_run
from training import presets
from training.follow import Follower


def _write_metrics(folder, steps):
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            line = {"time": time.time(), "step": step, "steps": 20, "steps_per_second": 2.0, "seconds_left": 3.0, "loss": 1 / (step + 1)}
            file.write(json.dumps(line | ({"held_out": 0.5 + abs(step - 5)} if step % 5 == 0 else {})) + "\n")


def _write_picture(folder, name, step):
    (folder / "pictures").mkdir(exist_ok=True)
    Image.fromarray(np.full((40, 60, 3), step, np.uint8)).save(folder / "pictures" / f"{name}-{step}.png")


def _write_checkpoint(folder, step, held_out=0.5):
    at = folder / "checkpoints" / f"step-{step:06d}"
    at.mkdir(parents=True)
    (at / "COMPLETE").write_text(json.dumps({"step": step, "world_size": 2, "held_out": held_out, "files": {"weights": "ab" * 32}}))


def _write_export(folder, name, content, step=10, held_out=0.5):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "model.safetensors").write_text(content)
    card = {"step": step, "held_out": held_out, "weights": "ema", "checkpoint": str(folder / f"checkpoints/step-{step:06d}")}
    (folder / name / "training.json").write_text(json.dumps(card))


def _follow(uri, folder, run_id=None, ended_well=True, during=lambda: None):
    run = open_run(uri, "lato", "dit", str(folder / "mlflow_backlog"), run_id=run_id)
    follower = Follower("dit", folder, run)
    follower.start()
    during()
    follower.finish(ended_well)
    run.close(seconds=300)
    return run.run_id


def _artifacts(client, run_id, folder=None):
    found = []
    for entry in client.list_artifacts(run_id, folder):
        found += _artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def test_everything_in_a_run_folder_is_logged_once_over_two_drivers(tmp_path, uri, monkeypatch):
    from mlflow import MlflowClient

    client, folder = MlflowClient(uri), tmp_path / "run"
    _write_metrics(folder, range(11))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1, "step": 0, "notes": ["3 samples are left out"]}\n')
    _write_picture(folder, "edits", 5)
    _write_picture(folder, "edits", 10)
    _write_checkpoint(folder, 10)
    _write_export(folder, "export-best", "best", 5)
    _write_export(folder, ".export", "being written")
    run_id = _follow(uri, folder, ended_well=False)
    assert not client.search_registered_models(), "an export of a training that failed may be torn"

    _write_metrics(folder, range(8, 16))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1, "ste{"time": 2, "step": 99, "loss": 1.0}\n')  # a rank was killed while it wrote
    _write_picture(folder, "edits", 10)
    _write_picture(folder, "edits", 15)
    _write_checkpoint(folder, 20)
    _write_export(folder, "export", "last", 20)
    _write_export(folder, "export-12", "asked for", 12)
    said: list[str] = []
    monkeypatch.setattr("training.follow.say", said.append)
    _follow(uri, folder, run_id, during=lambda: _write_metrics(folder, range(16, 21)))

    assert [(entry.step, entry.value) for entry in client.get_metric_history(run_id, "loss")] == [
        (step, 1 / (step + 1)) for step in range(21)
    ]
    assert [entry.step for entry in client.get_metric_history(run_id, "held_out")] == [0, 5, 10, 15, 20]
    stored = client.get_run(run_id)
    assert set(stored.data.metrics) == {"loss", "held_out", "steps_per_second"}
    logged = _artifacts(client, run_id)
    assert [name.split("+")[2] for name in logged if name.endswith(".png")] == ["10", "15", "5"]
    checkpoint = json.loads((tmp_path / "mlartifacts" / run_id / "artifacts" / "checkpoints" / "step-000010.json").read_text())
    assert checkpoint["uri"] == str(folder / "checkpoints" / "step-000010")
    assert len(checkpoint["sha256"]) == 64
    assert checkpoint["files"] == {"weights": "ab" * 32}
    assert "checkpoints/step-000020.json" in logged
    assert (tmp_path / "mlartifacts" / run_id / "artifacts" / "notes.txt").read_text() == "3 samples are left out\n"

    versions = {alias: client.get_model_version_by_alias("lato-dit", alias) for alias in ("best", "last", "step-12")}
    assert {alias: (version.run_id, version.tags["step"]) for alias, version in versions.items()} == {
        "best": (run_id, "5"), "last": (run_id, "20"), "step-12": (run_id, "12"),
    }  # fmt: skip
    assert versions["best"].tags["held_out"] == "0.5"
    assert len(client.search_model_versions("name = 'lato-dit'")) == 3
    assert [line.split()[2] for line in said] == ["16", "20"], "what an earlier driver printed is not printed again"

    assert delete_artifacts(uri, f"lato / dit ({run_id})") == 10  # three, each also in small, three in the folder, notes
    left = _artifacts(client, run_id)
    assert {name.split("/")[0] for name in left} == {"checkpoints", "models"}
    assert left == [name for name in logged if name.startswith(("checkpoints/", "models/"))]
    assert not list((folder / "pictures").iterdir())


def test_the_last_model_is_the_best_too_where_none_before_was_better(tmp_path, uri):
    from mlflow import MlflowClient

    client, folder = MlflowClient(uri), tmp_path / "run"
    _write_metrics(folder, range(3))
    _write_checkpoint(folder, 5, 0.4)
    _write_checkpoint(folder, 10, 0.6)
    _write_export(folder, "export-best", "earlier", 5)
    _write_export(folder, "export", "last", 10)
    run_id = _follow(uri, folder)
    assert [client.get_model_version_by_alias("lato-dit", alias).tags["step"] for alias in ("best", "last")] == ["5", "10"]
    _write_checkpoint(folder, 15, 0.3)  # the run goes on, and becomes better
    shutil.rmtree(folder / "export-best")
    _write_export(folder, "export", "later", 15)
    _follow(uri, folder, run_id)
    assert [client.get_model_version_by_alias("lato-dit", alias).tags["step"] for alias in ("best", "last")] == ["15", "15"]


def test_a_store_that_fails_for_a_moment_ends_no_follower(tmp_path, uri, monkeypatch):
    from mlflow import MlflowClient

    folder, asked = tmp_path / "run", []
    _write_metrics(folder, range(3))

    def list_folders(uri):
        asked.append(uri)
        if len(asked) < 3:
            raise RuntimeError("what a store's library raises")
        return []

    monkeypatch.setattr("training.follow.list_folders", list_folders)
    _write_export(folder, "export", "last")
    run_id = _follow(uri, folder, during=lambda: time.sleep(4))
    assert MlflowClient(uri).get_model_version_by_alias("lato-dit", "last").run_id == run_id


def test_what_stopped_a_rank_is_not_hidden_behind_a_disk_that_takes_no_note(tmp_path, monkeypatch):
    from infra.errors import UserError
    from training.config import DataSource
    from training.rank import work
    from training.stage_factory import Job

    monkeypatch.setenv("RANK", "0")
    (tmp_path / "failures").touch()  # no folder can be made here
    config = presets.preset("tokenizer", "tiny")
    with pytest.raises(UserError, match="no published dataset version here"):
        work(Job(stage="tokenizer", config=config, data=(DataSource(uri=str(tmp_path / "gone")),), folder=str(tmp_path)))


def test_a_database_that_fails_stops_nobody(tmp_path, uri):
    folder = tmp_path / "run"
    _write_metrics(folder, range(3))
    run = open_run(uri, "lato", "dit", str(folder / "mlflow_backlog"))

    def fail(*_, **__):
        raise ConnectionError("it is down")

    run.client.log_batch = run.client.log_artifacts = run.client.log_text = fail
    follower = Follower("dit", folder, run)
    follower.start()
    _write_export(folder, "export", "last")
    follower.finish()
    run.close("FAILED", seconds=300)
    kinds = [json.loads(line)[0] for line in (folder / "mlflow_backlog" / f"{run.run_id}.jsonl").read_text().splitlines()]
    assert kinds == ["tags", "metrics", "metrics", "metrics", "model", "status"]


def test_a_stop_that_was_asked_of_a_run_that_has_ended_does_not_stop_the_next(tmp_path, uri, monkeypatch):
    from training import launch
    from training.stage_factory import Job

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "stop-now").touch()

    def fit(job, folder):
        assert not (folder / "stop-now").exists()
        _write_metrics(folder, range(6))

    monkeypatch.setattr(launch, "_fit_plain", fit)
    config = presets.preset("tokenizer", "tiny")
    launch.train(Job(stage="tokenizer", config=config, data=(), folder=str(folder)), {}, uri, "lato", launcher="plain")
