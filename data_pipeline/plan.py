"""The plan of a build: what would be looked at and how long it would take, from the containers alone and a probe of a few frames."""

from __future__ import annotations

import itertools
import resource
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import av

from data_pipeline.analyze import AnalyzeConfig
from data_pipeline.decode import DecodeError, Frame, sample_frames
from data_pipeline.image_set import read_image_set
from data_pipeline.perceive import watch_video
from data_pipeline.worklist import WorkItem
from infra.storage import is_local, read_bytes
from lato.faces import FaceReader
from lato.pairs import decode_image

_PROBE_FRAMES = 12


@dataclass(frozen=True)
class BuildPlan:
    """Estimates; the probe ran on this machine."""

    sources: dict[str, int]
    """Kind -> count."""
    unreadable: list[str]
    """Sources whose container cannot be read now; the build will say so too."""
    megabytes: float
    video_seconds: float
    frames: int
    """That will be looked at."""
    seconds_per_frame: float
    """CPU, of decoding and all models, from the probe; 0 where nothing could be probed."""
    worker_megabytes: float
    """Memory of a worker with the models loaded."""

    def seconds(self, workers: int) -> float:
        """Wall time of analysis with that many workers."""
        return self.frames * self.seconds_per_frame / max(1, workers)


def plan_build(items: list[WorkItem], config: AnalyzeConfig, models: Path) -> BuildPlan:
    """Looks at every container's header and probes the first sources that open."""
    unreadable, seconds, frames, size = [], 0.0, 0, 0
    probes: list[Frame] = []
    for item in items:
        try:
            size += Path(item.uri).stat().st_size if is_local(item.uri) else 0
            if item.kind == "video":
                length = _length(item.uri)
                length = min(item.end or length, length) - (item.start or 0.0)
                seconds, frames = seconds + length, frames + int(length * config.fps) + 1
            else:
                frames += len(read_image_set(item.uri).images)
        except (OSError, ValueError, av.error.FFmpegError):
            unreadable.append(item.source_id)
    reader = FaceReader.from_folder(models)
    started, spent = time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for item in items:
        if len(probes) >= _PROBE_FRAMES or item.source_id in unreadable:
            continue
        probes += _probe(item, config.fps, _PROBE_FRAMES - len(probes))
    if probes:
        watch_video(probes, reader)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = time.process_time() - started + (after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kinds = dict(Counter[str](item.kind for item in items))
    return BuildPlan(kinds, unreadable, size / 1e6, seconds, frames, cost / len(probes) if probes else 0.0, memory)


def _probe(item: WorkItem, fps: float, count: int) -> list[Frame]:
    try:
        if item.kind == "video":
            return list(itertools.islice(sample_frames(item.uri, fps, item.start or 0.0, item.end), count))
        images = read_image_set(item.uri).images[:count]
        return [Frame(number, float(number), decode_image(read_bytes(image.uri), image.uri)) for number, image in enumerate(images)]
    except (DecodeError, OSError, ValueError):
        return []


def _length(uri: str) -> float:
    """Seconds of a video by its header."""
    with av.open(uri) as container:
        stream = container.streams.video[0] if container.streams.video else None
        if stream is None:
            raise ValueError("no video stream")
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        return (container.duration or 0) / 1e6
