"""Stage 2: the landmark predictor, taught to reason in four steps and to write the target landmarks. The loss is on the answer alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from infra.config import Config
from lato.pairs import FacePair
from lato.predictor import LandmarkPredictor, PredictorSettings, write_reasoning
from lato.tiny_vlm import build_tiny_vlm, template_texts
from training.config import EngineConfig
from training.data import Dataset


class PredictorConfig(Config):
    """The predictor and its training."""

    base: str | None = None
    """Folder of a pretrained Qwen2.5-VL or Qwen3-VL; None builds a small one from scratch."""
    syntax: Literal["json", "compact"] = "json"
    """How coordinates are written; `compact` for a model from scratch."""
    image_size: int = 504
    """Side in pixels of the picture that the VLM sees."""
    hidden_size: int = 96
    """Width of a model from scratch."""
    num_layers: int = 3
    """Depth of a model from scratch."""
    max_new_tokens: int = 1600
    """Longest answer."""
    val_samples: int = 24
    """Samples of the held-out loss."""
    engine: EngineConfig = EngineConfig(lr=1e-5, global_batch=64, steps=2000)
    """Training."""


class PredictorStage:
    """See `training.engine.Stage`."""

    name = "predictor"

    def __init__(self, config: PredictorConfig, dataset: Dataset) -> None:
        self._config, self._dataset = config, dataset
        rows = dataset.split("train")
        self.keys = [row["key"] for row in rows]
        self._rows = {row["key"]: row for row in rows}
        self._predictor: LandmarkPredictor | None = None
        chosen = dataset.split("val")
        chosen = chosen[:: max(1, len(chosen) // config.val_samples)][: config.val_samples]
        self._val = [dataset.read(row) for row in chosen]

    def build(self) -> nn.Module:
        """The VLM."""
        c = self._config
        if c.base:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            model, processor = AutoModelForImageTextToText.from_pretrained(c.base), AutoProcessor.from_pretrained(c.base)
        else:
            texts = template_texts() + [_reasoning(self._dataset.read(self._rows[key]), "json") for key in self.keys[:200]]
            model, processor = build_tiny_vlm(texts, c.hidden_size, c.num_layers, c.image_size, c.engine.seed)
        self._predictor = LandmarkPredictor(model, processor, PredictorSettings(c.syntax, 512, c.image_size, c.max_new_tokens))
        return model

    def loss(self, module: nn.Module, samples: list[tuple[str, int]]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the answers' tokens."""
        output: Any = module(**self._encode([self._read(key) for key, _ in samples]))
        return output.loss, {}

    def after_step(self, module: nn.Module, step: int, steps: int) -> dict[str, float]:
        """Nothing changes outside the optimizer."""
        return {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Held-out cross-entropy of answers, per token."""
        total = count = 0.0
        for start in range(0, len(self._val), 8):
            inputs = self._encode(self._val[start : start + 8])
            tokens = float((inputs["labels"][:, 1:] != -100).sum())
            output: Any = module(**inputs)
            total, count = total + float(output.loss) * tokens, count + tokens
        return {"held_out": total / count}

    def export(self, module: nn.Module, folder: Path) -> None:
        """A LandmarkPredictor folder."""
        assert self._predictor is not None, "export follows build"
        self._predictor.model = module
        self._predictor.save_pretrained(folder)

    @lru_cache(maxsize=4096)  # noqa: B019 - the stage lives as long as the process
    def _read(self, key: str) -> FacePair:
        return self._dataset.read(self._rows[key])

    def _encode(self, pairs: list[FacePair]) -> dict[str, Tensor]:
        assert self._predictor is not None, "the loss follows build"
        side = self._config.image_size
        images = [cv2.resize(pair.source_image(), (side, side), interpolation=cv2.INTER_AREA) for pair in pairs]
        answers = [
            self._predictor.write_answer(pair.landmarks[0], pair.landmarks[1], _reasoning(pair, self._config.syntax)) for pair in pairs
        ]
        sources = np.stack([pair.landmarks[0] for pair in pairs])
        inputs = self._predictor.encode(images, sources, [pair.meta.instruction for pair in pairs], answers)
        return {name: tensor if torch.is_tensor(tensor) else torch.as_tensor(tensor) for name, tensor in inputs.items()}


def _reasoning(pair: FacePair, syntax: Literal["json", "compact"]) -> str:
    if pair.meta.reasoning:
        return pair.meta.reasoning
    edit, state = pair.meta.edit, pair.meta.source
    words = [f"{edit.intensity.value} {edit.expression.value}"] if edit.expression else []
    words += [f"{axis} {value}" for axis in ("yaw", "pitch", "roll") if (value := getattr(edit, axis))]
    pose = (state.yaw, state.pitch, state.roll)
    return write_reasoning(state.expression.value, pose, " ".join(words), pair.landmarks[0], pair.landmarks[1], syntax)
