"""Which squares of two pictures a pair is cut from. Arrays are (N, ...), in image pixels; a crop is left, top, side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def shared_crops(points: Array, frame: Array, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64], margin: float) -> tuple[Array, Array]:
    """One square over both faces, so that motion between them survives; shifted to where both pictures (of a set, they may differ in size) have it, where it
    fits. The same for a pair and its reverse. (N, 3) left, top, side."""
    room = np.minimum(frame[i], frame[j])
    lows, highs = points.min(axis=1), points.max(axis=1)
    extents = (highs - lows).max(axis=1)
    low, high, extent = np.minimum(lows[i], lows[j]), np.maximum(highs[i], highs[j]), np.maximum(extents[i], extents[j])
    spread = (high - low).max(axis=1)
    side = np.minimum(np.maximum(margin * extent, spread * 1.15), np.maximum(room.min(axis=1), spread))
    centre = (low + high) / 2
    centre[:, 1] -= 0.12 * extent  # the landmarks stop at the brows: leave room for hair
    corner = np.clip(centre - side[:, None] / 2, 0, np.maximum(room - side[:, None], 0))
    crop = np.round(np.column_stack([corner, side]), 2)
    return crop, crop


def eye_crops(points: Array) -> Array:
    """Two pictures share no frame: each is cropped by the same rule in units of the distance between its outer eye corners. (N, 3)."""
    side = 4.2 * np.linalg.norm(points[:, 36] - points[:, 45], axis=1)
    centre = points[:, [36, 45]].mean(axis=1)
    centre[:, 1] += 0.09 * side
    return np.round(np.column_stack([centre - side[:, None] / 2, side]), 2)


def padding_of(crop: Array, frame: Array) -> Array:
    """Share of each crop that lies outside its frame."""
    inside = [np.maximum(0.0, np.minimum(crop[:, axis] + crop[:, 2], frame[:, axis]) - np.maximum(crop[:, axis], 0.0)) for axis in (0, 1)]
    return 1.0 - inside[0] * inside[1] / crop[:, 2] ** 2
