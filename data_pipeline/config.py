"""The settings of a dataset build."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from data_pipeline.holdout import HoldoutConfig
from data_pipeline.identities import same_person_threshold
from data_pipeline.pack import PackConfig
from data_pipeline.render import RenderConfig
from data_pipeline.rewrite import RewriteConfig
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from infra.config import Config

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
"""Of a version: a folder's name, directly below `versions`, where forgetting looks for it."""


class DataConfig(Config):
    """A dataset build."""

    name: str = Field(default="v1", pattern=_NAME)
    """Name of the version that is published."""
    extends: str | None = Field(default=None, pattern=_NAME)
    """Name of a version of this build whose samples, splits, keys and shards stay as they are; new ones are added."""
    worklist: str | None = None
    """Work list (.parquet, .csv, .jsonl)."""
    folder: str | None = None
    """A folder of videos and images, on disk or in an object store, with all below it; instead of a work list or beside it."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Generated sources to add; none by default."""
    analyze: AnalyzeConfig = AnalyzeConfig()
    """How sources are looked at."""
    pairing: PairingConfig = PairingConfig()
    """What makes a pair."""
    render: RenderConfig = RenderConfig()
    """How crops are cut."""
    split: SplitConfig = SplitConfig()
    """How samples are divided."""
    instructions: RewriteConfig = RewriteConfig()
    """Rewriting of instructions by a language model; off by default."""
    pack: PackConfig = PackConfig()
    """How shards are cut."""
    holdout: HoldoutConfig = HoldoutConfig()
    """Evaluation sets that training may not see."""


def with_own_thresholds(config: DataConfig, models: Path) -> DataConfig:
    """The config with the recognizer's own same-person threshold wherever none is given."""
    own = same_person_threshold(models, config.analyze.groups)
    fields = {"pairing": "min_similarity", "split": "link_similarity", "holdout": "similarity"}
    lacking = {name: getattr(config, name) for name, field in fields.items() if field not in getattr(config, name).model_fields_set}
    return config.model_copy(update={name: part.model_copy(update={fields[name]: own}) for name, part in lacking.items()})
