"""Synthetic people as sources: known identity, pose, expression and landmarks."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_pipeline.image_set import Declared, ImageSet, SetImage, encode_image_set
from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, draw_person
from data_pipeline.synthetic.rasterizer import project, render
from data_pipeline.worklist import WorkItem
from infra.config import Config
from infra.console import Progress
from infra.storage import commit, exists, join, read_bytes, sha256_bytes, sha256_json
from lato.edits import Expression, Intensity

VERSION = 1
"""Raise it when the pictures change."""
_VERTICES = Path(__file__).with_name("landmark_vertices.json")
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92]
_BUNDLE = 10


class AnnyConfig(Config):
    """How many synthetic people, and what of each."""

    people: int = 240
    """Identities."""
    images: int = 4
    """Pictures of each: one at rest, the others with another expression, another pose or both."""
    size: int = 512
    """Side of a picture in pixels."""
    seed: int = 0
    """Equal seeds give equal people."""
    workers: int = 2
    """Ray tasks at a time."""


def render_people(config: AnnyConfig, work: str) -> list[WorkItem]:
    """Draws the people that are not there yet, on Ray, and lists them as sources.

    Pictures lie under their sha256, a set file a person beside them; both are created only if absent.
    """
    import ray

    index_uri = join(work, "synthetic", f"people_{sha256_json({'version': VERSION, **config.model_dump(exclude={'workers'})})[:16]}.json")
    if exists(index_uri):
        names = json.loads(read_bytes(index_uri))
    else:
        progress = Progress("synthetic people", config.people, "people")
        task = ray.remote(num_cpus=1, max_retries=2)(_render_bundle)
        starts = list(range(0, config.people, _BUNDLE))
        waiting = {task.remote(config, list(range(s, min(s + _BUNDLE, config.people))), work): s for s in starts}
        bundles: dict[int, list[str]] = {}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            start = waiting.pop(ready[0])
            bundles[start] = ray.get(ready[0])
            progress.advance(len(bundles[start]))
        names = [name for start in starts for name in bundles[start]]
        commit(index_uri, json.dumps(names).encode())
    return [
        WorkItem(
            source_id=f"anny_{config.seed}_{number:05d}",
            uri=join(work, "synthetic", name),
            kind="synthetic",
            licence="CC0-1.0",
            consent="not needed",
            identity=f"anny_{config.seed}_{number:05d}",
        )
        for number, name in enumerate(names)
    ]


def draw_set(config: AnnyConfig, number: int) -> tuple[list[bytes], list[Declared]]:
    """The pictures of one person as JPEG, and what is known of each."""
    mesh = load_head()
    rng = np.random.default_rng((config.seed, number))
    person = draw_person(rng, mesh)
    pictures, declared = [], []
    for expression, intensity, nominal in _plan(rng, config.images):
        pose = Pose(*(value + float(rng.uniform(-2, 2)) for value in nominal))
        image, vertices = render(mesh, person, expression, intensity, pose, config.size)
        landmarks = project(vertices[landmark_vertices()], config.size)
        pictures.append(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _JPEG)[1].tobytes())
        points = [(round(float(x), 2), round(float(y), 2)) for x, y in landmarks]
        declared.append(
            Declared(expression=expression, intensity=intensity, yaw=pose.yaw, pitch=pose.pitch, roll=pose.roll, landmarks=points)
        )
    return pictures, declared


def _plan(rng: np.random.Generator, images: int) -> list[tuple[Expression, Intensity, tuple[float, float, float]]]:
    """At rest first; then expression, pose, expression, compound in turn."""
    plan = [(Expression.NEUTRAL, Intensity.PLAIN, (0.0, 0.0, 0.0))]
    for number in range(1, images):
        turn = number % 4
        expression, intensity, pose = Expression.NEUTRAL, Intensity.PLAIN, (0.0, 0.0, 0.0)
        if turn != 2:
            expression = list(Expression)[1 + int(rng.integers(0, 6))]
            intensity = list(Intensity)[int(rng.integers(0, 3))]
        if turn in (2, 0):
            pose = ((30.0, 0.0, 0.0), (-30.0, 0.0, 0.0), (0.0, 0.0, 30.0), (0.0, 0.0, -30.0), (0.0, -30.0, 0.0))[int(rng.integers(0, 5))]
        plan.append((expression, intensity, pose))
    return plan


def _render_bundle(config: AnnyConfig, numbers: list[int], work: str) -> list[str]:
    cv2.setNumThreads(1)
    names = []
    for number in numbers:
        pictures, declared = draw_set(config, number)
        images = []
        for picture, truth in zip(pictures, declared, strict=True):
            name = f"{sha256_bytes(picture)}.jpg"
            commit(join(work, "synthetic", name), picture, exclusive=True)
            images.append(SetImage(uri=name, declared=truth))
        generator: dict[str, Any] = {"name": "anny_people", "version": VERSION, "seed": config.seed, "person": number}
        encoded = encode_image_set(ImageSet(images=images, generator=generator))
        names.append(f"{sha256_bytes(encoded)}.json")
        commit(join(work, "synthetic", names[-1]), encoded, exclusive=True)
    return names


@lru_cache(maxsize=1)
def landmark_vertices() -> list[int]:
    """Vertices of the 68 landmarks, in iBUG order."""
    return json.loads(_VERTICES.read_text())["vertices"]
