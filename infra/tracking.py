"""MLflow, kept at arm's length: a run takes parameters, metrics, pictures, files and models, and a thread sends them.

A tracking server that is down or slow never stops or slows a job: what is logged goes to a file first (`infra.outbox`), and is sent when the server is
back or the run is next opened. A metric's value at a step is sent once, however often it is logged.
"""

from __future__ import annotations

import base64
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from infra.deliver import REFUSALS, clean, deliver
from infra.errors import UserError
from infra.outbox import Outbox

_LONGEST_VALUE = 500
ANSWER_SECONDS = 30.0
"""How long the opening of a run waits for a server."""
_CLOSE_SECONDS = 60.0
"""How long the end of a run waits for a server that takes what is left, but slowly; for one that is down it does not wait."""
_R = TypeVar("_R")


def default_uri(work: str) -> str:
    """The tracking database of a work folder."""
    return f"sqlite:///{Path(work).absolute()}/mlflow.db"


def ui_command(work: str) -> str:
    """The one command that opens MLflow on a work folder."""
    return f"mlflow ui --host 127.0.0.1 --backend-store-uri {default_uri(work)}"


class Run:
    """An MLflow run, open until `close`. Its methods write to a file and return; MLflow is spoken to by a thread."""

    def __init__(self, client: Any, run_id: str, backlog: Path) -> None:
        self.client, self.run_id = client, run_id
        self._outbox = Outbox(backlog / f"{run_id}.jsonl", lambda entries: deliver(client, run_id, entries))

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters, nested keys joined by dots; those already logged stay as they are."""
        self._outbox.put("params", {clean(name): str(value)[:_LONGEST_VALUE] for name, value in _flatten(values).items()})

    def metrics(self, values: Mapping[str, float], step: int = 0, seconds: float | None = None) -> None:
        """Logs numbers at a step, at a time in seconds since 1970 (now if not given); a name that was logged at this step or a later one is left out."""
        new = {name: float(value) for given, value in values.items() if self._outbox.is_new(name := clean(given), step)}
        if new:
            entry = {"values": new, "step": step, "time": int((seconds or time.time()) * 1000)}
            self._outbox.put("metrics", entry, dict.fromkeys(new, step))

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._outbox.put("tags", dict(values))

    def describe(self, config: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Logs what the run is made of: the resolved config as parameters and `config.yaml`, `describe_environment()` as tags and `environment.yaml`.

        Args:
            config: Nested, of plain values.
            environment: Short texts by name.
        """
        self.params(config)
        self.text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), "config.yaml")
        self.text(yaml.safe_dump(dict(environment), sort_keys=False), "environment.yaml")
        commit_id = environment.get("git.commit", "unknown")
        shown = {"mlflow.source.git.commit": commit_id} if commit_id != "unknown" else {}
        self.tags({**environment, "mlflow.source.name": "lato", "mlflow.source.type": "PROJECT", **shown})

    def image(self, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Stores an RGB picture as an artifact, `name` with its suffix."""
        import cv2

        png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
        self._outbox.put("image", {"name": name, "png": base64.b64encode(png).decode()})

    def picture(self, path: Path, key: str, step: int) -> None:
        """Shows a PNG file among the run's images, at a step of the series `key`; once, however often that step is made."""
        value = {"path": str(path), "key": clean(key), "step": step, "time": int(time.time() * 1000)}
        self._put("picture", value, (f"picture {key}", step))

    def model(self, name: str, uri: str, alias: str, tags: Mapping[str, str] | None = None, once: tuple[str, float] | None = None) -> None:
        """Registers an exported model as a version of the model `name`, linked to the run (`infra.registry`); its folder is complete and stays there."""
        self._put("model", {"name": name, "uri": uri, "alias": alias, "tags": dict(tags or {})}, once)

    def artifact(self, path: str, folder: str | None = None) -> None:
        """Stores a file, which must stay where it is until it was sent."""
        self._outbox.put("artifact", {"path": path, "folder": folder})

    def text(self, text: str, name: str, once: tuple[str, float] | None = None) -> None:
        """Stores a text as a file; with `once`, (mark, number), only if nothing of this mark was stored with this number or a higher one."""
        self._put("text", {"text": text, "name": name}, once)

    def dataset(self, name: str, digest: str, uri: str, weight: float | None = None) -> None:
        """Links the run to a dataset version as its input, with its share in a mixture where it is one of several."""
        self._outbox.put("dataset", {"name": name, "digest": digest[:36], "uri": uri, "weight": weight})

    def close(self, status: str | None = "FINISHED", seconds: float = _CLOSE_SECONDS) -> None:
        """Ends the run as FINISHED, FAILED or KILLED (None: it stays as it ended); sends first what is left, while the server takes it and for so many
        seconds at most.
        """
        if status is not None:
            self._outbox.put("status", {"status": status, "time": int(time.time() * 1000)})
        if left := self._outbox.close(seconds):
            logging.getLogger("lato.tracking").warning(
                "MLflow has yet to take %d KB of run %s; they are kept, and sent when the same command runs again",
                -(-left // 1024),
                self.run_id,
            )

    def _put(self, kind: str, value: Any, once: tuple[str, float] | None) -> None:
        """Puts an entry in, unless something with this mark and this number or a higher one was, in this process or an earlier one."""
        if once is None or self._outbox.is_new(*once):
            self._outbox.put(kind, value, dict([once]) if once else None)


def open_run(uri: str, experiment: str, name: str, backlog: str, parent_run_id: str | None = None, run_id: str | None = None) -> Run:
    """Opens a new run, or goes on with `run_id`, whether or not the server answers then.

    Args:
        uri: Tracking server or `sqlite:///` database.
        experiment: Made if absent.
        name: The run's name.
        backlog: Folder for what is not sent yet.
        parent_run_id: Makes it a child of that run.
        run_id: A run to go on with.

    Raises:
        UserError: The tracking server of a new run does not answer. (One that stops answering later never stops a job.)
    """
    quieten()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    limit = ANSWER_SECONDS if uri.startswith("http") else None  # a database that makes its tables first may take that long
    if run_id:
        gone = False
        try:
            within(limit, lambda: client.update_run(run_id, status="RUNNING"))
        except (MlflowException, TimeoutError) as error:
            gone = isinstance(error, MlflowException) and error.error_code in REFUSALS
            if not gone:
                logging.getLogger("lato.tracking").warning("MLflow at %s does not answer; what is logged is kept in %s", uri, backlog)
        if not gone:  # else the database was deleted since: a new run takes its place
            return Run(client, run_id, Path(backlog))
    try:
        created = within(limit, lambda: _create(client, uri, experiment, name, parent_run_id))
    except (MlflowException, TimeoutError) as error:
        if not uri.startswith("http"):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"the MLflow server at {uri} does not answer. Start it, or leave tracking to the work folder. ({said})") from error
    return Run(client, created, Path(backlog))


def ended_run(uri: str, backlog: str, run_id: str) -> Run:
    """A run that has ended, for what was missed; whether or not the server answers."""
    quieten()
    from mlflow import MlflowClient

    return Run(MlflowClient(tracking_uri=uri), run_id, Path(backlog))


def send_left(uri: str, backlog: str, seconds: float = _CLOSE_SECONDS) -> None:
    """Sends what closed runs left in a backlog folder because the server was down, while it takes it and for so many seconds a run."""
    left = [path for path in sorted(Path(backlog).glob("*.jsonl")) if not path.name.endswith(".refused.jsonl")]
    for path in left:
        ended_run(uri, backlog, path.stem)._outbox.close(seconds)


def _create(client: Any, uri: str, experiment: str, name: str, parent_run_id: str | None) -> str:
    found = client.get_experiment_by_name(experiment)
    if found:
        experiment_id = found.experiment_id
    else:
        artifacts = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" if uri.startswith("sqlite") else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # else its page asks what it is, and shows the tabs of language models
        experiment_id = client.create_experiment(experiment, artifacts.as_uri() if artifacts else None, kind)
    tags = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
    created: str = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    return created


def within(seconds: float | None, ask: Callable[[], _R]) -> _R:
    """The result of a call that may hang; it is left behind when the time is over.

    Raises:
        TimeoutError: It is over.
    """
    got: list[_R] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            got.append(ask())
        except BaseException as error:  # it is raised again below, in the thread that asked
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not got:
        raise TimeoutError(f"no answer within {seconds} s")
    return got[0]


def quieten() -> None:
    """Before MLflow is imported: no telemetry, no chatter, no tries of its own."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the outbox tries again; and a slow server is given time
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
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
