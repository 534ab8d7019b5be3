"""Face chips: a small upright picture of every representative face, kept so that a new score needs no decoding."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lato.pairs import decode_image

SIDE = 256
_MARGIN = 2.1
"""Side of the chip in units of the landmarks' extent: hair, ears and what is written beside a face are in it."""
_QUALITY = 95


@dataclass(frozen=True)
class Chip:
    """A face, its eyes level, in a square of `SIDE` pixels."""

    jpg: bytes
    transform: npt.NDArray[np.float64]
    """(2, 3) from the source's pixels to the chip's."""

    def image(self) -> npt.NDArray[np.uint8]:
        """RGB `(SIDE, SIDE, 3)`."""
        return decode_image(self.jpg, "chip")

    def place(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Points `(N, 2)` of the source on the chip."""
        return (np.asarray(points, np.float64) @ self.transform[:, :2].T + self.transform[:, 2]).astype(np.float32)


def cut_chip(image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> Chip:
    """The chip of a face in an RGB image by its landmarks `(68, 2)`; what lies outside the image is grey."""
    points = np.asarray(landmarks, np.float64)
    right_eye, left_eye = points[36:42].mean(0), points[42:48].mean(0)
    angle = np.arctan2(*(left_eye - right_eye)[::-1])
    centre = (points.min(0) + points.max(0)) / 2
    side = _MARGIN * float(np.ptp(points, axis=0).max())
    scale = SIDE / max(side, 1.0)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    transform = np.hstack([turn, (SIDE / 2 - turn @ centre)[:, None]])
    small, used = image, transform
    if scale < 0.5:  # a large face: average first, bilinear sampling alone would alias
        small = cv2.resize(image, None, fx=2 * scale, fy=2 * scale, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        used = np.hstack([transform[:, :2] / (2 * scale), transform[:, 2:]])
    picture = cv2.warpAffine(small, used, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128))
    jpg = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    return Chip(jpg, transform)
