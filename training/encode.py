"""Encode: states of the text encoder and latents of the image codec for every sample, once; the DiT then trains with neither in memory.

A picture with its instruction and the same picture with the empty one share all that comes before the text, so a sample is one prefix and two suffixes, in
bf16. A folder holds `states-*.safetensors` and for each dataset encoded into it an index, written last. A file's name is a function of what is in it:
the samples, the sha256 of the shard they lie in, and the revisions of encoder and codec. A run that was killed goes on with the files that stand, a view
or an extended version with those of its version.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from infra.addresses import folder_uri, is_local, join
from infra.config import Config
from infra.console import Progress, say
from infra.errors import UserError
from infra.lease import lease
from infra.place import Place
from infra.pool import run_all
from infra.storage import commit, delete, list_files, sha256_bytes, sha256_file, sha256_json, sweep_temporaries
from training.data import Dataset
from training.encode_worker import EncodeWorker, read_layout, size_of_sample
from training.encoded import EncodedCache as EncodedCache
from training.encoded import read_indexes
from training.ranges import list_sizes

_BUNDLE = 64
"""Samples in a file, at most; all of one shard."""
_SETTINGS = {"encoder": "text encoder", "vae": "image codec", "image_size": "picture size", "mirror": "mirrored pictures"}
"""What states depend on beside the samples, and what it is called."""
_NOT_READ = {"predictor.json", "generation_config.json", "README.md"}
"""Files in a model's folder that its states do not depend on."""


class EncodeConfig(Config):
    """What is encoded, and where."""

    image_size: int = Field(default=512, gt=0)
    """Side in pixels of the pictures that the image codec is given."""
    mirror: bool = False
    """Also encodes every picture mirrored, with left and right changed in its text; twice the size."""
    batch: int = Field(default=16, gt=0)
    """Pictures in one pass."""
    workers: int = Field(default=2, ge=0)
    """Ray actors; each loads the models. 0 encodes in this process."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of each."""


def revision_of(folder: str | Path) -> str:
    """A model's revision: sha256 over its weights, settings and processor, whatever its folder is called.

    Raises:
        UserError: There are no weights in it.
    """
    root = Path(folder)
    files = sorted(path for path in root.glob("*") if path.is_file() and not path.name.startswith(".") and path.name not in _NOT_READ)
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder}: no model here (no .safetensors file)")
    return sha256_json({path.name: sha256_file(str(path)) for path in files})


def encode(
    dataset: Dataset, encoder: str | Path, folder: str | Path, config: EncodeConfig | None = None, vae: str | Path | None = None
) -> str:
    """Encodes the samples that are not encoded yet, on Ray; says before how large it becomes.

    Args:
        dataset: The version or view.
        encoder: Folder of the VLM, on every machine.
        folder: Where states go, on disk or an object store; other datasets of the same encoder may be there.
        config: What and where.
        vae: Folder of the image codec, on every machine; None encodes no pictures.

    Returns:
        The encoder's revision.

    Raises:
        UserError: The folder holds states of another encoder or settings, a model cannot be read, or the disk has no room.
    """
    config, folder = config or EncodeConfig(), folder_uri(str(folder))
    encoder, vae = str(Path(encoder).absolute()), str(Path(vae).absolute()) if vae else None
    settings = {
        "encoder": revision_of(encoder),
        "vae": revision_of(vae) if vae else None,
        "image_size": config.image_size if vae else None,
        "mirror": config.mirror,
    }
    with lease(folder, "lato train encode"):
        sweep_temporaries(folder)
        indexes = [index for index in read_indexes(folder) if index["version"] not in dataset.tombstones]
        _refuse_other(folder, indexes, settings)
        standing = list_sizes(folder)
        bundles = _bundles(dataset, settings, indexes, standing)
        todo = [bundle for bundle in bundles if bundle["name"] not in standing]
        layout = size_of_sample(dataset, encoder, vae, config)
        _announce(dataset, folder, layout["bytes"], sum(len(bundle["keys"]) for bundle in todo))
        progress = Progress("encode", sum(len(bundle["keys"]) for bundle in todo), "samples")
        make = partial(EncodeWorker, dataset.uri, dataset.digest, encoder, vae, folder, config)
        for done in run_all(make, todo, config.workers, Place("encode", gpus=config.gpus)):
            progress.advance(len(done.job["keys"]))
        _publish(dataset, folder, settings, bundles, layout)
        _sweep(folder, dataset)
    return str(settings["encoder"])


def _bundles(dataset: Dataset, settings: dict[str, Any], indexes: list[dict[str, Any]], standing: dict[str, int]) -> list[dict[str, Any]]:
    """Files that hold the dataset's samples: those that stand (also of other datasets), and those to be made; each with its keys, as far as they are needed."""
    known = {
        (key, file["content"]): file for index in indexes for file in index["files"] if file["name"] in standing for key in file["keys"]
    }
    taken: dict[str, dict[str, Any]] = {}
    fresh: dict[str, list[str]] = defaultdict(list)
    for row in dataset.rows:
        content = dataset.files[row["shard"]].sha256
        if file := known.get((row["key"], content)):
            taken.setdefault(file["name"], {"name": file["name"], "content": content, "keys": []})["keys"].append(row["key"])
        else:
            fresh[content].append(row["key"])
    made = []
    for content, keys in sorted(fresh.items()):
        for start in range(0, len(keys), _BUNDLE):
            group = keys[start : start + _BUNDLE]
            name = f"states-{sha256_json([settings, content, group])[:24]}.safetensors"
            made.append({"name": name, "content": content, "keys": group})
    return [*taken.values(), *made]


def _announce(dataset: Dataset, folder: str, size: float, todo: int) -> None:
    total, needed = size * len(dataset.rows), size * todo
    done = f"; {len(dataset.rows) - todo:,} of them stand already" if todo < len(dataset.rows) else ""
    say(f"  encode {dataset.name}: {len(dataset.rows):,} samples, about {_amount(size)} each, {_amount(total)} in all, to {folder}{done}")
    if is_local(folder):
        free = shutil.disk_usage(Path(folder.removeprefix("file://"))).free
        if free < needed:
            raise UserError(f"{folder}: {_amount(needed)} are still to be written, {_amount(free)} are free. Choose a larger disk.")


def _publish(dataset: Dataset, folder: str, settings: dict[str, Any], bundles: list[dict[str, Any]], layout: dict[str, Any]) -> None:
    """Writes the table of places, then the index that names it."""
    sizes = list_sizes(folder)
    rows = []
    layouts = read_layout([join(folder, bundle["name"]) for bundle in bundles])
    for number, (bundle, places) in enumerate(zip(bundles, layouts, strict=True)):
        rows += [{"key": key, "file": number, **places[key]} for key in bundle["keys"]]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    name = f"index-{dataset.digest[:16]}"
    commit(join(folder, f"{name}.parquet"), buffer.getvalue())
    index = {
        "name": dataset.name,
        "dataset": dataset.digest,
        "version": dataset.version,
        "settings": settings,
        "text_dim": layout["text_dim"],
        "latent_shape": layout["latent_shape"],
        "table": f"{name}.parquet",
        "table_sha256": sha256_bytes(buffer.getvalue()),
        "files": [{**bundle, "bytes": sizes[bundle["name"]]} for bundle in bundles],
    }
    commit(join(folder, f"{name}.json"), json.dumps(index, sort_keys=True).encode())


def _sweep(folder: str, dataset: Dataset) -> None:
    """Deletes states of this version before samples were taken out of it for good, and files that no index names."""
    named: set[str] = set()
    for index in read_indexes(folder):
        if index["version"] in dataset.tombstones:
            for name in (f"index-{index['dataset'][:16]}.json", index["table"]):
                delete(join(folder, name))
        else:
            named.update(file["name"] for file in index["files"])
    for uri in list_files(folder, ".safetensors"):
        name = uri.rsplit("/", 1)[-1]
        if re.fullmatch(r"states-[0-9a-f]{24}\.safetensors", name) and name not in named:
            delete(uri)


def _refuse_other(folder: str, indexes: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    for index in indexes:
        differs = [name for name in _SETTINGS if index["settings"][name] != settings[name]]
        if differs:
            said = "; ".join(
                f"{_SETTINGS[name]}: {_short(index['settings'][name])} there, {_short(settings[name])} now" for name in differs
            )
            raise UserError(f"{folder}: states of other settings are here ({said}). Choose another folder, or delete this one.")


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else "none" if value is None else str(value)


def _amount(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
