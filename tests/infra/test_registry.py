"""The model registry: a model once, with its aliases, found by the data it was made of."""

import json
from pathlib import Path

from infra.registry import models_of
from infra.runs import runs_that_read
from infra.tracking import open_run


def _model(folder, content="weights"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "inner").mkdir(exist_ok=True)
    (folder / "inner" / "model.safetensors").write_text(content)
    return str(folder)


def check_registry(uri, tmp_path, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    client = MlflowClient(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # of `download_artifacts`
    run = open_run(uri, "e", "registry", str(tmp_path / "backlog"))
    run.dataset("pairs", "held-the-person", "somewhere")
    small = _model(tmp_path / "small")
    run.model("lato-dit", small, "last")
    run.model("lato-dit", small, "last")
    run.model("lato-dit", small, "best")
    run.close(seconds=300)
    first = client.get_model_version_by_alias("lato-dit", "best")
    assert (first.version, first.run_id, first.aliases) == (
        client.get_model_version_by_alias("lato-dit", "last").version,
        run.run_id,
        ["best", "last"],
    )
    assert len(client.search_model_versions("name = 'lato-dit'")) == 1
    fetched = download_artifacts("models:/lato-dit@best", tracking_uri=uri, dst_path=str(tmp_path / "fetched"))
    assert (Path(fetched) / "inner" / "model.safetensors").read_text() == "weights"

    monkeypatch.setattr("infra.registry.SMALL_BYTES", 3)
    run = open_run(uri, "e", "registry", str(tmp_path / "backlog"), run_id=run.run_id)
    run.model("lato-dit", _model(tmp_path / "large", "other weights"), "last")
    run.close(seconds=300)
    large = client.get_model_version_by_alias("lato-dit", "last")
    assert large.tags["stored"] == "by reference"
    fetched = download_artifacts("models:/lato-dit@last", tracking_uri=uri, dst_path=str(tmp_path / "fetched2"))
    reference = json.loads((Path(fetched) / "reference.json").read_text())
    assert reference["uri"] == str(tmp_path / "large")
    assert reference["sha256"] == large.tags["sha256"]
    assert set(reference["files"]) == {"config.json", "inner/model.safetensors"}
    found = models_of(uri, run.run_id)
    assert found == [
        f"lato-dit version {first.version} (best), {small}",
        f"lato-dit version {large.version} (last), {tmp_path / 'large'}",
    ]
    assert runs_that_read(uri, ["held-the-person"]) == [f"e / registry ({run.run_id})"]


def test_models_are_registered_once_with_aliases_and_found_by_their_data(tmp_path, uri, monkeypatch):
    check_registry(uri, tmp_path, monkeypatch)


def test_a_model_on_an_object_store_is_registered_where_it_lies(tmp_path, uri):
    import fsspec
    from mlflow import MlflowClient

    fsspec.filesystem("memory").pipe("/bucket/model/weights.safetensors", b"remote weights")
    run = open_run(uri, "e", "r", str(tmp_path / "backlog"))
    run.model("lato-dit", "memory://bucket/model", "best")
    run.close(seconds=300)
    version = MlflowClient(uri).get_model_version_by_alias("lato-dit", "best")
    assert version.source == "memory://bucket/model"
    assert version.tags["stored"] == "by reference"
    assert not (tmp_path / "mlartifacts" / run.run_id).exists()
