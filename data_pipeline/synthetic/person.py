"""Who a synthetic person is (shape, colours, light) and how they are posed: parameters to a posed, coloured mesh."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.synthetic.head_mesh import CHIN, NECK_BASE, PARTS, PIVOT, Array, HeadMesh
from lato.edits import Expression, Intensity

_RECIPES = Path(__file__).with_name("expression_recipes.json")


@dataclass(frozen=True)
class Person:
    """One synthetic identity."""

    shape: dict[str, float]
    """Shape name -> coefficient."""
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    lips: tuple[float, float, float]
    background: tuple[float, float, float]
    shirt: tuple[float, float, float]
    light: tuple[float, float, float]
    """Direction towards the light, unit length, and `ambient` below; colours are RGB 0..255."""
    ambient: float
    long_hair: bool
    hairline: float
    """Height on the head (dm) from which it is hair."""


@dataclass(frozen=True)
class Pose:
    """Head rotation in degrees, in the project's signs."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


def draw_person(rng: np.random.Generator, mesh: HeadMesh) -> Person:
    """Draws an identity: a mix of ancestries, ages and sexes, forty local traits, colouring, light and background."""
    macros = [name for name in mesh.shapes if name.startswith(("african", "asian", "caucasian"))]
    weights = rng.dirichlet(np.full(len(macros), 0.25))
    shape = {name: float(weight) for name, weight in zip(macros, weights, strict=True)}
    for trait, (low, high) in _traits(mesh).items():
        value = float(np.clip(rng.normal(0, 0.45), -1, 1))
        for name in (high if value > 0 else low) or ():
            shape[name] = abs(value) * (0.3 if trait.startswith(("head", "forehead")) else 1.0)
    darkness = float(rng.beta(1.3, 1.6))
    skin = _mix((247, 214, 190), (88, 54, 38), darkness) + rng.normal(0, 5, 3)
    hair = np.array(((28, 22, 20), (60, 40, 28), (110, 76, 46), (176, 136, 84), (120, 54, 30), (130, 128, 126))[rng.integers(0, 6)], float)
    if darkness > 0.6:
        hair = hair * 0.35
    angle = rng.uniform(-0.9, 0.9)
    light = np.array([np.sin(angle), rng.uniform(0.15, 0.6), np.cos(angle)])
    lips = skin * np.array([0.86, 0.55, 0.56]) + np.array([18, 4, 6])
    return Person(
        shape=shape,
        skin=_colour(skin),
        hair=_colour(hair + rng.normal(0, 6, 3)),
        iris=_colour(np.array(((70, 45, 25), (50, 80, 120), (70, 95, 60), (40, 28, 20))[rng.integers(0, 4)], float)),
        lips=_colour(lips),
        background=_colour(rng.uniform(40, 225, 3)),
        shirt=_colour(rng.uniform(20, 200, 3)),
        light=tuple(float(v) for v in light / np.linalg.norm(light)),  # type: ignore[arg-type]
        ambient=float(rng.uniform(0.45, 0.65)),
        long_hair=bool(rng.integers(0, 2)),
        hairline=float(rng.uniform(7.95, 8.1)),
    )


def actions_for(expression: Expression, intensity: Intensity) -> dict[str, float]:
    """The ARKit units of an expression at an intensity, from `expression_recipes.json`."""
    recipes = _load_recipes()
    factor = recipes["intensity"][intensity.value]
    return {name: min(1.0, value * factor) for name, value in recipes["units"][expression.value].items()}


def pose_vertices(mesh: HeadMesh, person: Person, actions: dict[str, float], pose: Pose) -> Array:
    """Vertices of a person with an expression and a head pose, (V, 3) in dm; the shoulders stay."""
    shaped = mesh.vertices + sum(mesh.shapes[name] * value for name, value in person.shape.items())
    eyes = np.unique(mesh.faces[mesh.part == PARTS.index("eye")])
    # body height and the like move the whole head: put its eyes back where the camera expects them
    shaped = shaped - (shaped[eyes].mean(0) - mesh.vertices[eyes].mean(0))
    for name, value in actions.items():
        shaped = shaped + mesh.actions[name] * value
    height = mesh.vertices[:, 1]
    share = np.clip((height - NECK_BASE) / (CHIN - NECK_BASE), 0, 1)
    share = np.where((mesh.vertices[:, 2] > 0.9) & (height > 6.05), 1.0, share * share * (3 - 2 * share))[:, None]
    turned = (shaped - PIVOT) @ rotation(pose).T + PIVOT
    return (share * turned + (1 - share) * shaped).astype(np.float32)


def rotation(pose: Pose) -> npt.NDArray[np.float64]:
    """Rotation matrix of a pose (x image right, y up, z to the viewer): roll after pitch after yaw, as a head reader decomposes it."""
    yaw, pitch, roll = np.deg2rad([pose.yaw, -pose.pitch, -pose.roll])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def vertex_colours(mesh: HeadMesh, person: Person) -> Array:
    """RGB 0..255 of every vertex before light, (V, 3)."""
    height, depth = mesh.vertices[:, 1], mesh.vertices[:, 2]
    colours = np.tile(np.array(person.skin, np.float32), (len(mesh.vertices), 1))
    scalp = (height > person.hairline - 0.25 * np.abs(mesh.vertices[:, 0])) | ((depth < 0.28) & (height > 6.75))
    colours[scalp] = person.hair
    colours[height < 5.75] = person.shirt
    colours += mesh.lips[:, None] * (np.array(person.lips) - colours)
    colours += mesh.inside_mouth[:, None] * (np.array((92, 30, 30)) - colours)
    for part, colour in (("hair", person.hair), ("teeth", (228, 222, 208)), ("tongue", (170, 76, 76)), ("eye", (238, 236, 232))):
        colours[np.unique(mesh.faces[mesh.part == PARTS.index(part)])] = colour
    return colours.astype(np.float32)


@lru_cache(maxsize=1)
def _load_recipes() -> dict[str, Any]:
    return json.loads(_RECIPES.read_text())


@lru_cache(maxsize=1)
def _trait_names(names: tuple[str, ...]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    traits: dict[str, list[list[str]]] = {}
    for name in names:
        stem, _, side = name.rpartition("-")
        stem = stem.removeprefix("l-").removeprefix("r-")
        traits.setdefault(stem, [[], []])[side in ("incr", "up", "out", "forward", "convex")].append(name)
    return {stem: (tuple(low), tuple(high)) for stem, (low, high) in traits.items()}


def _traits(mesh: HeadMesh) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    # position shifts of eyes and mouth come in more than two directions, and asymmetry reads as an expression: leave those out
    excluded = ("african", "asian", "caucasian", "mouth-trans", "l-eye-trans", "r-eye-trans", "eyebrows-trans", "eyebrows-angle")
    return _trait_names(tuple(name for name in mesh.shapes if not name.startswith(excluded)))


def _mix(a: tuple[float, ...], b: tuple[float, ...], share: float) -> npt.NDArray[np.float64]:
    return np.array(a) * (1 - share) + np.array(b) * share


def _colour(values: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in np.clip(values, 4, 250))
    return red, green, blue
