"""Burnt-in text and watermarks on a face picture: strokes of one height in a row, beside the face."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

_HEIGHTS = (6, 48)
"""Of a line of text in pixels of a 256 px chip."""


def writing_share(image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> float:
    """Share of an RGB image that looks like lines of text.

    Strokes are where the morphological gradient is strong; lines are strokes joined sideways into a wide, low, well filled box with many crossings. The
    face itself (hull of its landmarks `(68, 2)`) is left out: brows and lashes are strokes too.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gradient = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    strokes = (gradient > max(60.0, float(gradient.mean()) + 2 * float(gradient.std()))).astype(np.uint8)
    hull = cv2.convexHull(np.asarray(landmarks, np.float32)).astype(np.int32)
    cv2.fillConvexPoly(strokes, hull, 0)
    joined = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones((1, 11), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    area = 0
    for left, top, width, height, _ in stats[1:count]:
        inside = strokes[top : top + height, left : left + width]
        crossings = np.abs(np.diff(inside.astype(np.int8), axis=1)).sum(axis=1).max(initial=0) / max(width / height, 1.0)
        if _HEIGHTS[0] <= height <= _HEIGHTS[1] and width > 2.5 * height and 0.25 < inside.mean() < 0.9 and crossings >= 2:
            area += int(width * height)
    return area / grey.size
