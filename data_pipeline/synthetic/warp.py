"""A real photo warped to other landmarks: its own, moved as an expression moves those of drawn people."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.interpolate import RBFInterpolator

from data_pipeline.image_set import Declared
from data_pipeline.synthetic.anny_people import landmark_vertices
from data_pipeline.synthetic.diffusers_edit import declare
from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, actions_for, draw_person, pose_vertices
from data_pipeline.synthetic.rasterizer import project
from infra.config import Config
from lato.edits import Edit, Expression, Intensity
from lato.faces import FaceReader
from lato.faces.detect import Box
from lato.landmarks import eye_centres, interocular_distance

_GRID = 8
"""The warp is computed every this many pixels and interpolated between."""
_AT_ONCE = 2_000_000
"""Pixels that are warped at a time, 40 bytes each: a face may fill a photo of 268 megapixels."""
_KERNEL = 4
"""Pixels around a place that its colour may be made of, with some room."""
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]


class WarpConfig(Config):
    """Which warps of each photo."""

    expressions: tuple[Expression, ...] = (Expression.HAPPY, Expression.SAD, Expression.SURPRISED)
    """One picture each."""
    intensity: Intensity = Intensity.PLAIN
    """How strongly."""
    seed: int = 0
    """For the interface; a warp draws nothing at random."""
    workers: int = Field(default=2, ge=0)
    """Ray actors; 0 works in this process."""


class Warper:
    """Warps photos."""

    def __init__(self, config: WarpConfig, reader: FaceReader) -> None:
        self._config, self._reader = config, reader

    def edit(self, photo: npt.NDArray[np.uint8], seed: int, box: Box | None) -> list[tuple[bytes, Declared | None]]:
        """The photo with each expression; empty where no face is found."""
        face = self._reader.read(photo, box)
        if face is None:
            return []
        pictures: list[tuple[bytes, Declared | None]] = []
        for expression in self._config.expressions:
            target = move_landmarks(face.mesh.landmarks68, expression, self._config.intensity)
            jpg = cv2.imencode(".jpg", cv2.cvtColor(warp(photo, face.mesh.landmarks68, target), cv2.COLOR_RGB2BGR), _JPEG)[1].tobytes()
            asked = declare(face.mesh, Edit(expression=expression, intensity=self._config.intensity))  # at the photo's pose
            points = [(round(float(x), 2), round(float(y), 2)) for x, y in target]
            pictures.append((jpg, asked.model_copy(update={"landmarks": points})))
        return pictures


def move_landmarks(landmarks: npt.NDArray[np.floating], expression: Expression, intensity: Intensity) -> npt.NDArray[np.float32]:
    """Landmarks `(68, 2)` of a face at rest as the expression would move them: the mean shift of drawn people, turned and scaled to the face."""
    points = np.asarray(landmarks, np.float64)
    right_eye, left_eye = eye_centres(points)
    eyes = left_eye - right_eye
    angle = np.arctan2(eyes[1], eyes[0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points + interocular_distance(points) * expression_shift(expression, intensity) @ turn.T).astype(np.float32)


@lru_cache(maxsize=32)
def expression_shift(expression: Expression, intensity: Intensity) -> npt.NDArray[np.float64]:
    """Mean shift of the 68 landmarks from rest, in interocular distances, over eight drawn people facing the camera. (68, 2)."""
    mesh, shifts = load_head(), []
    for number in range(8):
        person = draw_person(np.random.default_rng((11, number)), mesh)
        rest, shown = (
            project(pose_vertices(mesh, person, actions_for(shape, degree), Pose())[landmark_vertices()], 512)
            for shape, degree in ((Expression.NEUTRAL, Intensity.PLAIN), (expression, intensity))
        )
        shifts.append((shown - rest) / interocular_distance(rest))
    return np.mean(shifts, axis=0)


def warp(photo: npt.NDArray[np.uint8], source: npt.NDArray[np.floating], target: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """The photo with its landmarks `source` brought to `target` (both (68, 2)) by a thin-plate spline that fades out around the face."""
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    low, high = source.min(0), source.max(0)
    radius = 1.1 * (high - low).max()
    ring = (low + high) / 2 + radius * np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 16, endpoint=False)])
    centre = ring.mean(0)
    # backwards: for each pixel of the result, how far away its colour is; what lies outside the ring stays
    shift = RBFInterpolator(
        np.vstack([target, ring]), np.vstack([source - target, np.zeros_like(ring)]), kernel="thin_plate_spline", smoothing=0.5
    )

    def moved(left: int, top: int, right: int, bottom: int) -> npt.NDArray[np.float32]:
        """Of the points of the grid around these pixels, (rows, columns, 2)."""
        xs, ys = np.arange(left, right + _GRID, _GRID), np.arange(top, bottom + _GRID, _GRID)
        grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.float64)
        fade = np.clip((1.0 - np.linalg.norm(grid - centre, axis=1) / radius) / 0.15, 0, 1)
        return (shift(grid) * fade[:, None]).reshape(len(ys), len(xs), 2).astype(np.float32)

    warped = photo.copy()
    (left, right), (top, bottom) = (_reach(middle, radius, side) for middle, side in zip(centre, photo.shape[1::-1], strict=True))
    band = max(_GRID, _AT_ONCE // (right - left) // _GRID * _GRID)
    for start in range(top, bottom, band):
        end = min(start + band, bottom)
        rows, columns = np.mgrid[start:end, left:right].astype(np.float32)
        fine = cv2.remap(moved(left, start, right, end), (columns - left) / _GRID, (rows - start) / _GRID, cv2.INTER_LINEAR)
        warped[start:end, left:right] = _sample(photo, columns + fine[..., 0], rows + fine[..., 1])
    return warped


def _reach(middle: float, radius: float, side: int) -> tuple[int, int]:
    """First pixel, on the grid, and the one after the last that a ring may move, along a side of the photo."""
    first = int(np.clip(middle - radius - _GRID, 0, side - 1)) // _GRID * _GRID
    return first, int(np.clip(middle + radius + _GRID + 1, first + 1, side))


def _sample(photo: npt.NDArray[np.uint8], xs: npt.NDArray[np.float32], ys: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The photo's colours at these places. Only what lies around them is given to OpenCV, whose remap takes no picture of more than 32,767 pixels a side;
    places are told from the cut's corner, which is exact: a whole number is taken away."""
    (left, right), (top, bottom) = (
        (int(np.clip(at.min() - _KERNEL, 0, side - 1)), int(np.clip(at.max() + _KERNEL, 1, side)))
        for at, side in zip((xs, ys), photo.shape[1::-1], strict=True)
    )
    around = photo[top:bottom, left:right]
    return cv2.remap(around, xs - left, ys - top, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[return-value]
