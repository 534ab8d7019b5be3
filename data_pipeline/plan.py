"""The plan of a build: what would be looked at, how long it would take and how much it would write, from the containers alone and a probe of a few frames."""

from __future__ import annotations

import io
import itertools
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.config import DataConfig
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError, Decoder, Frame
from data_pipeline.groups import group_digests
from data_pipeline.image_set import read_image_set
from data_pipeline.observations import SCHEMA
from data_pipeline.observe import NO_SOURCES
from data_pipeline.perceive import watch_video
from data_pipeline.places import places_of
from data_pipeline.render import cut
from data_pipeline.segments import refusal
from data_pipeline.sources import video_seconds
from data_pipeline.staging import staged
from data_pipeline.worklist import WorkItem
from infra.addresses import filesystem_of
from infra.errors import UserError
from infra.storage import open_read, read_bytes
from lato.faces import FaceReader
from lato.pairs import decode_image

_PROBE_SOURCES = 4
"""Taken from all over the list: what lies side by side is alike."""
_PROBE_FRAMES = 12
"""Of each."""
_PROBE_CROPS = 3
_TEXT_BYTES = 6000
"""Of a sample: its JSON, landmarks and tar headers."""
_CROP = 1.6
"""Side of the probed crop in sides of the face's box, about that of a pair's."""


@dataclass(frozen=True)
class Probe:
    """What a few frames cost on this machine; zeros where nothing could be probed."""

    seconds_per_frame: float
    """CPU, of decoding and all models."""
    bytes_per_frame: float
    """Of observations and face chips."""
    bytes_per_sample: float
    """Of two crops and what is said of them."""
    worker_megabytes: float
    """Memory of this process with the models loaded."""
    start_seconds: float
    """Wall time of starting Ray, where there are workers, and a process with the models."""


@dataclass(frozen=True)
class BuildPlan:
    """Counts, and estimates from the probe."""

    sources: dict[str, int]
    """Kind -> count, generated ones too."""
    refused: dict[str, int]
    """Licence or consent that the policy does not allow -> sources."""
    unreadable: list[str]
    """Sources whose container cannot be read now; the build will say so too."""
    megabytes: float
    """Of sources, to be read."""
    video_seconds: float
    frames: int
    """That will be looked at, generated pictures too."""
    most_samples: int
    """That quotas allow: an upper bound."""
    asked: int
    """Bytes that each of `analyze.workers` asks Ray for, in the stage that takes most; 0 where there are none."""
    probe: Probe

    def seconds(self, workers: int) -> float:
        """Wall time of analysis with that many workers, their start in it."""
        return self.probe.start_seconds + self.frames * self.probe.seconds_per_frame / max(1, workers)

    @property
    def observation_megabytes(self) -> float:
        """What analysis writes."""
        return self.frames * self.probe.bytes_per_frame / 1e6

    @property
    def shard_megabytes(self) -> float:
        """What shards hold at most; the crops they are copied from take the same again."""
        return self.most_samples * self.probe.bytes_per_sample / 1e6


def plan_build(items: list[WorkItem], config: DataConfig, models: Path) -> BuildPlan:
    """Looks at every container's header, starts what a build starts, and probes some sources.

    Raises:
        UserError: There is no source at all, a model is missing, or Ray does not start.
    """
    group_digests(models, config.analyze.groups)  # a pack that is not there
    analyze, unreadable, seconds, size = config.analyze, [], 0.0, 0
    refused, pictures, allowed = Counter[str](), [], []
    kinds = Counter[str](item.kind for item in items)
    for item in items:
        refused_as = refusal(item, analyze)
        if refused_as:
            refused[f"{refused_as.what} {refused_as.given}"] += 1
            continue
        try:
            size += _size(item.uri)
            if item.kind == "video":
                length = _length(item.uri)
                length = min(item.end or length, length) - (item.start or 0.0)
                seconds += max(length, 0.0)
                pictures.append(int(length * analyze.fps) + 1 if length >= 0 else 0)  # it may begin beyond the end
            else:
                pictures.append(len(read_image_set(item.uri).images))
            allowed.append(item)
        except (OSError, ValueError, av.error.FFmpegError):
            unreadable.append(item.source_id)
    people, together = Counter[str](), []  # of declared people photos of several sources are paired
    for item, count in zip(allowed, pictures, strict=True):
        if config.pairing.same_person and item.kind == "image" and item.identity:
            people[item.identity] += count
        else:
            together.append(count)
    generated = _generated(config, sum(item.kind == "image" and not item.uri.endswith(".json") for item in allowed))
    kinds["synthetic"] += len(generated)
    if not kinds.total():
        raise UserError(NO_SOURCES)
    most = sum(min(2 * config.pairing.per_source, count * (count - 1)) for count in together)
    most += sum(min(2 * config.pairing.per_identity, count * (count - 1)) for count in generated)
    most += sum(min(2 * config.pairing.per_identity, count * (count - 1)) for count in people.values())
    asked = max(place.memory for place in places_of(config)) if config.analyze.workers else 0
    frames, probe = sum(pictures) + sum(generated), _probe(allowed, analyze.fps, models, analyze.workers)
    return BuildPlan(dict(+kinds), dict(refused), unreadable, size / 1e6, seconds, frames, most, asked, probe)


def _generated(config: DataConfig, photos: int) -> list[int]:
    """Pictures of each generated source; a photo's edits lie in one set with it."""
    made = config.synthetic
    people = [made.anny.images] * made.anny.people if made.anny else []
    warped = [1 + len(made.warp.expressions)] * photos if made.warp else []
    return people + warped + ([1 + made.diffusers.edits] * photos if made.diffusers else [])


def _probe(items: list[WorkItem], fps: float, models: Path, workers: int) -> Probe:
    begin = _start_seconds(models, workers) if items else 0.0
    reader, step = FaceReader.from_folder(models), max(1, -(-len(items) // _PROBE_SOURCES))
    started = time.process_time()
    seen: list[tuple[list[Frame], list[dict[str, Any]]]] = []
    with Decoder() as decoder:
        for item in (item for first in range(step) for item in items[first::step]):
            frames = _first_frames(item, fps, _PROBE_FRAMES, decoder) if len(seen) < _PROBE_SOURCES else []
            if frames:
                seen.append((frames, watch_video(frames, reader)[0]))
    cost = time.process_time() - started + decoder.cpu_seconds
    buffer, rows = io.BytesIO(), [row for _, found in seen for row in found]
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in SCHEMA.names}, schema=SCHEMA), buffer, compression="zstd")
    crops = [size for frames, found in seen for size in _crop_sizes(frames, found[:_PROBE_CROPS])]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    looked_at = sum(len(frames) for frames, _ in seen)
    count = max(1, looked_at)
    sample = 2 * float(np.mean(crops)) + _TEXT_BYTES if crops else 0.0
    return Probe(cost / count if looked_at else 0.0, len(buffer.getvalue()) / count if rows else 0.0, sample, memory, begin)


def _start_seconds(models: Path, workers: int) -> float:
    """Of a new process that does what a build and its first worker do before the first frame.

    Raises:
        UserError: It does not come so far.
    """
    ray = "from infra.runtime import start_ray; start_ray(); " if workers else ""
    script = (
        f"import os, pathlib, sys; {ray}from lato.faces import FaceReader; FaceReader.from_folder(pathlib.Path(sys.argv[1])); os._exit(0)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script, str(models)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"a build could not start here: {(done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}")
    return time.monotonic() - started


def _crop_sizes(frames: list[Frame], rows: list[dict[str, Any]]) -> list[int]:
    """Bytes of crops about some faces."""
    images, sizes = {frame.number: frame.image for frame in frames}, []
    for row in rows:
        box = np.asarray(row["box"])
        side = float(_CROP * (box[2:] - box[:2]).max())
        corner = (box[:2] + box[2:] - side) / 2
        sizes.append(len(cut(images[row["frame"]], (float(corner[0]), float(corner[1]), side))))
    return sizes


def _first_frames(item: WorkItem, fps: float, count: int, decoder: Decoder) -> list[Frame]:
    try:
        if item.kind == "video":
            with staged(item.uri) as path:
                return list(itertools.islice(sample_frames(str(path), fps, item.start or 0.0, item.end, decoder), count))
        images = read_image_set(item.uri).images[:count]
        return [Frame(number, float(number), decode_image(read_bytes(image.uri), image.uri)) for number, image in enumerate(images)]
    except (DecodeError, OSError, ValueError):
        return []


def _size(uri: str) -> int:
    filesystem, path = filesystem_of(uri)
    return int(filesystem.info(path)["size"] or 0)


def _length(uri: str) -> float:
    with open_read(uri) as file, av.open(file, "r") as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        return video_seconds(container)
