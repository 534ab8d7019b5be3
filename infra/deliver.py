"""How what was logged reaches MLflow: called by the thread of an outbox, so an entry may come twice, and every kind bears that."""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any

from PIL import Image

from infra.outbox import Entry, Refused
from infra.registry import register

REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "BAD_REQUEST",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "MALFORMED_REQUEST",
}
"""Errors of MLflow that another attempt does not mend."""
_MOST_METRICS, _MOST_PARAMS = 1000, 100
"""In one call, by MLflow's rules."""


def clean(name: str) -> str:
    """A name with only what MLflow allows in it."""
    return re.sub(r"[^\w./ -]", "_", name)


def deliver(client: Any, run_id: str, entries: list[Entry]) -> int:
    """Sends the first entry, or all metrics up to the next entry of another kind."""
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    batch: list[Any] = []
    count = 0
    for entry in entries:
        if entry.kind != "metrics" or (count and len(batch) + len(entry.value["values"]) > _MOST_METRICS):
            break
        batch += [Metric(name, number, entry.value["time"], entry.value["step"]) for name, number in entry.value["values"].items()]
        count += 1
    try:
        if count:
            # a batch that was taken but not answered is sent again: MLflow's databases hold the same value of the same instant once
            client.log_batch(run_id, metrics=batch)
        else:
            _log(client, run_id, entries[0].kind, entries[0].value)
    except FileNotFoundError as error:  # a picture or an export that was deleted since
        raise Refused(str(error)) from error
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        if count > 1:  # one of them is to blame: find it
            return deliver(client, run_id, entries[:1])
        raise Refused(str(error)) from error
    return max(1, count)


def _log(client: Any, run_id: str, kind: str, value: Any) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    if kind == "params":
        known = client.get_run(run_id).data.params  # logging another value for a known name is an error
        params = [Param(name, text) for name, text in value.items() if name not in known]
        for first in range(0, len(params), _MOST_PARAMS):
            client.log_batch(run_id, params=params[first : first + _MOST_PARAMS])
    elif kind == "tags":
        client.log_batch(run_id, tags=[RunTag(name, text) for name, text in value.items()])
    elif kind == "text":
        client.log_text(run_id, value["text"], value["name"])
    elif kind == "artifact":
        client.log_artifact(run_id, value["path"], value["folder"])
    elif kind == "image":
        client.log_image(run_id, Image.open(io.BytesIO(base64.b64decode(value["png"]))), artifact_file=value["name"])
    elif kind == "picture":
        _log_picture(client, run_id, value)
    elif kind == "dataset":
        entity = Dataset(name=value["name"], digest=value["digest"], source_type="local", source=json.dumps({"uri": value["uri"]}))
        tags = [InputTag("mlflow.data.context", "training")]
        if value["weight"] is not None:
            tags.append(InputTag("weight", f"{value['weight']:g}"))
        client.log_inputs(run_id, [DatasetInput(entity, tags)])
    elif kind == "model":
        register(client, run_id, **value)
    else:
        assert kind == "status", kind
        client.set_terminated(run_id, value["status"], value["time"])


def _log_picture(client: Any, run_id: str, value: Mapping[str, Any]) -> None:
    """As `MlflowClient.log_image` with a key and a step, but under names that are the same when it is sent twice."""
    from mlflow.tracking.multimedia import compress_image_size

    unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{value['key']} {value['step']}")
    name = f"{value['key'].replace('/', '~')}+step+{value['step']}+timestamp+{value['time']}+{unique}"
    with Image.open(value["path"]) as image, tempfile.TemporaryDirectory() as folder:
        image.save(f"{folder}/{name}.png")
        compress_image_size(image).save(f"{folder}/{name}+compressed.webp")
        client.log_artifacts(run_id, folder, "images")
    client.set_tag(run_id, "mlflow.loggedImages", True)
