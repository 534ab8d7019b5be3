"""Segments: pieces of sources, the unit of work; what a part of one depends on, and how they are bundled into jobs."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field, model_validator

from data_pipeline.groups import GroupsConfig
from data_pipeline.perceive import DETECT_EVERY, EMPTY_EVERY, GLANCES
from data_pipeline.sources import SEGMENT_SECONDS
from data_pipeline.tracks import REPRESENTATIVES
from data_pipeline.worklist import WorkItem
from infra.config import Config
from infra.place import NO_ACTORS, RuntimeEnv
from infra.storage import sha256_json

VERSION = 10
"""Raise it when the meaning of an observation changes: all parts are then made anew."""
_BUNDLES_A_WORKER = 16
"""At least so many where there is work for them: the last ones even out what workers are apart, and a death leaves less for the next round."""


class AnalyzeConfig(Config):
    """How sources are looked at."""

    fps: float = Field(default=5.0, gt=0, le=1000)
    """Frames a second that are looked at."""
    workers: int = Field(default=2, ge=0)
    """Ray actors, one CPU each; 0 works in this process, without Ray."""
    licences: tuple[str, ...] | None = None
    """Licences that may be used; others, `unknown` too, are rejected before a byte is read. None allows all."""
    consents: tuple[str, ...] | None = None
    """Consents that may be used, likewise."""
    groups: GroupsConfig = GroupsConfig()
    """Scores computed from face chips."""
    runtime_env: RuntimeEnv = {}
    """Ray's environment of the actors that look at sources (pip, env_vars, py_executable ...); empty is the driver's."""

    @model_validator(mode="after")
    def _environments_have_actors(self) -> AnalyzeConfig:
        if not self.workers and (self.runtime_env or self.groups.runtime_env):
            raise ValueError(NO_ACTORS)
        return self


class Refusal(NamedTuple):
    """Why the policy lets a source in no further."""

    what: str
    """licence or consent"""
    given: str
    message: str


def refusal(item: WorkItem, config: AnalyzeConfig) -> Refusal | None:
    """What of a source the policy does not allow; None where it may be read."""
    for what, given, allowed in (("licence", item.licence, config.licences), ("consent", item.consent, config.consents)):
        if allowed is not None and given not in allowed:
            return Refusal(what, given, f"{what} {given!r} is not among {', '.join(allowed)}")
    return None


class Segment(NamedTuple):
    """A piece of a source: the unit of work."""

    item: WorkItem
    start: float
    end: float | None
    content: str
    fingerprint: str
    seconds: float = 0.0
    """Of video, by its header; for bundling alone."""


class Try(NamedTuple):
    """A segment that is to be looked at, and how often in this run that ended its worker, or its decoder."""

    segment: Segment
    attempts: int


def fingerprint(item: WorkItem, start: float, end: float | None, content: str, config: AnalyzeConfig, models: dict[str, str]) -> str:
    """The name of a segment's part."""
    return sha256_json(made_of(item, start, end, content, config, models))


def made_of(item: WorkItem, start: float, end: float | None, content: str, config: AnalyzeConfig, models: dict[str, str]) -> dict[str, Any]:
    """What a part depends on: its name is the digest of it, and it is kept in the part."""
    read: dict[str, Any] = {"fps": config.fps if item.kind == "video" else None, "representatives": REPRESENTATIVES}
    read |= {"detect": DETECT_EVERY, "glances": GLANCES, "empty": EMPTY_EVERY, "licences": config.licences, "consents": config.consents}
    named = item.model_dump(include={"source_id", "kind", "licence", "consent", "identity", "box"}) | {"start": start, "end": end}
    return {"version": VERSION, "content": content, "config": read, "item": named, "models": models}


def bundle(tries: list[Try], workers: int) -> list[list[Try]]:
    """Segments in jobs of about `SEGMENT_SECONDS`, fewer where there is not enough for all workers; what was in flight at two deaths goes alone.

    Args:
        tries: In the order of the work list.
        workers: Among how many they are shared.

    Returns:
        Jobs, those that take longest first.
    """
    alone = [[one] for one in tries if one.attempts >= 2]
    shared = sorted((one for one in tries if one.attempts < 2), key=lambda one: -one.segment.seconds)
    size = min(SEGMENT_SECONDS, sum(_cost(one) for one in shared) / (_BUNDLES_A_WORKER * max(1, workers)))
    bundles: list[list[Try]] = []
    room = 0.0
    for one in shared:
        if room <= 0:
            bundles.append([])
            room = size
        bundles[-1].append(one)
        room -= _cost(one)
    return alone + bundles


def _cost(one: Try) -> float:
    """Seconds of video that take as long: of pictures one; a video of no known length may be as long as any."""
    return one.segment.seconds or (SEGMENT_SECONDS if one.segment.item.kind == "video" else 1.0)
