"""Stage 1: the landmark tokenizer, on the source and target landmarks of all training samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infra.config import Config
from lato.landmarks import CANVAS
from lato.tokenizer import CodeStatistics, LandmarkTokenizer
from training.config import EngineConfig
from training.data import Dataset, sample_generator


class TokenizerConfig(Config):
    """The tokenizer and its training."""

    widths: tuple[int, int] = (128, 512)
    """Channels of the encoder's two stages."""
    code_dim: int = 3072
    """Width of a code."""
    num_codes: int = 8192
    """Size of the codebook."""
    beta: float = 0.25
    """Weight of the commitment loss."""
    jitter: float = 0.1
    """Largest change of scale, and of place in shares of the canvas, that a training sample gets."""
    no_reset_after: float = 0.8
    """Share of the steps after which unused codes are left alone."""
    engine: EngineConfig = EngineConfig(lr=1e-4, global_batch=256, steps=20000)
    """Training."""


class TokenizerStage:
    """See `training.engine.Stage`."""

    name = "tokenizer"

    def __init__(self, config: TokenizerConfig, dataset: Dataset) -> None:
        self._config = config
        rows = dataset.split("train")
        self.keys = [row["key"] for row in rows]
        self._train = dict(zip(self.keys, dataset.read_landmarks(rows), strict=True))
        self._val = torch.from_numpy(dataset.read_landmarks(dataset.split("val"))).flatten(0, 1)
        self._mean = torch.from_numpy(np.mean(list(self._train.values()), axis=(0, 1)))
        self._statistics: CodeStatistics | None = None

    def build(self) -> LandmarkTokenizer:
        """The tokenizer, its codes on the encoder's first outputs."""
        torch.manual_seed(self._config.engine.seed)
        c = self._config
        tokenizer = LandmarkTokenizer(widths=c.widths, code_dim=c.code_dim, num_codes=c.num_codes)
        some = [self._train[key] for key in self.keys[: max(8, c.num_codes // 64)]]
        tokenizer.initialise_codebook(torch.from_numpy(np.concatenate(some)))
        return tokenizer

    def loss(self, module: nn.Module, samples: list[tuple[str, int]]) -> tuple[Tensor, dict[str, float]]:
        """L1 of the coordinates plus the commitment loss."""
        landmarks = torch.stack([self._augment(key, epoch) for key, epoch in samples]).flatten(0, 1)
        output: Any = module(landmarks)
        self._statistics = output.statistics if self._statistics is None else self._statistics + output.statistics
        loss = output.reconstruction_loss + self._config.beta * output.commit_loss
        return loss, {"reconstruction_px": float(output.reconstruction_loss) * CANVAS.width / 2, "perplexity": float(output.perplexity)}

    def after_step(self, module: Any, step: int, steps: int) -> dict[str, float]:
        """Moves the codebook."""
        assert self._statistics is not None, "a step has a loss"
        statistics, self._statistics = self._statistics, None
        revived = module.update_codebook(statistics, reset=step < self._config.no_reset_after * steps)
        return {"codes_used": float((statistics.count > 0).sum()), "codes_revived": float(revived)}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Held-out mean absolute error in canvas px, beside that of always answering the mean face."""
        output: Any = module(self._val)
        error = (output.reconstruction - self._val).abs().mean()
        return {"held_out": float(error), "held_out_mean_face": float((self._mean - self._val).abs().mean())}

    def export(self, module: nn.Module, folder: Path) -> None:
        """A LandmarkTokenizer folder."""
        module.save_pretrained(folder)  # type: ignore[operator]

    def _augment(self, key: str, epoch: int) -> Tensor:
        """Both faces of a sample (2, 68, 2) under a small similarity of its own."""
        draws = torch.rand(2, 4, generator=sample_generator(self._config.engine.seed, epoch, key)) * 2 - 1
        scale = 1 + self._config.jitter * draws[:, 0]
        angle = math.radians(15) * draws[:, 1]
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).unflatten(-1, (2, 2)) * scale[:, None, None]
        centre = CANVAS.width / 2
        return (
            (torch.from_numpy(self._train[key]) - centre) @ turn.transpose(1, 2)
            + centre
            + draws[:, None, 2:] * self._config.jitter * CANVAS.width
        )
