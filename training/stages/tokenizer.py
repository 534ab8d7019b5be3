"""Stage 1: the landmark tokenizer, on the source and target landmarks of all training samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.config import Config
from lato.conversion import tokenizer_to_released
from lato.landmarks import CANVAS, draw_landmarks
from lato.tokenizer import CodeStatistics, LandmarkTokenizer
from training.config import EngineConfig
from training.data import Dataset
from training.mixture import Mixture, Sample, sample_generator
from training.stage import Batch, StepLoss, device_of, source_names

Width = Annotated[int, Field(gt=0, multiple_of=32)]  # channels are normed in 32 groups


class TokenizerConfig(Config):
    """The tokenizer and its training."""

    widths: tuple[Width, Width] = (128, 512)
    """Channels of the encoder's two stages, multiples of 32."""
    code_dim: int = Field(default=3072, gt=0)
    """Width of a code."""
    num_codes: int = Field(default=8192, gt=0)
    """Size of the codebook."""
    beta: float = Field(default=0.25, ge=0)
    """Weight of the commitment loss."""
    jitter: float = Field(default=0.1, ge=0, lt=1)
    """Largest change of scale, and of place in shares of the canvas, that a training sample gets."""
    val_samples: int = Field(default=2048, gt=0)
    """Most samples of the held-out numbers, evenly spaced."""
    no_reset_after: float = Field(default=0.8, ge=0, le=1)
    """Share of the steps after which unused codes are left alone."""
    engine: EngineConfig = EngineConfig(lr=1e-4, global_batch=256, steps=20000)
    """Training."""


class TokenizerStage:
    """See `training.stage.Stage`."""

    name = "tokenizer"

    def __init__(self, config: TokenizerConfig, datasets: list[Dataset], mixture: Mixture) -> None:
        self._config, self.data = config, mixture
        self.sources = source_names(datasets)
        self.notes: list[str] = []
        self.floors = {"codebook/perplexity": (0.02 * config.num_codes, "the codebook collapses; a lower rate or larger beta helps")}
        self._train = []
        for dataset in datasets:
            rows = dataset.split("train")
            self._train.append(dict(zip([row["key"] for row in rows], dataset.read_landmarks(rows), strict=True)))
        held_out = [(dataset, row) for dataset in datasets for row in dataset.split("val")]
        held_out = held_out[:: max(1, len(held_out) // config.val_samples)][: config.val_samples]
        self._val = torch.from_numpy(np.concatenate([dataset.read_landmarks([row])[0] for dataset, row in held_out]))
        self._mean = torch.from_numpy(np.mean([pair for own in self._train for pair in own.values()], axis=(0, 1)))
        self._statistics: CodeStatistics | None = None

    def build(self) -> LandmarkTokenizer:
        """The tokenizer, its codes on the encoder's first outputs."""
        torch.manual_seed(self._config.engine.seed)
        c = self._config
        tokenizer = LandmarkTokenizer(widths=c.widths, code_dim=c.code_dim, num_codes=c.num_codes)
        some = [pair for own in self._train for pair in list(own.values())[: max(8, c.num_codes // 64)]]
        tokenizer.initialise_codebook(torch.from_numpy(np.concatenate(some)))
        return tokenizer

    def weights(self) -> None:
        """Nothing is left on the meta device."""
        return

    def length(self, sample: Sample) -> int:
        """All alike."""
        return 0

    def read(self, samples: list[Sample]) -> Batch:
        """Both faces of every sample, each under a small similarity of its own: `landmarks` (B, 2, 68, 2)."""
        return {"landmarks": torch.stack([self._augment(sample) for sample in samples])}

    def loss(self, module: nn.Module, batch: Batch) -> StepLoss:
        """L1 of the coordinates plus the commitment loss."""
        landmarks = batch["landmarks"].flatten(0, 1)
        output: Any = module(landmarks)
        self._statistics = output.statistics if self._statistics is None else self._statistics + output.statistics
        per_face = output.reconstruction_loss + self._config.beta * output.commit_loss
        shown = {"reconstruction_px": output.reconstruction_loss.detach().mean() * CANVAS.width / 2}
        return StepLoss(per_face.unflatten(0, (-1, 2)).mean(1), landmarks.shape[0] * landmarks.shape[1], shown)

    def after_step(self, module: Any, step: int, steps: int) -> dict[str, float]:
        """Moves the codebook."""
        assert self._statistics is not None, "a step has a loss"
        statistics, self._statistics = self._statistics, None
        revived = module.update_codebook(statistics, reset=step < self._config.no_reset_after * steps)
        share = module.vq.code_count / module.vq.code_count.sum()
        perplexity = torch.exp(-(share * torch.log(share + 1e-10)).sum())
        return {"codebook/used": float((share > 1e-6).sum()), "codebook/perplexity": float(perplexity), "codebook/revived": float(revived)}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Held-out mean absolute error in canvas px, beside that of always answering the mean face."""
        val = self._val.to(device_of(module))
        error, codes = [], []
        for part in val.split(256):
            output: Any = module(part)
            error.append((output.reconstruction - part).abs().mean((1, 2)))
            codes.append(output.codes)
        used = len(torch.unique(torch.cat(codes)))
        mean_face = (self._mean.to(val.device) - val).abs().mean()
        return {"held_out": float(torch.cat(error).mean()), "held_out/mean_face": float(mean_face), "held_out/codes_used": float(used)}

    def pictures(self, module: nn.Module) -> dict[str, npt.NDArray[np.uint8]]:
        """Held-out faces (left) and what the tokenizer makes of them (right)."""
        some = self._val[:: max(1, len(self._val) // 8)][:8]
        output: Any = module(some.to(device_of(module)))
        rows = [
            np.hstack([draw_landmarks(points.numpy(), size=256) for points in (given, made)])
            for given, made in zip(some, output.reconstruction.cpu(), strict=True)
        ]
        return {"reconstructions": np.vstack([np.hstack(rows[start : start + 2]) for start in range(0, len(rows) - 1, 2)])}

    def export(self, module: nn.Module, folder: Path) -> None:
        """A LandmarkTokenizer folder, and the released layout beside it."""
        module.save_pretrained(folder)  # type: ignore[operator]
        (folder / "released").mkdir(exist_ok=True)
        save_file(tokenizer_to_released(module), folder / "released" / "landmark_tokenizer.safetensors")  # type: ignore[arg-type]

    def _augment(self, sample: Sample) -> Tensor:
        draws = torch.rand(2, 4, generator=sample_generator(self._config.engine.seed, sample)) * 2 - 1
        scale = 1 + self._config.jitter * draws[:, 0]
        angle = math.radians(15) * draws[:, 1]
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).unflatten(-1, (2, 2)) * scale[:, None, None]
        centre = CANVAS.width / 2
        given = torch.from_numpy(self._train[sample.source][sample.key])
        return (given - centre) @ turn.transpose(1, 2) + centre + draws[:, None, 2:] * self._config.jitter * CANVAS.width
