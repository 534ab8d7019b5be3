"""Stage objects from what fits into a message to a rank: configs and paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data import Dataset
from training.mixture import Mixture
from training.stages.dit import DitConfig, DitStage
from training.stages.predictor import PredictorConfig, PredictorStage
from training.stages.tokenizer import TokenizerConfig, TokenizerStage


@dataclass(frozen=True)
class MakeStage:
    """Builds a stage on a rank."""

    config: TokenizerConfig | PredictorConfig | DitConfig
    dataset: str
    tokenizer: str | None = None
    text_cache: str | None = None

    def __call__(self) -> Any:
        """The stage object."""
        dataset = Dataset.open(self.dataset)
        if isinstance(self.config, TokenizerConfig):
            return TokenizerStage(self.config, dataset)
        if isinstance(self.config, PredictorConfig):
            keys = [row["key"] for row in dataset.split("train")]
            return PredictorStage(self.config, [dataset], Mixture([keys], [1.0], self.config.engine.seed))
        assert self.tokenizer and self.text_cache, "the dit stage needs a tokenizer and text states"
        return DitStage(self.config, dataset, Path(self.tokenizer), Path(self.text_cache))
