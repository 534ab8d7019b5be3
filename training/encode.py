"""Encode: text states of every sample, with the instruction and without, once; the DiT then trains without the VLM in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from infra.console import Progress
from infra.errors import UserError
from infra.storage import commit, sha256_file
from training.data import Dataset

_BUNDLE = 64
_BATCH = 16


@dataclass
class TextCache:
    """Cached states, keyed by sample."""

    folder: Path
    dim: int
    files: dict[str, str]
    """Key -> file."""

    @classmethod
    def open(cls, folder: Path, digest: str) -> TextCache:
        """Opens a cache.

        Raises:
            UserError: It is not there, or belongs to another dataset version.
        """
        index_file = folder / "index.json"
        if not index_file.is_file():
            raise UserError(f"{folder}: no text states here. Make them: lato train encode")
        index = json.loads(index_file.read_text())
        if index["dataset"] != digest:
            raise UserError(f"{folder}: these text states belong to another dataset version ({index['dataset'][:12]}). Encode again.")
        return cls(folder, index["dim"], index["files"])

    def states(self, key: str, with_instruction: bool) -> Tensor:
        """(L, D) float32 states of a sample; of the empty instruction where `with_instruction` is False."""
        with safe_open(str(self.folder / self.files[key]), framework="pt") as file:
            return file.get_tensor(f"{key}.{'text' if with_instruction else 'null'}").float()


def encode_text(dataset: Dataset, encoder: Path, folder: Path) -> None:
    """Encodes all samples that are not encoded yet, on Ray.

    Args:
        dataset: The version.
        encoder: Folder of the VLM.
        folder: Where the states go; a cache of another encoder or version there is refused by making its file names differ.
    """
    import ray

    revision = sha256_file(str(encoder / "model.safetensors"))[:16]
    bundles = [dataset.rows[start : start + _BUNDLE] for start in range(0, len(dataset.rows), _BUNDLE)]
    names = [f"{dataset.digest[:16]}-{revision}-{number:05d}.safetensors" for number in range(len(bundles))]
    todo = [(name, bundle) for name, bundle in zip(names, bundles, strict=True) if not (folder / name).exists()]
    progress = Progress("encode text", sum(len(bundle) for _, bundle in todo), "samples")
    folder.mkdir(parents=True, exist_ok=True)
    task = ray.remote(num_cpus=1, max_retries=1)(_encode_bundles)
    halves = [half for half in (todo[0::2], todo[1::2]) if half]
    waiting = {task.remote(dataset.uri, str(encoder), half, str(folder)): half for half in halves}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        half = waiting.pop(ready[0])
        ray.get(ready[0])
        progress.advance(sum(len(bundle) for _, bundle in half))
    files = {row["key"]: name for name, bundle in zip(names, bundles, strict=True) for row in bundle}
    with safe_open(str(folder / names[0]), framework="pt") as file:
        dim = file.get_tensor(f"{bundles[0][0]['key']}.text").shape[1]
    index = {"dataset": dataset.digest, "encoder": revision, "dim": dim, "files": files}
    commit(str(folder / "index.json"), json.dumps(index).encode())


def _encode_bundles(uri: str, encoder_folder: str, todo: list[tuple[str, list[dict[str, Any]]]], folder: str) -> None:
    from lato.text_encoder import TextEncoder

    torch.set_num_threads(1)
    encoder = TextEncoder.from_pretrained(encoder_folder)
    dataset = Dataset.open(uri)
    for name, bundle in todo:
        tensors: dict[str, Tensor] = {}
        for start in range(0, len(bundle), _BATCH):
            pairs = [dataset.read(row) for row in bundle[start : start + _BATCH]]
            images = [pair.source_image() for pair in pairs]
            for member, texts in (("text", [pair.meta.instruction for pair in pairs]), ("null", [""] * len(pairs))):
                for pair, state in zip(pairs, encoder.encode(images, texts), strict=True):
                    tensors[f"{pair.key}.{member}"] = state.to(torch.bfloat16).contiguous()
        temporary = Path(folder) / f".{name}"
        save_file(tensors, temporary)
        temporary.replace(Path(folder) / name)
