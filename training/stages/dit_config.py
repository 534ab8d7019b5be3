"""Settings of the DiT stage, and the transformer that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from infra.config import Config
from infra.errors import UserError
from lato.positions import LandmarkPositions
from lato.transformer import Conditioning, LaToTransformer
from training.config import EngineConfig


class DitConfig(Config):
    """The transformer and its training."""

    base: str | None = None
    """Folder of a LaToTransformer to start from, which then sets the model's sizes and forms; None starts from scratch, from those below."""
    adapter: Literal["full", "lora"] = "full"
    """What is trained: all, or a LoRA on the base's blocks, `landmark_in` and the null tokens."""
    lora_rank: int = Field(default=64, gt=0)
    """Of the LoRA."""
    lora_alpha: int = Field(default=64, gt=0)
    """Of the LoRA; its update is scaled by alpha / rank."""
    sizes: list[tuple[int, int]] = Field(default=[(48, 48)], min_length=1)
    """(height, width) in pixels at which pictures are seen; all samples of a step share one of them, cut to its aspect ratio around the face."""
    codec: str | None = None
    """Folder of the image codec (AutoencoderKL, SpaceToDepthCodec); None is the lossless space-to-depth codec."""
    codec_factor: int = Field(default=2, gt=0)
    """Of the lossless codec; a token is 2 x 2 of its places."""
    hidden_size: int = Field(default=96, gt=0)
    """Width."""
    num_attention_heads: int = Field(default=3, gt=0)
    """Heads."""
    axes_dims_rope: tuple[int, int, int] = (8, 12, 12)
    """Channels of a head for the three axes."""
    num_double_blocks: int = Field(default=2, ge=0)
    """Blocks with two streams."""
    num_single_blocks: int = Field(default=3, ge=0)
    """Blocks with one stream."""
    context_dim: int = Field(default=96, gt=0)
    """Width of the connector."""
    connector_depth: int = Field(default=1, ge=0)
    """Blocks of the connector."""
    conditioning: Conditioning = "tokens"
    """Form in which landmarks reach the model."""
    landmark_positions: LandmarkPositions = "mapped"
    """Where landmark tokens stand."""
    text_padding: Literal["released", "masked"] = "masked"
    """Whether padded text slots take part in attention, as released weights expect, or not."""
    drop_landmarks: float = Field(default=0.10, ge=0)
    """Share of samples trained with null landmarks and their instruction."""
    drop_text: float = Field(default=0.10, ge=0)
    """Share trained with landmarks and the empty instruction."""
    drop_both: float = Field(default=0.05, ge=0)
    """Share trained with neither."""
    mirror: bool = False
    """Mirrors half of the samples left to right, landmarks and instruction too; needs text states of both (`lato train encode`)."""
    jitter: float = Field(default=0.0, ge=0)
    """Noise on the target's landmarks: standard deviation of a coordinate in canvas px."""
    masking: float = Field(default=0.0, ge=0, le=0.5)
    """Largest share of a sample's landmarks that is hidden (null tokens)."""
    val_samples: int = Field(default=16, gt=0)
    """Samples of the held-out loss."""
    picture_samples: int = Field(default=4, gt=0)
    """Rows of the sample grid."""
    picture_steps: int = Field(default=8, gt=0)
    """Euler steps that draw it."""
    picture_guidance: float = 4.0
    """Scale of its joint guidance."""
    engine: EngineConfig = EngineConfig()
    """Training."""

    @model_validator(mode="after")
    def _check(self) -> DitConfig:
        if self.adapter == "lora" and self.base is None:
            raise ValueError("adapter: a LoRA changes a trained model; give its folder as `base`, or train in full")
        if self.drop_landmarks + self.drop_text + self.drop_both >= 1:
            raise ValueError("drop_landmarks, drop_text, drop_both: their sum must leave samples with both conditions")
        if self.base is None:
            self._check_heads()
        return self

    def _check_heads(self) -> None:
        for name in ("hidden_size", "context_dim"):
            if getattr(self, name) % self.num_attention_heads:
                raise ValueError(
                    f"{name}: {getattr(self, name)} channels do not divide over {self.num_attention_heads} heads (num_attention_heads)"
                )
        head = self.hidden_size // self.num_attention_heads
        if sum(self.axes_dims_rope) != head or any(dim <= 0 or dim % 2 for dim in self.axes_dims_rope):
            given = tuple(self.axes_dims_rope)
            raise ValueError(
                f"axes_dims_rope: expected even numbers with a sum of {head} (hidden_size / num_attention_heads), given {given}"
            )


def new_transformer(config: DitConfig, channels: int, text_dim: int, codebook: Tensor) -> LaToTransformer:
    """A transformer to train from scratch.

    Args:
        config: Its sizes and forms.
        channels: Of an image token.
        text_dim: Width of the text states.
        codebook: (K, d) of the tokenizer; codes are divided by its standard deviation, null tokens start at its mean.
    """
    c = config
    transformer = LaToTransformer(
        in_channels=channels,
        hidden_size=c.hidden_size,
        num_attention_heads=c.num_attention_heads,
        num_double_blocks=c.num_double_blocks,
        num_single_blocks=c.num_single_blocks,
        axes_dims_rope=c.axes_dims_rope,
        text_dim=text_dim,
        context_dim=c.context_dim,
        connector_num_heads=c.num_attention_heads,
        connector_depth=c.connector_depth,
        pooled_dim=c.hidden_size,
        landmark_dim=codebook.shape[1],
        landmark_std=float(codebook.std()),
        landmark_positions=c.landmark_positions,
        conditioning=c.conditioning,
        text_padding=c.text_padding,
    )
    nn.init.normal_(transformer.landmark_in.weight, std=0.02)
    for parameter in (transformer.landmark_in.bias, *transformer.final_layer.linear.parameters()):
        nn.init.zeros_(parameter)
    with torch.no_grad():
        transformer.null_landmarks.tokens.copy_(null_start(codebook, transformer.config["landmark_std"]))
    return transformer


def null_start(codebook: Tensor, std: float) -> Tensor:
    """(68, d): where null tokens start, at the codebook's mean, in the scale of the codes."""
    return codebook.mean(0).expand(68, -1) / std


def forms_of(config: DitConfig) -> dict[str, Any]:
    """The transformer's own settings: the base's where there is one.

    Raises:
        UserError: The base is no folder of a LaToTransformer.
    """
    if config.base is None:
        return config.model_dump()
    file = Path(config.base) / "config.json"
    if not file.is_file() or json.loads(file.read_text()).get("_class_name") != "LaToTransformer":
        raise UserError(f"base: {config.base} is no folder of a LaToTransformer; make one of released files with `lato.conversion`")
    return json.loads(file.read_text())
