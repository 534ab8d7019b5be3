"""What the builder's workers ask of Ray, in one place: a worker's memory by stage, for placing and for the plan of a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infra.place import Place

if TYPE_CHECKING:
    from data_pipeline.chip_scores import GroupsConfig
    from data_pipeline.config import DataConfig
    from data_pipeline.segments import AnalyzeConfig
    from data_pipeline.synthetic.diffusers_edit import DiffusersConfig

_MB = 1024**2
LOOKING, CHIPS, CROPS, SCORES, PHOTOS, PEOPLE = (1500 * _MB,) * 6


def looking(config: AnalyzeConfig) -> Place:
    return Place("looking at sources", "analyze", "analyze.workers", LOOKING, runtime_env=config.runtime_env)


def chips(config: GroupsConfig) -> Place:
    return Place("scores of face chips", "analyze.groups", "analyze.workers", CHIPS, config.gpus, config.runtime_env)


def crops() -> Place:
    return Place("crops", workers_key="analyze.workers", memory=CROPS)


def scores() -> Place:
    return Place("scores of pairs", workers_key="analyze.workers", memory=SCORES)


def people() -> Place:
    return Place("synthetic people", workers_key="synthetic.anny.workers", memory=PEOPLE)


def warps() -> Place:
    return Place("warped photos", workers_key="synthetic.warp.workers", memory=PHOTOS)


def diffusers(config: DiffusersConfig) -> Place:
    return Place("edited photos", "synthetic.diffusers", "synthetic.diffusers.workers", 0, config.gpus, config.runtime_env)


def places_of(config: DataConfig) -> list[Place]:
    """All that a build will ask of Ray."""
    made = [people()] if config.synthetic.anny and config.synthetic.anny.workers else []
    made += [warps()] if config.synthetic.warp and config.synthetic.warp.workers else []
    made += [diffusers(config.synthetic.diffusers)] if config.synthetic.diffusers and config.synthetic.diffusers.workers else []
    analysed = [looking(config.analyze), chips(config.analyze.groups), scores(), crops()] if config.analyze.workers else []
    return made + analysed
