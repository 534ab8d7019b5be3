"""Images <-> latents <-> tokens. The space-to-depth codec stands in for a pretrained image VAE where none can be had; it loses nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Generator, Tensor


@dataclass(frozen=True)
class _Point:
    """A distribution with all its mass on one latent."""

    value: Tensor

    def mode(self) -> Tensor:
        """The latent."""
        return self.value

    def sample(self, generator: Generator | None = None) -> Tensor:
        """The latent."""
        return self.value


@dataclass(frozen=True)
class _Encoded:
    latent_dist: _Point


@dataclass(frozen=True)
class _Decoded:
    sample: Tensor


class SpaceToDepthCodec(ModelMixin, ConfigMixin):
    """Folds f x f pixels into channels; the same face as diffusers' AutoencoderKL.

    Args:
        factor: f, pixels a side of a latent place.
        scaling_factor: Latents are multiplied by it.
        shift_factor: Subtracted before.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, factor: int = 2, scaling_factor: float = 1.0, shift_factor: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones(()))  # a component is asked for its device and dtype

    def encode(self, images: Tensor) -> _Encoded:
        """(B, 3, H, W) in [-1, 1] -> latents (B, 3 f^2, H / f, W / f)."""
        return _Encoded(_Point(F.pixel_unshuffle(images, self.config["factor"])))

    def decode(self, latents: Tensor) -> _Decoded:
        """The inverse of `encode`."""
        return _Decoded(F.pixel_shuffle(latents, self.config["factor"]))


def spatial_factor(codec: Any) -> int:
    """Pixels a side of one latent place."""
    if "factor" in codec.config:
        return int(codec.config["factor"])
    return int(2 ** (len(codec.config["block_out_channels"]) - 1))


def encode_images(codec: Any, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> scaled latents (B, c, h, w), the posterior's mode."""
    latents = codec.encode(images.to(codec.dtype)).latent_dist.mode().float()
    return (latents - (codec.config["shift_factor"] or 0.0)) * codec.config["scaling_factor"]  # AutoencoderKL has None for no shift


def decode_latents(codec: Any, latents: Tensor) -> Tensor:
    """The inverse of `encode_images`."""
    scaled = latents / codec.config["scaling_factor"] + (codec.config["shift_factor"] or 0.0)
    return codec.decode(scaled.to(codec.dtype)).sample.float()


def to_tokens(latents: Tensor) -> Tensor:
    """(B, c, 2h, 2w) -> (B, h * w, 4c): 2 x 2 latent places a token, rows first, as Step1X-Edit packs them."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `to_tokens` for a grid of (h, w) tokens."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), 2)
