"""Burnt-in text and watermarks on a face picture: letters of one height in a row, beside the face."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

_STROKE = np.ones((9, 9), np.uint8)
"""Letters of a 256 px chip are drawn in strokes thinner than this."""
_CONTRAST = 55
_HEIGHT, _WIDTH = (5, 40), (2, 60)
"""Of a letter in pixels."""
_LETTERS = 4
"""So many in a row are writing."""

Box = tuple[int, int, int, int]
"""Left, top, width, height."""


def writing_share(image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> float:
    """Share of an RGB image `(H, W, 3)` that lines of letters cover, light on dark or dark on light.

    The face itself (hull of its landmarks `(68, 2)`) is left out: brows and lashes are strokes too.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    hull = cv2.convexHull(np.asarray(landmarks, np.float32)).astype(np.int32)
    areas = []
    for lightness in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        strokes = (cv2.morphologyEx(grey, lightness, _STROKE) > _CONTRAST).astype(np.uint8)
        cv2.fillConvexPoly(strokes, hull, 0)
        areas.append(sum(_area(line) for line in _find_lines(_find_letters(strokes))))
    return max(areas) / grey.size


def _find_letters(strokes: npt.NDArray[np.uint8]) -> list[Box]:
    # Grana's algorithm: the same components as the default's, in a third of the time
    _, _, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(strokes, 8, cv2.CV_32S, cv2.CCL_GRANA)
    sized = [row for row in stats[1:].tolist() if _HEIGHT[0] <= row[3] <= _HEIGHT[1] and _WIDTH[0] <= row[2] <= _WIDTH[1] and row[4] >= 8]
    return sorted((left, top, width, height) for left, top, width, height, _ in sized)


def _find_lines(letters: list[Box]) -> list[list[Box]]:
    """Chains of letters, from left to right, each near the one before, on its baseline and of like height."""
    lines, used = [], set[Box]()
    for first in letters:
        if first in used:
            continue
        line = [first]
        for box in letters:
            if box not in used and box > line[-1] and _follows(line[-1], box):
                line.append(box)
        if len(line) >= _LETTERS:
            used.update(line)
            lines.append(line)
    return lines


def _follows(a: Box, b: Box) -> bool:
    tallest = max(a[3], b[3])
    near = -2 <= b[0] - (a[0] + a[2]) <= 1.5 * tallest
    return near and abs((a[1] + a[3]) - (b[1] + b[3])) <= 0.25 * tallest + 1 and 0.6 <= a[3] / b[3] <= 1.7


def _area(line: list[Box]) -> int:
    right, bottom = max(box[0] + box[2] for box in line), max(box[1] + box[3] for box in line)
    return (right - min(box[0] for box in line)) * (bottom - min(box[1] for box in line))
