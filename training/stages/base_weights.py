"""Values of a transformer that starts from a base folder, read one tensor at a time: nothing of the base is held twice, or whole."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lato.conversion import read_released
from lato.transformer import LaToTransformer

_NULLS = "null_landmarks.tokens"


class BaseWeights(Mapping[str, Tensor]):
    """Every parameter and buffer of a transformer on a base, by its name there.

    LoRA matrices start as PEFT starts them (A uniform by its width, B zero), each from a generator of its own name. Null tokens that the base never trained
    start at the codebook's mean.

    Args:
        folder: Of the base, one file or several with an index.
        transformer: Made for it, on the meta device, with its adapter.
        nulls: (68, d) what untrained null tokens start at.
        seed: Of the adapter.
    """

    def __init__(self, folder: str | Path, transformer: LaToTransformer, nulls: Tensor, seed: int) -> None:
        index = Path(folder) / "diffusion_pytorch_model.safetensors.index.json"
        one = {"": "diffusion_pytorch_model.safetensors"}
        names = sorted(set((json.loads(index.read_text())["weight_map"] if index.is_file() else one).values()))
        files = [read_released(Path(folder) / name) for name in names]
        self._home = {name: file for file in files for name in file}
        self._shapes = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
        self._nulls, self._seed = nulls, seed

    def __getitem__(self, name: str) -> Tensor:
        if ".lora_A." in name:
            digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            shape = self._shapes[name]
            return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(shape[1])  # kaiming with a = sqrt(5)
        if ".lora_B." in name:
            return torch.zeros(self._shapes[name])
        value = self._home[name.replace(".base_layer", "")][name.replace(".base_layer", "")]
        return self._nulls if name == _NULLS and not value.any() else value

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._shapes if ".lora_" in name or name.replace(".base_layer", "") in self._home)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (".lora_" in name or name.replace(".base_layer", "") in self._home)
