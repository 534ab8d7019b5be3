"""Stage objects from what fits into a message to a rank: configs and paths."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import model_validator

from infra.config import Config
from infra.storage import list_files, sha256_file, sha256_json
from training.config import DataSource, EngineConfig
from training.data import mixture, open_sources
from training.encoded import read_indexes
from training.stage import Stage
from training.stages.dit import DitConfig, DitStage
from training.stages.predictor import PredictorConfig, PredictorStage
from training.stages.tokenizer import TokenizerConfig, TokenizerStage

StageConfig = TokenizerConfig | PredictorConfig | DitConfig
CONFIGS: dict[str, type[StageConfig]] = {"tokenizer": TokenizerConfig, "predictor": PredictorConfig, "dit": DitConfig}


class Job(Config):
    """Everything that a rank needs to know of a training; goes to it as JSON."""

    stage: str
    """`tokenizer`, `predictor` or `dit`."""
    config: StageConfig
    """Of the stage."""
    data: tuple[DataSource, ...]
    """What it is trained on."""
    folder: str
    """Of the run, seen by all ranks."""
    checkpoints: str | None = None
    """Folder of the checkpoints, where it is not in the run's."""
    tokenizer: str | None = None
    """Folder of the trained tokenizer (dit)."""
    encoded: str | None = None
    """Folder of the encoded samples (dit)."""

    @model_validator(mode="before")
    @classmethod
    def _config_of_stage(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("config"), dict):
            given = given | {"config": CONFIGS[given["stage"]].model_validate(given["config"])}
        return given

    @property
    def engine(self) -> EngineConfig:
        """Of the training."""
        return self.config.engine

    @property
    def checkpoint_folder(self) -> str:
        """Where checkpoints are."""
        return self.checkpoints or str(Path(self.folder) / "checkpoints")

    def make(self) -> Stage:
        """The stage object.

        Raises:
            UserError: Its settings, data and folders do not fit each other.
        """
        datasets = open_sources(list(self.data))
        mixed = mixture(datasets, list(self.data), self.engine.seed)
        if isinstance(self.config, TokenizerConfig):
            return TokenizerStage(self.config, datasets, mixed)
        if isinstance(self.config, PredictorConfig):
            return PredictorStage(self.config, datasets, mixed)
        assert self.tokenizer and self.encoded, "the dit stage needs a tokenizer and encoded samples"
        return DitStage(self.config, datasets, mixed, Path(self.tokenizer), self.encoded)


def digest_of(folder: str, datasets: Iterable[str] = ()) -> str:
    """Digest of a folder that a training depends on.

    Args:
        folder: A model's: its weight files count. Or one of encoded samples: what decides their content does, and not what else was encoded there since.
        datasets: Digests of those whose encoded samples are read.
    """
    indexes = {index["dataset"]: index["settings"] for index in read_indexes(folder)}
    if indexes:
        return sha256_json([[dataset, indexes.get(dataset)] for dataset in sorted(datasets)])
    return sha256_json([sha256_file(file) for file in list_files(folder, ".safetensors")])
