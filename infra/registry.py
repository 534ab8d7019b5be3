"""Exported models in MLflow's registry: a version for each content, with its hash, linked to the run that made it, and found by alias.

A small folder is stored with the run. A large one, and one on an object store, stays where it is: the version says where, and what it hashed to.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.addresses import is_local
from infra.storage import list_files, list_folders, sha256_file, sha256_json

SMALL_BYTES = 64 << 20
"""A model folder on this machine up to this size is stored among the run's artifacts; a larger one by reference."""
_ABOUT = "`last` is the newest export, `best` that with the lowest held-out number of the newest run. A version by reference lies where its `uri` says."


def register(client: Any, run_id: str, name: str, uri: str, alias: str, tags: Mapping[str, str]) -> str:
    """Registers a model, or finds the version of this run with the same content, and moves the alias there; returns the version's number.

    Args:
        client: An `MlflowClient`.
        run_id: What made it.
        name: The registered model.
        uri: The model's folder.
        alias: For this version.
        tags: Further facts of the version.

    Raises:
        FileNotFoundError: There is nothing in the folder.
    """
    from mlflow.exceptions import MlflowException

    files = {file[len(uri.rstrip("/")) + 1 :]: sha256_file(file) for file in _files_below(uri.rstrip("/"))}
    if not files:
        raise FileNotFoundError(f"no exported model in {uri}")
    digest = sha256_json(files)
    try:
        client.create_registered_model(name, description=_ABOUT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [
        found for found in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'") if found.tags.get("sha256") == digest
    ]
    if known:
        version: str = known[0].version
    else:
        folder = f"models/{alias}-{digest[:12]}"
        source, kept = f"runs:/{run_id}/{folder}", "as an artifact"
        if not is_local(uri):
            source, kept = uri, "by reference"
        elif sum((Path(uri.removeprefix("file://")) / file).stat().st_size for file in files) > SMALL_BYTES:
            _store_reference(client, run_id, folder, {"uri": uri, "sha256": digest, "files": files})
            kept = "by reference"
        else:
            client.log_artifacts(run_id, uri.removeprefix("file://"), folder)
        facts = ", ".join(f"{key} {value}" for key, value in tags.items())
        created = client.create_model_version(
            name,
            source,
            run_id,
            tags={**tags, "uri": uri, "sha256": digest, "stored": kept},
            description=f"{alias}: {facts}; stored {kept}" if facts else f"{alias}, stored {kept}",
            await_creation_for=0,
        )
        version = created.version
    client.set_registered_model_alias(name, alias, version)
    return version


def models_of(uri: str, run_id: str) -> list[str]:
    """Registered model versions that a run made, as `name version 3 (best, last), uri`."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    found = []
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        aliases = sorted(client.get_model_version(version.name, version.version).aliases)  # a search does not tell them
        named = f" ({', '.join(aliases)})" if aliases else ""
        found.append(f"{version.name} version {version.version}{named}, {version.tags.get('uri', version.source)}")
    return sorted(found)


def _files_below(folder: str) -> list[str]:
    return list_files(folder) + [file for inner in list_folders(folder) for file in _files_below(inner)]


def _store_reference(client: Any, run_id: str, folder: str, reference: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "reference.json"
        path.write_text(json.dumps(reference, indent=1))
        client.log_artifact(run_id, str(path), folder)
