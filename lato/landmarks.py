"""The 68 facial landmarks: their order, the canvas they live on, mirroring and drawing.

Order: iBUG 300-W, as in the released LaTo tokenizer and prompt (jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67).
"Right" in a group's name is the person's right, which iBUG puts first; it is on the image's left.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

NUM_LANDMARKS = 68

GROUPS: dict[str, range] = {
    "jaw": range(0, 17),
    "right_brow": range(17, 22),
    "left_brow": range(22, 27),
    "nose_bridge": range(27, 31),
    "nose_tip": range(31, 36),
    "right_eye": range(36, 42),
    "left_eye": range(42, 48),
    "outer_lip": range(48, 60),
    "inner_lip": range(60, 68),
}

_CLOSED_GROUPS = ("right_eye", "left_eye", "outer_lip", "inner_lip")

_COLOURS: dict[str, tuple[int, int, int]] = {  # RGB; the release draws jaw, brows, nose, eyes and lips in colours of their own
    "jaw": (255, 255, 255),
    "right_brow": (255, 200, 0),
    "left_brow": (255, 200, 0),
    "nose_bridge": (0, 255, 0),
    "nose_tip": (0, 255, 0),
    "right_eye": (255, 60, 60),
    "left_eye": (255, 60, 60),
    "outer_lip": (80, 140, 255),
    "inner_lip": (80, 140, 255),
}

# Where each landmark goes when the image is mirrored left to right.
MIRROR_INDEX: npt.NDArray[np.int64] = np.array(
    [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46),
        *(39, 38, 37, 36, 41, 40),
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
        *(64, 63, 62, 61, 60, 67, 66, 65),
    ]
)

# mediapipe's 478-point mesh read at the iBUG places; the jaw is the mesh's own outline.
MESH_TO_68: npt.NDArray[np.int64] = np.array(
    [
        *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
        *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),
        *(168, 197, 5, 4, 75, 97, 2, 326, 305),
        *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
        *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
        *(78, 82, 13, 312, 308, 317, 14, 87),
    ]
)

Landmarks = npt.NDArray[np.float32]
"""Float32 `(..., 68, 2)`: x to the right, y down, in pixels of a `Canvas`."""


@dataclass(frozen=True)
class Canvas:
    """The size in pixels of the picture that coordinates refer to."""

    width: float
    height: float

    def convert(self, points: npt.NDArray[np.floating], to: Canvas) -> Landmarks:
        """Rescales points `(..., 2)` from this canvas to another, each axis by its own factor."""
        scale = np.array([to.width / self.width, to.height / self.height], dtype=np.float64)
        return (np.asarray(points, dtype=np.float64) * scale).astype(np.float32)


CANVAS = Canvas(512.0, 512.0)
"""The canvas of the tokenizer, the predictor and every stored sample."""


def validate_landmarks(points: npt.NDArray[np.floating], name: str = "landmarks") -> Landmarks:
    """Checks landmarks given in pixels of `CANVAS` and returns them as float32.

    Args:
        points: `(..., 68, 2)`. They may lie outside the canvas (a jaw often does), but not by more than its size.
        name: What to call them in the message.

    Raises:
        ValueError: Wrong shape, a value that is not finite, or coordinates evidently in another unit (0..1 or -1..1, or far off the canvas).
    """
    points = np.asarray(points)
    if points.ndim < 2 or points.shape[-2:] != (NUM_LANDMARKS, 2):
        raise ValueError(f"{name}: expected shape (..., {NUM_LANDMARKS}, 2), given {tuple(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name}: expected finite pixel coordinates, given NaN or infinity")
    if np.abs(points).max() <= 2.0:
        raise ValueError(
            f"{name}: expected pixels on a {CANVAS.width:g} x {CANVAS.height:g} canvas, given values within 0..1 or -1..1: multiply by the size"
        )
    limit = 2.0 * max(CANVAS.width, CANVAS.height)
    if np.abs(points).max() > limit:
        raise ValueError(
            f"{name}: expected pixels on a {CANVAS.width:g} x {CANVAS.height:g} canvas, given a coordinate of {np.abs(points).max():.0f}"
        )
    return points.astype(np.float32)


def mirror_landmarks(points: npt.NDArray[np.floating]) -> Landmarks:
    """Mirrors landmarks `(..., 68, 2)` of the canvas left to right, so that each keeps its anatomical name."""
    mirrored = np.asarray(points, dtype=np.float32)[..., MIRROR_INDEX, :].copy()
    mirrored[..., 0] = CANVAS.width - mirrored[..., 0]
    return mirrored


def eye_centres(points: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Centres of the right and of the left eye, the person's, in the points' unit and type: `(..., 68, 2)` -> two of `(..., 2)`."""
    right, left = (points[..., GROUPS[name], :].mean(axis=-2) for name in ("right_eye", "left_eye"))
    return right, left


def interocular_distance(points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Distance between the outer eye corners (36 and 45) in the points' unit: `(..., 68, 2)` -> `(...)`."""
    points = np.asarray(points, dtype=np.float64)
    return np.linalg.norm(points[..., 36, :] - points[..., 45, :], axis=-1)


def mesh_to_68(mesh: npt.NDArray[np.floating]) -> Landmarks:
    """Reads the 68 landmarks off mediapipe's face mesh: `(..., 478, 2 or 3)` -> `(..., 68, 2)`, unit unchanged."""
    return np.asarray(mesh)[..., MESH_TO_68, :2].astype(np.float32)


def draw_landmarks(
    points: npt.NDArray[np.floating],
    image: npt.NDArray[np.uint8] | None = None,
    size: int = 512,
) -> npt.NDArray[np.uint8]:
    """Draws landmarks as lines and dots, by group, on an image or on black.

    Args:
        points: `(68, 2)` in pixels of `CANVAS`, which is stretched over the whole picture; NaN rows are left out.
        image: `(H, W, 3)` uint8 RGB to draw on (a copy is made); None for a black square.
        size: Side of the black square when there is no image.

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    picture = np.zeros((size, size, 3), np.uint8) if image is None else np.ascontiguousarray(image).copy()
    height, width = picture.shape[:2]
    shift = 4  # sub-pixel drawing: OpenCV takes fixed-point coordinates
    known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(points).all(-1))
    placed = np.rint(CANVAS.convert(np.nan_to_num(points), Canvas(width, height)) * (1 << shift)).astype(np.int32)
    thickness = max(1, round(min(height, width) / 256))
    radius = max(1, round(min(height, width) / 170)) << shift
    for name, indices in GROUPS.items():
        line = placed[indices.start : indices.stop][known[indices.start : indices.stop]].reshape(-1, 1, 2)
        if len(line):
            cv2.polylines(picture, [line], name in _CLOSED_GROUPS, _COLOURS[name], thickness, cv2.LINE_AA, shift)
        for x, y in line[:, 0]:
            cv2.circle(picture, (int(x), int(y)), radius, _COLOURS[name], -1, cv2.LINE_AA, shift)
    return picture
