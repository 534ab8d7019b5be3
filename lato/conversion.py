"""Released checkpoints <-> this layout. Names are the released ones, so a conversion checks keys and shapes and reads the sizes off them.

Only our own keys differ: the quantizer's statistics and the null landmark tokens, which no released file has; the released form leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer

_TOKENIZER_OWN = ("vq.code_sum", "vq.code_count", "vq.used", "vq.updates", "vq.generator_state")
_TRANSFORMER_OWN = ("null_landmarks.tokens", "landmark_places")


def read_released(path: Path) -> dict[str, Tensor]:
    """A released safetensors file as a state dict, memory-mapped.

    Raises:
        ValueError: It is not safetensors (a pickle is refused unread).
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path}: expected a .safetensors file; other formats can run code when read and are refused")
    with safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def tokenizer_from_released(state_dict: Mapping[str, Tensor]) -> LandmarkTokenizer:
    """Builds the tokenizer of a released state dict; sizes are read from the shapes.

    Raises:
        ValueError: Keys are missing, unknown or misshapen; names them.
    """
    first = _shape(state_dict, "encoder.conv_in.weight")[0]
    second = _shape(state_dict, "encoder.resnet2.conv_short.weight")[0]
    num_codes, dim = _shape(state_dict, "vq.codebook")
    tokenizer = LandmarkTokenizer(widths=(first, second), code_dim=dim, num_codes=num_codes)
    _load(tokenizer, state_dict, _TOKENIZER_OWN, "tokenizer")
    # the release keeps no statistics: codes start where they are, each with the weight of one assignment
    tokenizer.vq.code_sum.copy_(tokenizer.vq.codebook)
    tokenizer.vq.code_count.fill_(1.0)
    return tokenizer


def tokenizer_to_released(tokenizer: LandmarkTokenizer) -> dict[str, Tensor]:
    """The released form of a tokenizer."""
    return {name: tensor for name, tensor in tokenizer.state_dict().items() if name not in _TOKENIZER_OWN}


def transformer_from_released(
    state_dict: Mapping[str, Tensor],
    num_attention_heads: int = 24,
    axes_dims_rope: tuple[int, ...] = (16, 56, 56),
) -> LaToTransformer:
    """Builds the transformer of a released state dict; sizes are read from the shapes, all but those of the heads.

    Null landmark tokens start at zero: no released file has them.

    Raises:
        ValueError: Keys are missing, unknown or misshapen; names them.
    """
    hidden, channels = _shape(state_dict, "img_in.weight")
    context, text = _shape(state_dict, "connector.S.input_embedder.weight")
    transformer = LaToTransformer(
        in_channels=channels,
        hidden_size=hidden,
        num_attention_heads=num_attention_heads,
        num_double_blocks=_count(state_dict, "double_blocks"),
        num_single_blocks=_count(state_dict, "single_blocks"),
        mlp_ratio=_shape(state_dict, "double_blocks.0.img_mlp.0.weight")[0] / hidden,
        axes_dims_rope=tuple(axes_dims_rope),
        text_dim=text,
        context_dim=context,
        connector_num_heads=context // (hidden // num_attention_heads),  # heads are as wide as the DiT's
        connector_depth=_count(state_dict, "connector.S.individual_token_refiner.blocks"),
        pooled_dim=_shape(state_dict, "connector.global_proj_out.weight")[0],
        landmark_dim=_shape(state_dict, "landmark_in.weight")[1],
    )
    _load(transformer, state_dict, _TRANSFORMER_OWN, "transformer")
    return transformer


def transformer_to_released(transformer: LaToTransformer) -> dict[str, Tensor]:
    """The released form of a transformer: null tokens left out, the codes' scale folded into `landmark_in`."""
    state = {name: tensor for name, tensor in transformer.state_dict().items() if name not in _TRANSFORMER_OWN}
    state["landmark_in.weight"] = state["landmark_in.weight"] / transformer.config["landmark_std"]
    return state


def _load(model: nn.Module, state_dict: Mapping[str, Tensor], own: tuple[str, ...], what: str) -> None:
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in own}
    mistakes = [f"{name}: missing, expected shape {tuple(expected[name].shape)}" for name in expected if name not in state_dict]
    mistakes += [f"{name}: not a key of the {what}" for name in state_dict if name not in expected]
    mistakes += [
        f"{name}: expected shape {tuple(tensor.shape)}, given {tuple(state_dict[name].shape)}"
        for name, tensor in expected.items()
        if name in state_dict and tensor.shape != state_dict[name].shape
    ]
    if mistakes:
        more = f"\n  and {len(mistakes) - 10} more" if len(mistakes) > 10 else ""
        raise ValueError(f"this is no released {what} checkpoint:\n" + "\n".join(f"  {line}" for line in mistakes[:10]) + more)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in state_dict:
                tensor.copy_(state_dict[name])


def _shape(state_dict: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state_dict:
        raise ValueError(f"{name}: missing from the checkpoint; this is not a released file of this model")
    return tuple(state_dict[name].shape)


def _count(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    numbers = {int(match.group(1)) for name in state_dict if (match := pattern.match(name))}
    if not numbers:
        raise ValueError(f"{prefix}.*: missing from the checkpoint")
    return max(numbers) + 1
