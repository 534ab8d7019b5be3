"""Image quality of a face crop: raw scores, no thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lato.faces.detect import face_box
from lato.landmarks import eye_centres, interocular_distance

_SIDE = 160
_YELLOW = 1.0
"""Least b* of a cheek of which a skin tone is told; that of skin in white light is about ten to twenty."""


@dataclass(frozen=True)
class QualityScores:
    """Measured on the face box scaled to 160 px, so that the scores do not depend on resolution."""

    sharpness: float
    """Variance of the Laplacian, grey levels squared: low is blurred (but noise raises it, so read it beside `noise`)."""
    brightness: float
    """Mean grey level 0..255."""
    noise: float
    """Standard deviation of noise in grey levels (Immerkaer 1996, fast noise variance estimation)."""
    face_px: float
    """Longer side of the box in image pixels."""
    clipped: float
    """Share of pixels that are black or white to the limit: 0 is well exposed."""
    blockiness: float
    """Mean step over the 8 px borders of the codec's blocks, over the mean step elsewhere: 1 is none. Measured on the image's own pixels."""
    letterbox: float
    """Share of the image that black bars take."""
    skin_ita: float | None
    """Individual typology angle of the cheeks in degrees (Chardon 1991): about 55 very light, 28 intermediate, -30 dark. None where no cheek lies in the
    picture, or it is grey or blue there, as the angle is defined for skin that is yellower than grey."""
    phash: bytes
    """256 bits, one for each step between neighbours of a 16 x 17 thumbnail of the face (difference hash)."""


def measure(
    image: npt.NDArray[np.uint8],
    landmarks: npt.NDArray[np.floating],
    small: npt.NDArray[np.uint8] | None = None,
    bars: float | None = None,
) -> QualityScores:
    """Scores a face.

    Args:
        image: RGB `(H, W, 3)`: the picture, or a piece of it around the face that begins on the codec's grid of 8 px.
        landmarks: `(68, 2)` in its pixels.
        small: The face's `thumbnail`, where that was made already.
        bars: Share of the picture that black bars take (`letterbox`), where `image` is a piece.
    """
    box = face_box(landmarks)
    left, top, right, bottom = _within(image, box)
    small = thumbnail(image, landmarks) if small is None else small
    grey = small.astype(np.float32)
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    residual = np.abs(cv2.filter2D(grey, -1, mask)[1:-1, 1:-1])
    return QualityScores(
        sharpness=sharpness(small),
        brightness=float(grey.mean()),
        noise=float(residual.mean() * np.sqrt(np.pi / 2) / 6),
        face_px=float(max(box[2] - box[0], box[3] - box[1])),
        clipped=float(((grey < 3) | (grey > 252)).mean()),
        blockiness=_blockiness(image, left, top, right, bottom),
        letterbox=letterbox(image) if bars is None else bars,
        skin_ita=_skin_ita(image, landmarks),
        phash=_difference_hash(grey),
    )


def sharpness(small: npt.NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of a face's `thumbnail`, as in `QualityScores`."""
    return float(cv2.meanStdDev(cv2.Laplacian(small, cv2.CV_16S))[1][0, 0] ** 2)


def _within(image: npt.NDArray[np.uint8], box: npt.NDArray[np.floating]) -> tuple[int, int, int, int]:
    height, width = image.shape[:2]
    left, top, right, bottom = np.clip(np.rint(box), 0, [width, height, width, height]).astype(int).tolist()
    return left, top, right, bottom


def thumbnail(image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Grey levels (160, 160) of the face with the landmarks `(68, 2)`."""
    left, top, right, bottom = _within(image, face_box(landmarks))
    face = image[min(top, image.shape[0] - 1) : max(bottom, top + 1), min(left, image.shape[1] - 1) : max(right, left + 1)]
    return cv2.resize(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def hash_distance(a: bytes, b: bytes) -> int:
    """Bits in which two hashes differ, 0..256."""
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def _difference_hash(grey: npt.NDArray[np.float32]) -> bytes:
    small = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


def _blockiness(image: npt.NDArray[np.uint8], left: int, top: int, right: int, bottom: int) -> float:
    if min(bottom - top, right - left) < 24:
        return 1.0
    grey = cv2.cvtColor(image[top:bottom, left:right], cv2.COLOR_RGB2GRAY).astype(np.float32)
    ratios = []
    for steps, first in ((np.abs(np.diff(grey, axis=1)).mean(0), left), (np.abs(np.diff(grey, axis=0)).mean(1), top)):
        border = (np.arange(len(steps)) + first + 1) % 8 == 0
        ratios.append(float(steps[border].mean() + 0.1) / float(steps[~border].mean() + 0.1))
    return float(np.mean(ratios))


def letterbox(image: npt.NDArray[np.uint8]) -> float:
    """Share of an RGB picture `(H, W, 3)` that black bars take."""
    height, width = image.shape[:2]
    flat = np.ascontiguousarray(image).reshape(height, -1)
    rows, columns = np.flatnonzero(flat.max(axis=1) > 24), np.flatnonzero(flat.max(axis=0).reshape(width, 3).max(axis=1) > 24)
    if not len(rows):
        return 1.0
    inside = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return 1.0 - float(inside) / (height * width)


def _skin_ita(image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> float | None:
    points = np.asarray(landmarks, np.float64)
    radius = max(1, round(float(interocular_distance(points)) * 0.06))
    patches = []
    for eye, mouth in zip(eye_centres(points), points[[48, 54]], strict=True):
        x, y = np.rint((eye + mouth) / 2).astype(int)
        (left, top), (right, bottom) = ((max(x + side, 0), max(y + side, 0)) for side in (-radius, radius + 1))
        patch = image[top:bottom, left:right]  # what is below 0 would count from the end
        if patch.size:
            patches.append(patch.reshape(-1, 3))
    if not patches:
        return None
    colour = np.median(np.concatenate(patches), axis=0).astype(np.float32).reshape(1, 1, 3) / 255
    lightness, _, blue_yellow = cv2.cvtColor(colour, cv2.COLOR_RGB2LAB)[0, 0]
    return float(np.degrees(np.arctan2(lightness - 50.0, blue_yellow))) if blue_yellow >= _YELLOW else None
