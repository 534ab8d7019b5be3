"""Image quality of a face crop: raw scores, no thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from lato.faces.detect import Detection

_SIDE = 160


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


def measure(image: npt.NDArray[np.uint8], detection: Detection) -> QualityScores:
    """Scores the face in an RGB image `(H, W, 3)`."""
    height, width = image.shape[:2]
    left, top, right, bottom = np.clip(np.rint(detection.box), 0, [width, height, width, height]).astype(int)
    face = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    grey = cv2.cvtColor(cv2.resize(face, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    residual = np.abs(cv2.filter2D(grey, -1, mask)[1:-1, 1:-1])
    return QualityScores(
        sharpness=float(cv2.Laplacian(grey, cv2.CV_32F).var()),
        brightness=float(grey.mean()),
        noise=float(residual.mean() * np.sqrt(np.pi / 2) / 6),
        face_px=detection.size,
    )
