"""Tracking: a real database; and a server that is not there never stops a job."""

import json

import pytest

from infra.tracking import default_uri, open_run


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
