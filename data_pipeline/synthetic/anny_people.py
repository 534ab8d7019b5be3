"""Synthetic people as sources: known identity, pose, expression and landmarks."""

from __future__ import annotations

import functools
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from data_pipeline.image_set import Declared, commit_set
from data_pipeline.places import people
from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, draw_person
from data_pipeline.synthetic.rasterizer import project, render
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.config import Config
from infra.console import Progress
from infra.pool import run_all
from infra.state import DERIVED, read_json, reading
from infra.storage import commit, exists, sha256_json
from lato.edits import Expression, Intensity

VERSION = 1
"""Raise it when the pictures change."""
_VERTICES = Path(__file__).with_name("landmark_vertices.json")
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92]
_BUNDLE = 10


class AnnyConfig(Config):
    """How many synthetic people, and what of each."""

    people: int = Field(default=240, ge=0)
    """Identities."""
    images: int = Field(default=4, ge=1)
    """Pictures of each: one at rest, the others with another expression, another pose or both."""
    size: int = Field(default=512, ge=32)
    """Side of a picture in pixels."""
    seed: int = 0
    """Equal seeds give equal people."""
    workers: int = Field(default=2, ge=0)
    """Ray actors; 0 works in this process."""


def render_people(config: AnnyConfig, work: str) -> list[WorkItem]:
    """Draws the people that are not there yet, and lists them as sources.

    Pictures lie under their sha256, a set file a person beside them; both are created only if absent.
    """
    index_uri = join(work, "synthetic", f"people_{sha256_json({'version': VERSION, **config.model_dump(exclude={'workers'})})[:16]}.json")
    if not exists(index_uri):
        progress = Progress("synthetic people", config.people, "people")
        bundles = [list(range(s, min(s + _BUNDLE, config.people))) for s in range(0, config.people, _BUNDLE)]
        names: dict[int, str] = {}
        for done in run_all(functools.partial(_Worker, config, work), bundles, config.workers, people()):
            names |= dict(zip(done.job, done.result, strict=True))
            progress.advance(len(done.job))
        commit(index_uri, json.dumps([names[number] for number in range(config.people)]).encode())
    return [
        WorkItem(
            source_id=f"anny_{config.seed}_{number:05d}",
            uri=join(work, "synthetic", name),
            kind="synthetic",
            licence="CC0-1.0",
            consent="not needed",
            identity=f"anny_{config.seed}_{number:05d}",
        )
        for number, name in enumerate(_read_names(index_uri))
    ]


def _read_names(uri: str) -> list[str]:
    found = read_json(uri)
    with reading(uri, DERIVED):
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError("not a list of names")
    return found


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


class _Worker:
    def __init__(self, config: AnnyConfig, work: str) -> None:
        cv2.setNumThreads(1)
        self._config, self._work = config, work

    def run(self, numbers: list[int]) -> list[str]:
        """Draws some people; returns the names of their sets."""
        names = []
        for number in numbers:
            pictures, declared = draw_set(self._config, number)
            generator: dict[str, Any] = {"name": "anny_people", "version": VERSION, "seed": self._config.seed, "person": number}
            names.append(commit_set(list(zip(pictures, declared, strict=True)), generator, self._work))
        return names


@lru_cache(maxsize=1)
def landmark_vertices() -> list[int]:
    """Vertices of the 68 landmarks, in iBUG order."""
    return json.loads(_VERTICES.read_text())["vertices"]
