"""The weights of a diffusers pipeline that edited photos: which files, with their sha256, written down by who loaded them, beside what they made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.addresses import join
from infra.state import read_json, reading
from infra.storage import commit_changed, exists, sha256_file, sha256_json

_MEND = (
    "It says which weights made pictures that stay: restore it from a copy; or delete it, and versions list the pipeline without sha256."
)


def weights_of(pipeline: str) -> list[dict[str, str]]:
    """`name` and `sha256` of every weights file of a pipeline that was loaded just now.

    Args:
        pipeline: A local folder, or a name on the hub: its files lie in the hub's cache, in a folder that is named by the commit.
    """
    folder, name = Path(pipeline), f"diffusers {pipeline}"
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(pipeline, "model_index.json")
        if not isinstance(found, str):
            return []
        folder = Path(found).parent
        name += f"@{folder.name}"
    files = sorted(folder.rglob("*.safetensors")) or sorted(folder.rglob("*.bin"))
    return [{"name": f"{name} {file.relative_to(folder).as_posix()}", "sha256": sha256_file(str(file))} for file in files]


def keep_weights(pipeline: str, work: str) -> None:
    """Adds a pipeline's weights to those that are known to have edited photos of a build: pictures of earlier ones stay."""
    known = {(row["name"], row["sha256"]): row for row in [*read_weights(pipeline, work), *weights_of(pipeline)]}
    commit_changed(_uri(pipeline, work), json.dumps([known[key] for key in sorted(known)], indent=1).encode())


def read_weights(pipeline: str, work: str) -> list[dict[str, Any]]:
    """What is known of the weights that edited a build's photos; nothing where an earlier LaTo edited them, or none was edited.

    Raises:
        UserError: The file is damaged.
    """
    uri = _uri(pipeline, work)
    found = read_json(uri, mend=_MEND) if exists(uri) else []
    with reading(uri, _MEND):
        return [{"name": str(row["name"]), "sha256": str(row["sha256"])} for row in found]


def _uri(pipeline: str, work: str) -> str:
    return join(work, "synthetic", f"weights_{sha256_json(pipeline)[:24]}.json")
