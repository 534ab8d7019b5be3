"""What the builder's workers ask of Ray, in one place: the memory of one by stage, for placing and for the plan of a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.place import Place

if TYPE_CHECKING:
    from data_pipeline.chip_scores import GroupsConfig
    from data_pipeline.config import DataConfig
    from data_pipeline.segments import AnalyzeConfig
    from data_pipeline.synthetic.diffusers_edit import DiffusersConfig

_MB = 1024**2
LOOKING, CROPS = 1200 * _MB, 900 * _MB
"""With the decoder, of a 4K video in 10 bits; the limits on what one may take at all are the decoder's own and that of a picture's size."""
CHIPS, SCORES, PEOPLE, PHOTOS = 800 * _MB, 400 * _MB, 300 * _MB, 1000 * _MB
"""Photos: of 12 megapixels. All measured by `python -m tests.benchmarks.worker_memory`, with some room."""
_WORKERS = "analyze.workers"


def looking(config: AnalyzeConfig) -> Place:
    """Who looks at sources, with its decoder."""
    return Place("looking at sources", "analyze", _WORKERS, LOOKING, runtime_env=config.runtime_env)


def chips(config: GroupsConfig) -> Place:
    """Who computes columns from face chips."""
    return Place("scores of face chips", "analyze.groups", _WORKERS, CHIPS, config.gpus, config.runtime_env)


def scores() -> Place:
    """Who scores pairs, and judges them where there are very many."""
    return Place("scores of pairs", workers_key=_WORKERS, memory=SCORES)


def crops() -> Place:
    """Who cuts crops, with its decoder."""
    return Place("crops", workers_key=_WORKERS, memory=CROPS)


def people() -> Place:
    """Who draws synthetic people."""
    return Place("synthetic people", workers_key="synthetic.anny.workers", memory=PEOPLE)


def warps() -> Place:
    """Who warps photos."""
    return Place("warped photos", workers_key="synthetic.warp.workers", memory=PHOTOS)


def diffusers(config: DiffusersConfig) -> Place:
    """Who edits photos. How much memory a pipeline takes is not known before it is loaded: none is asked for."""
    return Place("edited photos", "synthetic.diffusers", "synthetic.diffusers.workers", 0, config.gpus, config.runtime_env)


def places_of(config: DataConfig) -> list[Place]:
    """All that a build will ask of Ray."""
    made, analyze = config.synthetic, config.analyze
    places = [people()] if made.anny and made.anny.workers else []
    places += [warps()] if made.warp and made.warp.workers else []
    places += [diffusers(made.diffusers)] if made.diffusers and made.diffusers.workers else []
    return places + ([looking(analyze), chips(analyze.groups), scores(), crops()] if analyze.workers else [])
