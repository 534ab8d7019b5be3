"""MLflow, kept at arm's length: a run takes parameters, metrics, pictures and files; a tracking server that fails never stops a job.

What could not be sent is written to a file beside the job's outputs, and sent when the server is back or the run is next opened.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra.errors import UserError
from infra.storage import commit

_LONGEST_VALUE = 500
_RETRY_SECONDS = 30.0
"""Between two attempts to send a backlog."""


def default_uri(work: str) -> str:
    """The tracking database of a work folder."""
    return f"sqlite:///{Path(work).absolute()}/mlflow.db"


def ui_command(work: str) -> str:
    """The one command that opens MLflow on a work folder."""
    return f"mlflow ui --host 127.0.0.1 --backend-store-uri {default_uri(work)}"


class Run:
    """An MLflow run, open until `close`."""

    def __init__(self, client: Any, run_id: str, backlog: Path) -> None:
        self._client, self.run_id, self._backlog = client, run_id, backlog
        self._replayed = 0.0

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters, nested keys joined by dots; those already logged stay as they are."""
        flat = {name: str(value)[:_LONGEST_VALUE] for name, value in _flatten(values).items()}
        self._send("params", flat)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers at a step."""
        entry = {"values": {name: float(value) for name, value in values.items()}, "step": step, "time": int(time.time() * 1000)}
        self._send("metrics", entry)

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._send("tags", dict(values))

    def image(self, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Stores an RGB picture as an artifact, `name` with its suffix."""
        import cv2

        png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
        self._send("image", {"name": name, "png": base64.b64encode(png).decode()})

    def artifact(self, path: str, folder: str | None = None) -> None:
        """Stores a file."""
        self._send("artifact", {"path": path, "folder": folder})

    def text(self, text: str, name: str) -> None:
        """Stores a text as a file."""
        self._send("text", {"text": text, "name": name})

    def dataset(self, name: str, digest: str, uri: str) -> None:
        """Links the run to a dataset version."""
        self._send("dataset", {"name": name, "digest": digest[:36], "uri": uri})

    def close(self, status: str = "FINISHED") -> None:
        """Ends the run as FINISHED, FAILED or KILLED; sends first what is left."""
        self.replay()
        self._send("status", status)

    def replay(self) -> None:
        """Sends what earlier failures left behind; what fails again stays."""
        if not self._backlog.exists():
            return
        self._replayed = time.monotonic()
        entries = self._backlog.read_text().splitlines()
        for number, line in enumerate(entries):
            kind, value = json.loads(line)
            if not self._attempt(kind, value):
                commit(str(self._backlog), "".join(f"{left}\n" for left in entries[number:]).encode())
                return
        self._backlog.unlink()

    def _send(self, kind: str, value: Any) -> None:
        if self._backlog.exists() and time.monotonic() - self._replayed > _RETRY_SECONDS:
            self.replay()
        if not self._attempt(kind, value):
            self._backlog.parent.mkdir(parents=True, exist_ok=True)
            with self._backlog.open("a") as file:
                file.write(json.dumps([kind, value]) + "\n")

    def _attempt(self, kind: str, value: Any) -> bool:
        try:
            self._log(kind, value)
        except Exception as error:  # tracking is a guest here: whatever it raises is told, kept in the backlog, and the job goes on
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
            logging.getLogger("lato.tracking").warning("MLflow did not take %s (kept in %s): %s", kind, self._backlog, said)
            return False
        return True

    def _log(self, kind: str, value: Any) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        if kind == "metrics":
            metrics = [Metric(name, number, value["time"], value["step"]) for name, number in value["values"].items()]
            self._client.log_batch(self.run_id, metrics=metrics)
        elif kind == "params":
            known = self._client.get_run(self.run_id).data.params  # logging another value for a known name is an error
            self._client.log_batch(self.run_id, params=[Param(name, text) for name, text in value.items() if name not in known])
        elif kind == "tags":
            self._client.log_batch(self.run_id, tags=[RunTag(name, text) for name, text in value.items()])
        elif kind == "text":
            self._client.log_text(self.run_id, value["text"], value["name"])
        elif kind == "artifact":
            self._client.log_artifact(self.run_id, value["path"], value["folder"])
        elif kind == "image":
            self._client.log_image(self.run_id, Image.open(io.BytesIO(base64.b64decode(value["png"]))), artifact_file=value["name"])
        elif kind == "dataset":
            entity = Dataset(name=value["name"], digest=value["digest"], source_type="local", source=json.dumps({"uri": value["uri"]}))
            self._client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
        else:
            assert kind == "status", kind
            self._client.set_terminated(self.run_id, value)


def open_run(uri: str, experiment: str, name: str, backlog: str, parent_run_id: str | None = None, run_id: str | None = None) -> Run:
    """Opens a new run, or goes on with `run_id`.

    Args:
        uri: Tracking server or `sqlite:///` database.
        experiment: Made if absent.
        name: The run's name.
        backlog: File for what cannot be sent.
        parent_run_id: Makes it a child of that run.
        run_id: A run to go on with.

    Raises:
        UserError: A tracking server does not answer now. (One that stops answering later never stops a job.)
    """
    _quieten()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    if uri.startswith("http"):
        try:
            client.search_experiments(max_results=1)
        except MlflowException as error:
            raise UserError(f"the MLflow server at {uri} does not answer. Start it, or leave tracking to the work folder.") from error
    if run_id:
        try:
            client.update_run(run_id, status="RUNNING")
            run = Run(client, run_id, Path(backlog))
            run.replay()
            return run
        except MlflowException:
            pass  # the database was deleted since: a new run takes its place
    found = client.get_experiment_by_name(experiment)
    if found:
        experiment_id = found.experiment_id
    else:
        artifacts = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite") else None
        experiment_id = client.create_experiment(experiment, artifact_location=artifacts.as_uri() if artifacts else None)
    tags = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
    created = client.create_run(experiment_id, run_name=name, tags=tags)
    return Run(client, created.info.run_id, Path(backlog))


def runs_that_read(uri: str, digests: list[str]) -> list[str]:
    """Runs that were given one of these dataset versions, as `experiment / name (run id)`."""
    import mlflow

    _quieten()
    client = mlflow.MlflowClient(uri)
    wanted = {digest[:36] for digest in digests}
    found = []
    for experiment in client.search_experiments():
        page = client.search_runs([experiment.experiment_id])
        while True:
            for run in page:
                if any(given.dataset.digest in wanted for given in run.inputs.dataset_inputs):
                    found.append(f"{experiment.name} / {run.info.run_name} ({run.info.run_id})")
            if not page.token:
                break
            page = client.search_runs([experiment.experiment_id], page_token=page.token)
    return sorted(found)


def delete_pictures(uri: str, run: str) -> int:
    """Deletes the pictures and pages that a run logged (samples of its data are in them); returns how many.

    Args:
        uri: Of the tracking server.
        run: As `runs_that_read` names it.
    """
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    _quieten()
    client = mlflow.MlflowClient(uri)
    run_id = run.rsplit("(", 1)[1].rstrip(")")
    repository = get_artifact_repository(client.get_run(run_id).info.artifact_uri, tracking_uri=uri)
    deleted, folders = 0, [""]
    while folders:
        for entry in client.list_artifacts(run_id, folders.pop() or None):
            if entry.is_dir:
                folders.append(entry.path)
            elif entry.path.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".html")):
                repository.delete_artifacts(entry.path)
                deleted += 1
    return deleted


def _quieten() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
