"""How the DiT's training sees a pair: cut to an aspect ratio around the face, mirrored, its landmarks disturbed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from lato.landmarks import CANVAS, NUM_LANDMARKS, Canvas, Landmarks


@dataclass(frozen=True)
class Window:
    """A part of the canvas, in canvas px."""

    left: float
    top: float
    width: float
    height: float

    def place(self, landmarks: Landmarks) -> Landmarks:
        """Landmarks (..., 68, 2) of the whole picture -> on the canvas of the part, each axis by its own scale."""
        return Canvas(self.width, self.height).convert(landmarks - np.array([self.left, self.top], np.float32), CANVAS)

    def cut(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """That part of a picture (S, S, 3)."""
        scale = image.shape[0] / CANVAS.height
        left, top, right, bottom = (round(edge * scale) for edge in (self.left, self.top, self.left + self.width, self.top + self.height))
        return image[top:bottom, left:right]


def face_window(landmarks: Landmarks, size: tuple[int, int]) -> Window:
    """The largest part of the canvas with the aspect ratio of (height, width), its middle as near to both faces' (2, 68, 2) as the canvas allows."""
    height, width = size
    shorter = CANVAS.width * min(height, width) / max(height, width)
    extent = np.array([shorter, CANVAS.height] if width < height else [CANVAS.width, shorter])
    points = landmarks.reshape(-1, 2)
    middle = (points.min(0) + points.max(0)) / 2
    # whole pixels, so that pictures and landmarks are cut at the same place
    left, top = np.clip(np.rint(middle - extent / 2), 0, np.floor(np.array([CANVAS.width, CANVAS.height]) - extent))
    return Window(float(left), float(top), float(np.rint(extent[0])), float(np.rint(extent[1])))


def disturb(landmarks: Landmarks, jitter: float, masking: float, generator: Generator) -> Tensor:
    """Landmarks as a detector or predictor might give them.

    Args:
        landmarks: (68, 2) canvas px.
        jitter: Standard deviation of the noise of each coordinate, in canvas px.
        masking: Largest share of the points that is hidden; the share is drawn evenly from 0 to it.
        generator: Of the draws; their number does not depend on the settings.

    Returns:
        (68, 2), NaN where hidden.
    """
    noise = torch.randn(NUM_LANDMARKS, 2, generator=generator)
    share = float(torch.rand((), generator=generator)) * masking
    order = torch.randperm(NUM_LANDMARKS, generator=generator)
    points = torch.from_numpy(np.asarray(landmarks, np.float32)) + jitter * noise
    points[order[: int(share * NUM_LANDMARKS)]] = torch.nan
    return points
