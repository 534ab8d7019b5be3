"""The demo's run in MLflow: one for what it is made of."""

from mlflow import MlflowClient

from infra.jobs.demo import _open_run


def test_a_demo_that_is_changed_has_a_run_of_its_own(uri, tmp_path):
    (tmp_path / "mlflow_run").write_text("written by an earlier version")
    found = []
    for made_of, score in (("a", 0.2), ("a", 0.2), ("b", 0.9)):
        run = _open_run(uri, str(tmp_path), made_of)
        run.metrics({"lato_true.identity": score})
        run.close()
        found.append(run.run_id)
    assert found[0] == found[1] != found[2], "the same demo goes on with its run"
    runs = [MlflowClient(tracking_uri=uri).get_run(run_id) for run_id in found[1:]]
    assert [run.data.metrics["lato_true.identity"] for run in runs] == [0.2, 0.9]
