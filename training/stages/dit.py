"""Stage 3: the DiT with landmark tokens, by flow matching on cached text states."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from infra.config import Config
from lato.codec import SpaceToDepthCodec, encode_images, spatial_factor, to_tokens
from lato.conditioning import LandmarkCondition, encode_condition
from lato.flow import apply_shift, interpolate, sample_sigmas, shift_for, velocity_target
from lato.pipeline import resize, to_tensor
from lato.positions import LandmarkPositions
from lato.text_encoder import pad_states
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import Conditioning, LaToTransformer
from training.config import EngineConfig
from training.data import Dataset, sample_generator
from training.encode import EncodedCache

SIGMAS = tuple(k / 10 for k in range(1, 10))
"""Times at which the held-out loss is taken, before the shift."""


class DitConfig(Config):
    """The transformer and its training from scratch."""

    image_size: int = 48
    """Side in pixels that is drawn."""
    codec_factor: int = 2
    """Of the space-to-depth codec; a token is 2 x 2 of its places."""
    hidden_size: int = 96
    """Width."""
    num_attention_heads: int = 3
    """Heads."""
    axes_dims_rope: tuple[int, int, int] = (8, 12, 12)
    """Channels of a head for the three axes."""
    num_double_blocks: int = 2
    """Blocks with two streams."""
    num_single_blocks: int = 3
    """Blocks with one stream."""
    context_dim: int = 96
    """Width of the connector."""
    conditioning: Conditioning = "tokens"
    """Form in which landmarks reach the model."""
    landmark_positions: LandmarkPositions = "mapped"
    """Where landmark tokens stand."""
    drop_landmarks: float = 0.10
    """Share of samples trained with null landmarks and their instruction."""
    drop_text: float = 0.10
    """Share trained with landmarks and the empty instruction."""
    drop_both: float = 0.05
    """Share trained with neither."""
    val_samples: int = 16
    """Samples of the held-out loss."""
    engine: EngineConfig = EngineConfig()
    """Training."""


class DitStage:
    """See `training.engine.Stage`."""

    name = "dit"

    def __init__(self, config: DitConfig, dataset: Dataset, tokenizer: Path, text_cache: Path) -> None:
        self._config, self._dataset = config, dataset
        rows = dataset.split("train")
        self.keys = [row["key"] for row in rows]
        self._val_keys = [row["key"] for row in dataset.split("val")]
        self._val_keys = self._val_keys[:: max(1, len(self._val_keys) // config.val_samples)][: config.val_samples]
        self._rows = {row["key"]: row for row in dataset.rows}
        self._tokenizer = LandmarkTokenizer.from_pretrained(tokenizer).eval()
        self._text = EncodedCache.open(text_cache, dataset.digest)
        self._codec = SpaceToDepthCodec(config.codec_factor)
        side = config.image_size // (2 * spatial_factor(self._codec))
        self._grid = (side, side)
        self._shift = shift_for(side * side)

    def build(self) -> LaToTransformer:
        """The transformer; null tokens start at the codebook's mean."""
        torch.manual_seed(self._config.engine.seed)
        c = self._config
        codebook = self._tokenizer.vq.codebook
        std = float(codebook.std())
        transformer = LaToTransformer(
            in_channels=12 * c.codec_factor**2,
            hidden_size=c.hidden_size,
            num_attention_heads=c.num_attention_heads,
            num_double_blocks=c.num_double_blocks,
            num_single_blocks=c.num_single_blocks,
            axes_dims_rope=c.axes_dims_rope,
            text_dim=self._text.text_dim,
            context_dim=c.context_dim,
            connector_num_heads=c.num_attention_heads,
            connector_depth=1,
            pooled_dim=c.hidden_size,
            landmark_dim=codebook.shape[1],
            landmark_std=std,
            landmark_positions=c.landmark_positions,
            conditioning=c.conditioning,
            text_padding="masked",
        )
        nn.init.normal_(transformer.landmark_in.weight, std=0.02)
        nn.init.zeros_(transformer.landmark_in.bias)
        nn.init.zeros_(transformer.final_layer.linear.weight)
        nn.init.zeros_(transformer.final_layer.linear.bias)
        with torch.no_grad():
            transformer.null_landmarks.tokens.copy_(codebook.mean(0).expand(68, -1) / std)
        return transformer

    def loss(self, module: nn.Module, samples: list[tuple[str, int]]) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the velocity of the noise tokens."""
        draws = [self._draw(key, epoch) for key, epoch in samples]
        sigmas = sample_sigmas(torch.stack([draw["normal"] for draw in draws]), self._shift)
        noise = torch.stack([draw["noise"] for draw in draws])
        chance = torch.stack([draw["chance"] for draw in draws])
        c = self._config
        first, second = c.drop_landmarks, c.drop_landmarks + c.drop_text
        both = (chance >= second) & (chance < second + c.drop_both)
        keep_landmarks = ~((chance < first) | both)
        keep_text = ~(((chance >= first) & (chance < second)) | both)
        return self._error(module, [key for key, _ in samples], sigmas, noise, keep_landmarks, keep_text).mean(), {}

    def after_step(self, module: nn.Module, step: int, steps: int) -> dict[str, float]:
        """Nothing changes outside the optimizer."""
        return {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Held-out loss at nine fixed times with fixed noise."""
        generator = torch.Generator().manual_seed(1234)
        count = len(self._val_keys)
        noise = torch.randn(count, self._grid[0] * self._grid[1], 12 * self._config.codec_factor**2, generator=generator)
        keep = torch.ones(count, dtype=torch.bool)
        values = {}
        for sigma in SIGMAS:
            sigmas = apply_shift(torch.full((count,), sigma), self._shift)
            values[f"held_out_at_{sigma:.1f}"] = float(self._error(module, self._val_keys, sigmas, noise, keep, keep).mean())
        return {"held_out": float(np.mean(list(values.values()))), **values}

    def export(self, module: nn.Module, folder: Path) -> None:
        """A LaToTransformer folder, and the codec beside it."""
        module.save_pretrained(folder)  # type: ignore[operator]
        self._codec.save_pretrained(folder / "vae")

    def _error(
        self, module: nn.Module, keys: list[str], sigmas: Tensor, noise: Tensor, keep_landmarks: Tensor, keep_text: Tensor
    ) -> Tensor:
        """Squared error (B, N, C)."""
        sources, targets, conditions = zip(*(self._read(key) for key in keys), strict=True)
        source, target = torch.stack(sources), torch.stack(targets)
        text, mask = pad_states([self._text.text(key, bool(keep)) for key, keep in zip(keys, keep_text, strict=True)])
        velocity = module(
            noise_tokens=interpolate(target, noise, sigmas),
            source_tokens=source,
            grid=self._grid,
            timestep=sigmas,
            text_embeddings=text,
            text_mask=mask,
            **LandmarkCondition.join(conditions).arguments(keep_landmarks),
        )
        return (velocity.float() - velocity_target(target, noise)).square()

    def _draw(self, key: str, epoch: int) -> dict[str, Tensor]:
        generator = sample_generator(self._config.engine.seed, epoch, key)
        shape = (self._grid[0] * self._grid[1], 12 * self._config.codec_factor**2)
        return {
            "normal": torch.randn((), generator=generator),
            "chance": torch.rand((), generator=generator),
            "noise": torch.randn(shape, generator=generator),
        }

    @lru_cache(maxsize=8192)  # noqa: B019 - the stage lives as long as the process
    def _read(self, key: str) -> tuple[Tensor, Tensor, LandmarkCondition]:
        """Source tokens and target tokens (N, C), and what the transformer is given of the target's landmarks."""
        pair = self._dataset.read(self._rows[key])
        size = (self._config.image_size, self._config.image_size)
        tokens = to_tokens(
            encode_images(self._codec, to_tensor([resize(image, size) for image in (pair.source_image(), pair.target_image())]))
        )
        landmarks = torch.from_numpy(pair.landmarks[1:2])
        return tokens[0], tokens[1], encode_condition(self._config.conditioning, landmarks, self._grid, self._tokenizer, self._codec)
