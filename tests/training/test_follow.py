"""What the driver makes of a run's folder: points, pictures, checkpoints, registered exports; each once, whoever was killed."""

import json
import resource
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from infra.runs import delete_artifacts
from infra.tracking import open_run
from training import follow, launch, presets
from training.follow import Follower
from training.lines import line_writer
from training.stage_factory import Job


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


def test_a_store_that_fails_for_a_moment_ends_no_follower_and_hides_nothing(tmp_path, uri, monkeypatch):
    from mlflow import MlflowClient

    client, folder, waited = MlflowClient(uri), tmp_path / "run", []
    real = follow.list_folders

    def list_folders(uri):
        if len(waited) < 2:
            raise RuntimeError("what a store's library raises")
        return real(uri)

    monkeypatch.setattr(follow, "list_folders", list_folders)
    monkeypatch.setattr(follow, "wait", waited.append)
    _write_metrics(folder, range(3))
    _write_checkpoint(folder, 10)
    _write_export(folder, "export", "last")
    run_id = _follow(uri, folder, ended_well=False)
    assert waited == [], "who is interrupted is not kept waiting"
    _follow(uri, folder, run_id)
    assert waited == [1, 2]
    assert client.get_model_version_by_alias("lato-dit", "last").run_id == run_id
    assert "checkpoints/step-000010.json" in _artifacts(client, run_id)


def test_a_model_that_could_not_be_registered_is_when_the_same_command_runs_again(tmp_path, uri, monkeypatch):
    from mlflow import MlflowClient

    client, folder = MlflowClient(uri), tmp_path / "run"

    def fit(job, folder):
        _write_metrics(folder, range(6))
        _write_export(folder, "export", "last", 5)

    def fail(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(launch, "_fit_plain", fit)
    with monkeypatch.context() as patch:
        patch.setattr(follow, "wait", lambda _: None)
        patch.setattr(Follower, "_read_exports", fail)
        first = _train(folder, uri)
    assert not client.search_model_versions()
    ended = client.get_run(first.run_id).info
    for _ in range(2):
        assert _train(folder, uri) == first
        assert len(client.search_model_versions()) == 1
        assert [client.get_model_version_by_alias("lato-tokenizer", alias).run_id for alias in ("best", "last")] == [first.run_id] * 2
    assert client.get_run(first.run_id).info.end_time == ended.end_time and ended.status == "FINISHED"


def test_half_a_line_on_a_full_disk_does_not_take_the_next_one_with_it(tmp_path, capsys):
    report = line_writer(tmp_path / "metrics.jsonl")
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    report({"step": 1, "loss": 1.0})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 20, limits[1]))
        report({"step": 2, "loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    report({"step": 3, "loss": 3.0})
    assert [line["step"] for line in follow.read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert 'metrics.jsonl: File too large; not written: {"time"' in capsys.readouterr().err


def test_what_stopped_a_rank_is_not_hidden_behind_a_disk_that_takes_no_note(tmp_path, monkeypatch):
    from infra.errors import UserError
    from training.config import DataSource
    from training.rank import work

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
    _write_export(folder, "export", "last", held_out=None)  # what was not measured is not the best
    follower.finish()
    run.close("FAILED", seconds=300)
    kinds = [json.loads(line)[0] for line in (folder / "mlflow_backlog" / f"{run.run_id}.jsonl").read_text().splitlines()]
    assert kinds == ["tags", "metrics", "metrics", "metrics", "model", "status"]


def _train(folder, uri):
    given = Job(stage="tokenizer", config=presets.preset("tokenizer", "tiny"), data=(), folder=str(folder))
    return launch.train(given, {}, uri, "lato", launcher="plain")


def test_a_stop_that_was_asked_of_a_run_that_has_ended_does_not_stop_the_next(tmp_path, uri, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "stop-now").touch()

    def fit(job, folder):
        assert not (folder / "stop-now").exists()
        _write_metrics(folder, range(6))

    monkeypatch.setattr(launch, "_fit_plain", fit)
    _train(folder, uri)


def _beat(folder):
    (folder / "ranks").mkdir()
    (folder / "ranks" / "rank-00000.json").touch()


def test_a_stop_that_comes_with_the_last_step_ends_what_would_follow(tmp_path, uri, monkeypatch):
    """Ranks that end well all the same: their stage is recorded, and `lato quickstart` does not begin the next."""
    folder = tmp_path / "run"

    def fit(job, folder):
        _beat(folder)
        _write_metrics(folder, range(6))
        signal.raise_signal(signal.SIGTERM)
        assert (folder / "stop-now").exists()

    monkeypatch.setattr(launch, "_fit_plain", fit)
    with pytest.raises(KeyboardInterrupt):
        _train(folder, uri)
    assert not (folder / "stop-now").exists()
    monkeypatch.setattr(launch, "_fit_plain", None)
    assert _train(folder, uri).last == 0.5  # trained already


@pytest.mark.parametrize("heard", [False, True])
def test_a_stop_that_no_rank_would_meet_and_a_second_one_end_the_driver(tmp_path, heard):
    with launch._passing_on_stops(tmp_path) as stops:
        if heard:
            _beat(tmp_path)
            signal.raise_signal(signal.SIGTERM)
            assert stops.asked and (tmp_path / "stop-now").exists()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert not (tmp_path / "stop-now").exists()
