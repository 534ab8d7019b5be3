"""Tracking: a real database; and a server that is not there never stops a job."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from infra.tracking import default_uri, open_run, runs_that_read


def test_a_run_holds_what_was_logged_and_resumes(tmp_path):
    from mlflow import MlflowClient

    uri = default_uri(str(tmp_path))
    parent = open_run(uri, "e", "parent", str(tmp_path / "backlog"))
    run = open_run(uri, "e", "child", str(tmp_path / "backlog"), parent.run_id)
    run.params({"engine": {"steps": 5}})
    run.metrics({"loss": 2.0}, 1)
    run.dataset("pairs", "abc", "somewhere")
    run.close()
    again = open_run(uri, "e", "child", str(tmp_path / "backlog"), run_id=run.run_id)
    again.params({"engine": {"steps": 6}})  # would be an error in plain MLflow
    again.metrics({"loss": 1.0}, 2)
    again.close()
    stored = MlflowClient(uri).get_run(run.run_id)
    assert stored.data.params == {"engine.steps": "5"}
    assert stored.data.metrics == {"loss": 1.0}
    assert stored.data.tags["mlflow.parentRunId"] == parent.run_id
    assert stored.inputs.dataset_inputs[0].dataset.digest == "abc"
    assert stored.info.status == "FINISHED"


def test_what_a_failing_server_does_not_take_is_sent_later(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    uri = default_uri(str(tmp_path))
    backlog = tmp_path / "backlog"
    run = open_run(uri, "e", "r", str(backlog))
    with monkeypatch.context() as broken:
        broken.setattr(run._client, "log_batch", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("server is down")))
        run.metrics({"loss": 3.0}, 7)
    assert len(backlog.read_text().splitlines()) == 1
    assert json.loads(backlog.read_text())[0] == "metrics"
    open_run(uri, "e", "r", str(backlog), run_id=run.run_id).close()
    assert MlflowClient(uri).get_run(run.run_id).data.metrics == {"loss": pytest.approx(3.0)}
    assert not backlog.exists()


def _start_server(folder, port):
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return server
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
    raise AssertionError("the server did not start")


def _stop_server(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(30)


@pytest.mark.slow
def test_a_real_server_that_dies_and_comes_back_misses_nothing(tmp_path):
    from mlflow import MlflowClient

    port, uri = 5987, "http://127.0.0.1:5987"
    with pytest.raises(UserError, match="does not answer"):
        open_run(uri, "e", "r", str(tmp_path / "backlog"))
    server = _start_server(tmp_path, port)
    try:
        run = open_run(uri, "e", "r", str(tmp_path / "backlog"))
        run.metrics({"loss": 3.0}, 1)
        _stop_server(server)
        run.metrics({"loss": 2.0}, 2)
        run.text("while it was down", "note.txt")
        run.image("black.png", np.zeros((8, 8, 3), np.uint8))
        run.dataset("pairs", "abc", "somewhere")
        assert len((tmp_path / "backlog").read_text().splitlines()) == 4
        server = _start_server(tmp_path, port)
        run.close()
        stored = MlflowClient(uri).get_run(run.run_id)
        assert [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run.run_id, "loss")] == [(1, 3.0), (2, 2.0)]
        assert {file.path for file in MlflowClient(uri).list_artifacts(run.run_id)} >= {"note.txt", "black.png"}
        assert stored.inputs.dataset_inputs[0].dataset.digest == "abc"
        assert stored.info.status == "FINISHED"
        assert not (tmp_path / "backlog").exists()
        assert runs_that_read(uri, ["abc"]) == [f"e / r ({run.run_id})"]
    finally:
        _stop_server(server)
