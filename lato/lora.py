"""Adapters: LoRA on the block Linears, with `landmark_in` and the null tokens trained in full. PEFT layers inside, kohya names (the release's) outside.

An adapter file holds both, and a fingerprint of the base it was trained on: on another base it would load without a word and draw nonsense.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

OWN_KEYS = ("landmark_in.weight", "landmark_in.bias", "null_landmarks.tokens", "landmark_places")
"""Trained in full beside the LoRA."""
_FILE = "pytorch_lora_weights.safetensors"
_KOHYA = "lora_unet_"
_ADAPTER = "default"
"""The adapter's name in PEFT and diffusers, theirs where none is given: a model has one adapter here."""
_SAMPLES = 4096


@dataclass(frozen=True)
class LoraWeights:
    """One Linear's update: weight + alpha / rank * up @ down."""

    down: Tensor
    """(rank, in)."""
    up: Tensor
    """(out, rank)."""
    alpha: float

    @property
    def delta(self) -> Tensor:
        """(out, in) float32."""
        return self.up.float() @ self.down.float() * (self.alpha / len(self.down))


class LandmarkAdapterMixin(PeftAdapterMixin):
    """diffusers' LoRA methods, aware of what LaTo trains in full beside the LoRA."""

    def save_lora_adapter(self, save_directory: str | Path, adapter_name: str = _ADAPTER, weight_name: str | None = None) -> None:
        """Writes LoRA, `landmark_in`, null tokens and the base's fingerprint to one safetensors file. The signature is that of diffusers, which it overrides.

        Raises:
            ValueError: There is no adapter of that name.
        """
        from peft.utils import get_peft_model_state_dict

        if adapter_name not in getattr(self, "peft_config", {}):
            raise ValueError(f"adapter {adapter_name!r}: not found; the model has {sorted(getattr(self, 'peft_config', {}))}")
        state = {name: tensor.detach().contiguous() for name, tensor in get_peft_model_state_dict(self, adapter_name=adapter_name).items()}
        state |= own_tensors(self)  # type: ignore[arg-type]
        config = {
            key: sorted(value) if isinstance(value, set) else value for key, value in self.peft_config[adapter_name].to_dict().items()
        }
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config, sort_keys=True), "base": fingerprint(self)}  # type: ignore[arg-type]
        save_file(state, Path(save_directory) / (weight_name or _FILE), metadata)

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor], prefix: str | None = None, **options: Any
    ) -> None:
        """Loads an adapter: a folder or file of `save_lora_adapter`, or a state dict in PEFT names.

        Raises:
            ValueError: It was trained on another base, or nothing in it fits this model.
        """
        given = pretrained_model_name_or_path_or_dict
        state: dict[str, Tensor]
        if isinstance(given, Mapping):
            state = dict(given)
        else:
            path = Path(given) / options.pop("weight_name", _FILE) if Path(given).is_dir() else Path(given)
            with safe_open(str(path), framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
            base = metadata.get("base")
            if base is not None and base != fingerprint(self):  # type: ignore[arg-type]
                raise ValueError(f"{path}: this adapter was trained on base {base[:16]}, this model is {fingerprint(self)[:16]}")  # type: ignore[arg-type]
            if "lora_adapter_metadata" in metadata:
                options["metadata"] = json.loads(metadata["lora_adapter_metadata"])
        own = {name: state.pop(name) for name in OWN_KEYS if name in state}
        names = dict(self.named_modules())  # type: ignore[attr-defined]
        unknown = [name for name in state if name.split(".lora_")[0] not in names]
        if unknown or not state:
            said = f"{unknown[0]} and {len(unknown) - 1} others are of no layer here" if unknown else "it has no LoRA keys"
            raise ValueError(f"adapter: nothing may be left over, but {said}")
        super().load_lora_adapter(state, prefix=prefix, **options)
        load_own(self, own)  # type: ignore[arg-type]


def add_adapter(transformer: Any, rank: int = 64, alpha: int = 64) -> None:
    """Readies a transformer for adapter training: LoRA on all Linears of the blocks (304 at full size); `landmark_in` and nulls trainable, the rest frozen."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=block_linears(transformer)), _ADAPTER)
    for name, parameter in transformer.named_parameters():
        if name in OWN_KEYS:
            parameter.requires_grad_(True)


def block_linears(transformer: nn.Module) -> list[str]:
    """Names of the Linears in the blocks, which LoRA adapts."""
    return [
        name.removesuffix(".base_layer")
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(("double_blocks.", "single_blocks.")) and ".lora_" not in name
    ]


def read_kohya(transformer: nn.Module, state: Mapping[str, Tensor]) -> dict[str, LoraWeights]:
    """Layer name -> LoRA, of a state dict in kohya names (`lora_unet_<path with _>.{lora_down.weight, lora_up.weight, alpha}`).

    Raises:
        ValueError: A key is of no layer here, an update is incomplete or misshapen, or there is none at all; names it.
    """
    layers = {name: transformer.get_submodule(name) for name in [*block_linears(transformer), "landmark_in"]}
    paths = {_KOHYA + name.replace(".", "_"): name for name in layers}
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        layer, _, part = key.partition(".")
        if key in OWN_KEYS:
            continue
        if layer not in paths or part not in ("lora_down.weight", "lora_up.weight", "alpha"):
            raise ValueError(f"{key}: this LoRA key is of no layer of this transformer")
        found.setdefault(paths[layer], {})[part] = tensor
    if not found:
        raise ValueError(f"no LoRA keys: expected {_KOHYA}<layer>.lora_down.weight and others, given {sorted(state)[:3]}")
    weights = {}
    for name, parts in found.items():
        for part in ("lora_down.weight", "lora_up.weight"):
            if part not in parts:
                raise ValueError(f"{name}: its {part} is missing")
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        out, width = layers[name].weight.shape  # type: ignore[misc, union-attr]
        if down.shape != (len(down), width) or up.shape != (out, len(down)):
            raise ValueError(f"{name}: expected LoRA of ({out}, r) and (r, {width}), given {tuple(up.shape)} and {tuple(down.shape)}")
        weights[name] = LoraWeights(down, up, float(parts.get("alpha", torch.tensor(len(down)))))
    return weights


@torch.no_grad()
def merge_lora(transformer: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Adds a LoRA in kohya names to the weights, in float32 and cast back, and takes over what was trained in full; returns the number of layers changed."""
    weights = read_kohya(transformer, state)
    for name, update in weights.items():
        weight = transformer.get_submodule(name).weight
        weight.copy_((weight.float() + update.delta.to(weight.device)).to(weight.dtype))  # type: ignore[operator, union-attr, arg-type]
    load_own(transformer, {name: state[name] for name in OWN_KEYS if name in state})
    return len(weights)


def load_lora(transformer: Any, state: Mapping[str, Tensor]) -> int:
    """Loads a LoRA in kohya names as a PEFT adapter, which can be switched off, scaled and trained on; returns the number of layers."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    weights = read_kohya(transformer, state)
    config = LoraConfig(
        target_modules=list(weights),
        rank_pattern={name: len(update.down) for name, update in weights.items()},
        alpha_pattern={name: update.alpha for name, update in weights.items()},
    )
    inject_adapter_in_model(config, transformer, _ADAPTER)
    if not getattr(transformer, "_hf_peft_config_loaded", False):
        transformer._hf_peft_config_loaded = True
    tensors = {f"{name}.lora_A.weight": update.down for name, update in weights.items()}
    tensors |= {f"{name}.lora_B.weight": update.up for name, update in weights.items()}
    left: Any = set_peft_model_state_dict(transformer, tensors, _ADAPTER)
    assert not left.unexpected_keys, left.unexpected_keys
    load_own(transformer, {name: state[name] for name in OWN_KEYS if name in state})
    return len(weights)


def lora_to_released(transformer: Any) -> dict[str, Tensor]:
    """The adapter in kohya names, and what was trained in full under its own keys (the codes' scale folded in, as released tokenizers are not scaled).

    Raises:
        ValueError: There is none.
    """
    state: dict[str, Tensor] = {}
    for name, module in transformer.named_modules():
        if _ADAPTER in getattr(module, "lora_A", {}):
            key = _KOHYA + name.replace(".", "_")
            state[f"{key}.lora_down.weight"] = module.lora_A[_ADAPTER].weight.detach().clone()
            state[f"{key}.lora_up.weight"] = module.lora_B[_ADAPTER].weight.detach().clone()
            state[f"{key}.alpha"] = torch.tensor(float(module.lora_alpha[_ADAPTER]))
    if not state:
        raise ValueError(f"adapter {_ADAPTER!r}: not found in this transformer")
    std = float(transformer.config["landmark_std"])
    scale = {"landmark_in.weight": 1 / std, "null_landmarks.tokens": std}
    return state | {name: tensor * scale.get(name, 1.0) for name, tensor in own_tensors(transformer).items()}


def own_tensors(transformer: nn.Module) -> dict[str, Tensor]:
    """What an adapter trains in full; without `landmark_in` where that has a LoRA of its own."""
    return {name: tensor.detach().clone() for name, tensor in transformer.named_parameters() if name in OWN_KEYS}


@torch.no_grad()
def load_own(transformer: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies what was trained in full.

    Raises:
        ValueError: The model has no such tensor, or of another shape.
    """
    mine = dict(transformer.named_parameters())
    for name, tensor in state.items():
        if name not in mine or mine[name].shape != tensor.shape:
            raise ValueError(
                f"{name}: expected {tuple(mine[name].shape) if name in mine else 'no such tensor'}, given {tuple(tensor.shape)}"
            )
        mine[name].copy_(tensor)


@torch.no_grad()
def fingerprint(transformer: nn.Module) -> str:
    """sha256 of names, shapes and 4,096 evenly spaced values (in bfloat16) of each base tensor: tells bases apart without reading 25 GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(transformer.state_dict().items()):
        plain = name.replace(".base_layer", "")
        if ".lora_" in name or plain in OWN_KEYS:
            continue
        digest.update(f"{plain}{tuple(tensor.shape)}".encode())
        values = tensor.flatten()
        values = values[:: max(1, len(values) // _SAMPLES)]
        digest.update(values.to(torch.bfloat16).view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()
