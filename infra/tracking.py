"""MLflow, kept at arm's length: a run takes parameters, metrics, pictures and files; a tracking server that fails never stops a job.

What could not be sent is written to a file beside the job's outputs and sent when the run is next opened.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_LONGEST_VALUE = 500


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
        self._attempt(lambda: self._client.log_image(self.run_id, image, artifact_file=name), f"image {name}")

    def artifact(self, path: str, folder: str | None = None) -> None:
        """Stores a file."""
        self._attempt(lambda: self._client.log_artifact(self.run_id, path, folder), f"file {path}")

    def text(self, text: str, name: str) -> None:
        """Stores a text as a file."""
        self._attempt(lambda: self._client.log_text(self.run_id, text, name), f"text {name}")

    def dataset(self, name: str, digest: str, uri: str) -> None:
        """Links the run to a dataset version."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": uri}))
        tags = [InputTag("mlflow.data.context", "training")]
        self._attempt(lambda: self._client.log_inputs(self.run_id, [DatasetInput(entity, tags)]), f"dataset {name}")

    def close(self, status: str = "FINISHED") -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        self._attempt(lambda: self._client.set_terminated(self.run_id, status), f"status {status}")

    def replay(self) -> None:
        """Sends what an earlier failure left behind."""
        if not self._backlog.exists():
            return
        entries = [json.loads(line) for line in self._backlog.read_text().splitlines()]
        self._backlog.unlink()
        for kind, value in entries:
            self._send(kind, value)

    def _send(self, kind: str, value: Any) -> None:
        if not self._attempt(lambda: self._log(kind, value), kind):
            self._backlog.parent.mkdir(parents=True, exist_ok=True)
            with self._backlog.open("a") as file:
                file.write(json.dumps([kind, value]) + "\n")

    def _log(self, kind: str, value: Any) -> None:
        from mlflow.entities import Metric, Param, RunTag

        if kind == "metrics":
            metrics = [Metric(name, number, value["time"], value["step"]) for name, number in value["values"].items()]
            self._client.log_batch(self.run_id, metrics=metrics)
        elif kind == "params":
            known = self._client.get_run(self.run_id).data.params  # logging another value for a known name is an error
            self._client.log_batch(self.run_id, params=[Param(name, text) for name, text in value.items() if name not in known])
        else:
            self._client.log_batch(self.run_id, tags=[RunTag(name, text) for name, text in value.items()])

    def _attempt(self, call: Callable[[], Any], what: str) -> bool:
        try:
            call()
        except Exception as error:  # tracking is a guest here: whatever it raises is told, and the job goes on
            logging.getLogger("lato.tracking").warning("MLflow did not take %s: %s", what, str(error).splitlines()[0][:200])
            return False
        return True


def open_run(uri: str, experiment: str, name: str, backlog: str, parent_run_id: str | None = None, run_id: str | None = None) -> Run:
    """Opens a new run, or goes on with `run_id`.

    Args:
        uri: Tracking server or `sqlite:///` database.
        experiment: Made if absent.
        name: The run's name.
        backlog: File for what cannot be sent.
        parent_run_id: Makes it a child of that run.
        run_id: A run to go on with.
    """
    _quieten()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
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
