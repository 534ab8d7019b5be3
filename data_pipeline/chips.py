"""Face chips: a small upright picture of every representative face, kept so that a new score needs no decoding."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lato.landmarks import eye_centres
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


@dataclass(frozen=True)
class Piece:
    """The part of a picture that chip and quality of one face are read from: all of it that either looks at."""

    pixels: npt.NDArray[np.uint8]
    """RGB `(h, w, 3)`, a view of the picture."""
    corner: tuple[int, int]
    """Its left and top in the picture, on the grid of the codec's 8 px blocks."""

    def kept(self) -> Piece:
        """The same without the picture: a copy of its own."""
        return Piece(self.pixels.copy(), self.corner)

    def place(self, points: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Points `(N, 2)` of the picture in the piece."""
        return np.asarray(points, np.float64) - self.corner


def cut_piece(image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> Piece:
    """The piece around a face in an RGB image by its landmarks `(68, 2)`."""
    transform = _upright(landmarks)
    corners = np.array([[0, 0, SIDE, SIDE], [0, SIDE, 0, SIDE], [1, 1, 1, 1]], np.float64)
    inside = cv2.invertAffineTransform(transform) @ corners
    margin = 8 + np.ptp(inside, axis=1).max() / 64  # what sampling reaches beyond it: some pixels of picture and chip
    height, width = image.shape[:2]
    low = np.clip(np.floor((inside.min(axis=1) - margin) / 8) * 8, 0, [max(width - 8, 0) // 8 * 8, max(height - 8, 0) // 8 * 8]).astype(int)
    high = np.clip(np.ceil(inside.max(axis=1) + margin), low + 1, [width, height]).astype(int)
    return Piece(image[low[1] : high[1], low[0] : high[0]], (int(low[0]), int(low[1])))


def cut_chip(image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> Chip:
    """The chip of a face in an RGB image by its landmarks `(68, 2)`; what lies outside the image is grey."""
    return chip_of(cut_piece(image, landmarks), landmarks)


def chip_of(piece: Piece, landmarks: npt.NDArray[np.floating]) -> Chip:
    """The same from a face's piece; the landmarks are the picture's."""
    transform = _upright(landmarks)
    scale = float(np.hypot(*transform[0, :2]))
    small, used = piece.pixels, np.hstack([transform[:, :2], transform[:, :2] @ np.array(piece.corner)[:, None] + transform[:, 2:]])
    if scale < 0.5:  # a large face: average first, bilinear sampling alone would alias
        height, width = small.shape[:2]
        size = max(1, round(width * 2 * scale)), max(1, round(height * 2 * scale))
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        used[:, :2] *= [width / size[0], height / size[1]]
    picture = cv2.warpAffine(small, used, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128))
    jpg = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    return Chip(jpg, transform)


def _upright(landmarks: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(2, 3) from the image's pixels to the chip's."""
    points = np.asarray(landmarks, np.float64)
    right_eye, left_eye = eye_centres(points)
    angle = np.arctan2(*(left_eye - right_eye)[::-1])
    centre = (points.min(0) + points.max(0)) / 2
    scale = SIDE / max(_MARGIN * float(np.ptp(points, axis=0).max()), 1.0)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.hstack([turn, (SIDE / 2 - turn @ centre)[:, None]])
