"""Tracking: a real database and a real server; one that is down or slow never stops a job, loses nothing and doubles nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from infra.environment import describe_environment
from infra.errors import UserError
from infra.runs import delete_artifacts, runs_that_read
from infra.tracking import open_run, send_left
from tests.infra.servers import SlowWay, free_port, start_server, stop_server
from tests.infra.test_registry import check_registry


def _history(uri, run_id, name):
    from mlflow import MlflowClient

    return [(entry.step, entry.value) for entry in MlflowClient(uri).get_metric_history(run_id, name)]


def _until(condition, seconds=180):
    for _ in range(int(seconds * 20)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def test_a_run_holds_what_was_logged_and_resumes(tmp_path, uri):
    from mlflow import MlflowClient

    backlog = tmp_path / "backlog"
    parent = open_run(uri, "e", "parent", str(backlog))
    run = open_run(uri, "e", "child", str(backlog), parent.run_id)
    run.params({"engine": {"steps": 5}})
    run.metrics({"loss": 2.0, "loss/a:b": 1.5}, 1)
    run.dataset("pairs", "abc", "somewhere", weight=2)
    run.dataset("more", "def", "elsewhere", weight=1)
    run.close(seconds=300)
    again = open_run(uri, "e", "child", str(backlog), run_id=run.run_id)
    again.params({"engine": {"steps": 6}})  # would be an error in plain MLflow
    again.metrics({"loss": 1.0}, 2)
    again.close(seconds=300)
    parent.close(seconds=300)
    stored = MlflowClient(uri).get_run(run.run_id)
    assert stored.data.params == {"engine.steps": "5"}
    assert stored.data.metrics == {"loss": 1.0, "loss/a_b": 1.5}
    assert stored.data.tags["mlflow.parentRunId"] == parent.run_id
    assert {(given.dataset.digest, given.tags[1].value) for given in stored.inputs.dataset_inputs} == {("abc", "2"), ("def", "1")}
    assert stored.info.status == "FINISHED"
    assert not list(backlog.glob(f"{run.run_id}.jsonl"))


def test_many_metrics_go_together_and_a_step_only_once(tmp_path, uri):
    run = open_run(uri, "e", "r", str(tmp_path / "backlog"))
    calls = []
    log_batch = run.client.log_batch
    run.client.log_batch = lambda run_id, metrics=(), **more: (calls.append(len(metrics)), log_batch(run_id, metrics=metrics, **more))
    for step in [*range(100), *range(90, 110)]:
        run.metrics({f"name_{index}": step + index for index in range(30)}, step)
    run.close(seconds=300)
    assert sum(calls) == 110 * 30
    assert max(calls) <= 1000
    assert len(calls) <= 12
    assert _history(uri, run.run_id, "name_7") == [(step, step + 7) for step in range(110)]


def test_what_a_failing_server_does_not_take_is_sent_later(tmp_path, uri):
    from mlflow import MlflowClient

    backlog = tmp_path / "backlog"
    run = open_run(uri, "e", "r", str(backlog))

    def fail(*_, **__):
        raise ConnectionError("server is down")

    run.client.log_batch = fail
    run.metrics({"loss": 3.0}, 7)
    run.close(seconds=300)
    assert [json.loads(line)[0] for line in (backlog / f"{run.run_id}.jsonl").read_text().splitlines()] == ["metrics", "status"]
    send_left(uri, str(backlog), seconds=300)
    assert _history(uri, run.run_id, "loss") == [(7, 3.0)]
    assert MlflowClient(uri).get_run(run.run_id).info.status == "FINISHED"
    assert not (backlog / f"{run.run_id}.jsonl").exists()


def test_what_is_refused_is_put_aside_and_what_follows_is_sent(tmp_path, uri):
    backlog = tmp_path / "backlog"
    run = open_run(uri, "e", "r", str(backlog))
    run.metrics({"good": 1.0, "x" * 300: 2.0}, 1)  # longer than a name may be
    run.metrics({"good": 2.0}, 2)
    run.picture(tmp_path / "deleted-1.png", "deleted", 1)
    run.metrics({"good": 3.0}, 3)
    run.close(seconds=300)
    assert _history(uri, run.run_id, "good") == [(2, 2.0), (3, 3.0)]
    refused = [json.loads(line)[0] for line in (backlog / f"{run.run_id}.refused.jsonl").read_text().splitlines()]
    assert refused == ["metrics", "picture"]


def test_a_deleted_database_gets_a_new_run(tmp_path, uri, empty_database):
    run = open_run(uri, "e", "r", str(tmp_path / "backlog"))
    run.metrics({"loss": 1.0}, 1)
    run.close(seconds=300)
    shutil.copy(empty_database, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path}/other.db"
    again = open_run(other, "e", "r", str(tmp_path / "backlog"), run_id=run.run_id)
    assert again.run_id != run.run_id
    again.metrics({"loss": 1.0}, 1)
    again.close(seconds=300)
    assert _history(other, again.run_id, "loss") == [(1, 1.0)]


_DRIVER = """
import sys, time
from pathlib import Path
from infra.tracking import open_run
from training.follow import Follower
uri, folder, run_id = sys.argv[1:]
run = open_run(uri, "e", "r", str(Path(folder) / "backlog"), run_id=run_id)
follower = Follower("stage", Path(folder), run)
follower.start()
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", [1, 2, 3, 4])
def test_a_driver_killed_while_it_logs_doubles_no_step_and_loses_none(tmp_path, uri, point):
    """Points 1 and 3 lie between MLflow's having taken something and its being remembered, 2 and 4 after it. The steps since the checkpoint are then
    made once more, at other times.
    """
    from training.follow import Follower

    def write(steps):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            for step in steps:
                file.write(json.dumps({"time": time.time(), "step": step, "loss": 1 / (step + 1), "lr": 0.1}) + "\n")

    run_id = open_run(uri, "e", "r", str(tmp_path / "backlog")).run_id
    write(range(6))
    environment = os.environ | {"LATO_FAIL_AT_STEP": str(point), "LATO_FAIL_IN": ".sent.json"}
    driver = subprocess.run([sys.executable, "-c", _DRIVER, uri, str(tmp_path), run_id], env=environment, cwd=Path(__file__).parents[2])
    assert driver.returncode == -signal.SIGKILL
    with (tmp_path / "backlog" / f"{run_id}.jsonl").open("ab") as file:
        file.write(b'["metrics", {"val')  # as a kill in the middle of a write leaves it
    write(range(4, 9))
    run = open_run(uri, "e", "r", str(tmp_path / "backlog"), run_id=run_id)
    follower = Follower("stage", tmp_path, run)
    follower.start()
    follower.finish()
    run.close(seconds=300)
    for name in ("loss", "lr"):
        assert [step for step, _ in _history(uri, run_id, name)] == list(range(9))


def test_an_environment_is_told_and_logged(tmp_path, uri):
    from mlflow import MlflowClient

    environment = describe_environment()
    assert set(environment) >= {
        "git.commit",
        "git.dirty",
        "version.python",
        "version.torch",
        "lock.sha256",
        "host.names",
        "host.cpu",
        "host.gpus",
    }
    assert all(environment.values())
    run = open_run(uri, "e", "r", str(tmp_path / "backlog"))
    run.describe({"config": {"steps": 3, "data": [1, 2]}}, environment)
    run.close(seconds=300)
    stored = MlflowClient(uri).get_run(run.run_id)
    assert stored.data.params == {"config.steps": "3", "config.data": "[1, 2]"}
    assert stored.data.tags["version.torch"] == environment["version.torch"]
    assert (
        tmp_path / "mlartifacts" / run.run_id / "artifacts" / "config.yaml"
    ).read_text() == "config:\n  steps: 3\n  data:\n  - 1\n  - 2\n"


@pytest.mark.slow
def test_a_real_server_that_dies_is_slow_and_comes_back_misses_and_doubles_nothing(tmp_path, empty_database, monkeypatch):
    from mlflow import MlflowClient

    shutil.copy(empty_database, tmp_path / "server.db")
    backlog, port = tmp_path / "backlog", free_port()
    way = SlowWay(port)
    uri, slow = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{way.port}"
    with pytest.raises(UserError, match="does not answer"):
        open_run(uri, "e", "r", str(backlog))
    server = start_server(tmp_path, port)
    try:
        run = open_run(slow, "e", "r", str(backlog))
        run.metrics({"loss": 3.0}, 1)
        _until(lambda: _history(uri, run.run_id, "loss") == [(1, 3.0)])

        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        way.open.clear()  # the server takes what is sent, but its answers do not come: the client gives up and sends again
        for step in range(2, 50):
            run.metrics({"loss": 3.0 / step}, step)
        _until(lambda: way.held >= 2)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        assert [step for step, _ in _history(uri, run.run_id, "loss")] == list(range(1, 50))
        way.open.set()

        stop_server(server)
        run.metrics({"loss": 0.0}, 50)
        run.text("while it was down", "note.txt")
        run.image("black.png", np.zeros((8, 8, 3), np.uint8))
        run.dataset("pairs", "abc", "somewhere")
        run.close(seconds=300)  # gives up at once: the job ends, the backlog stays
        assert len((backlog / f"{run.run_id}.jsonl").read_text().splitlines()) >= 5
        again = open_run(slow, "e", "r", str(backlog), run_id=run.run_id)  # a resume needs no server
        again.metrics({"loss": 0.0}, 50)
        again.metrics({"loss": 0.0}, 51)
        server = start_server(tmp_path, port)
        again.close(seconds=300)
        stored = MlflowClient(uri).get_run(run.run_id)
        assert [step for step, _ in _history(uri, run.run_id, "loss")] == list(range(1, 52))
        assert {file.path for file in MlflowClient(uri).list_artifacts(run.run_id)} >= {"note.txt", "black.png"}
        assert stored.inputs.dataset_inputs[0].dataset.digest == "abc"
        assert stored.info.status == "FINISHED"
        assert not (backlog / f"{run.run_id}.jsonl").exists()
        assert runs_that_read(uri, ["abc"]) == [f"e / r ({run.run_id})"]
        assert delete_artifacts(uri, f"e / r ({run.run_id})") == 2  # a note may name a sample
        check_registry(uri, tmp_path, monkeypatch)
    finally:
        way.close()
        stop_server(server)
