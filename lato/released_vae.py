"""The image VAE's two namings: Black Forest Labs' (what is released) and diffusers' AutoencoderKL."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL
from torch import Tensor

SCALING_FACTOR, SHIFT_FACTOR = 0.3611, 0.1159
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_NAMES = (  # released pattern, diffusers' form; {flip} is the level counted from the other end
    (r"(encoder|decoder)\.norm_out\.(.+)", "{0}.conv_norm_out.{1}"),
    (r"(encoder|decoder)\.mid\.block_([12])\.(.+)", "{0}.mid_block.resnets.{minus1}.{2}"),
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.(.+)", "encoder.down_blocks.{0}.resnets.{1}.{2}"),
    (r"encoder\.down\.(\d+)\.downsample\.(.+)", "encoder.down_blocks.{0}.downsamplers.0.{1}"),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.(.+)", "decoder.up_blocks.{flip}.resnets.{1}.{2}"),
    (r"decoder\.up\.(\d+)\.upsample\.(.+)", "decoder.up_blocks.{flip}.upsamplers.0.{1}"),
)


def diffusers_name(name: str, levels: int) -> str:
    """A released key -> AutoencoderKL's."""
    attention = re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(norm|q|k|v|proj_out)\.(weight|bias)", name)
    if attention:
        side, part, kind = attention.groups()
        return f"{side}.mid_block.attentions.0.{_ATTENTION[part]}.{kind}"
    for pattern, form in _NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            groups = match.groups()
            flip = levels - 1 - int(groups[0]) if groups[0].isdigit() else ""
            minus1 = int(groups[1]) - 1 if groups[1].isdigit() else ""
            return form.format(*groups, flip=flip, minus1=minus1).replace("nin_shortcut", "conv_shortcut")
    return name


def vae_from_released(state_dict: Mapping[str, Tensor]) -> AutoencoderKL:
    """Builds the AutoencoderKL of a released VAE; sizes are read from the shapes.

    Raises:
        ValueError: Keys are missing, unknown or misshapen; names them.
    """
    from lato.conversion import count_blocks, fill, shapes_of

    shapes = shapes_of(state_dict)
    levels = count_blocks(shapes, "encoder.down")
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)),
            layers_per_block=count_blocks(shapes, "encoder.down.0.block"),
            latent_channels=shapes["decoder.conv_in.weight"][1],
            scaling_factor=SCALING_FACTOR,
            shift_factor=SHIFT_FACTOR,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    names = {diffusers_name(name, levels): name for name in shapes}
    fill(vae, state_dict, "VAE", names=names, reshape=True)
    return vae.eval()


def vae_to_released(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The released form of an AutoencoderKL.

    Raises:
        ValueError: It has tensors that the released form has no name for; names some.
    """
    levels = len(vae.config["block_out_channels"])
    layers = vae.config["layers_per_block"] + 1
    candidates = [f"{side}.{part}" for side in ("encoder", "decoder") for part in ("conv_in", "conv_out", "norm_out")]
    for side, word, step in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        blocks = [f"{side}.mid.block_{number}" for number in (1, 2)]
        blocks += [f"{side}.{word}.{level}.block.{layer}" for level in range(levels) for layer in range(layers)]
        candidates += [f"{block}.{part}" for block in blocks for part in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")]
        candidates += [f"{side}.{word}.{level}.{step}.conv" for level in range(levels)]
        candidates += [f"{side}.mid.attn_1.{part}" for part in _ATTENTION]
    state = vae.state_dict()
    released = {}
    for name in (f"{candidate}.{kind}" for candidate in candidates for kind in ("weight", "bias")):
        tensor = state.pop(diffusers_name(name, levels), None)
        if tensor is not None:
            is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
            released[name] = tensor[..., None, None] if is_projection else tensor
    if state:
        raise ValueError(f"this VAE has tensors that the released form has no name for: {sorted(state)[:5]}")
    return released
