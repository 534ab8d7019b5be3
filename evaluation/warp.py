"""The warp baseline: the source, its pixels moved so that its landmarks fall on the target's. It has never been trained; it is what geometry alone gives."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy.interpolate import RBFInterpolator

from lato.landmarks import Landmarks

_STEP = 8
"""Pixels between the places at which the smooth map is evaluated; linear between them."""


def warp(image: npt.NDArray[np.uint8], source: Landmarks, target: Landmarks) -> npt.NDArray[np.uint8]:
    """Warps a picture by a thin-plate spline.

    Args:
        image: RGB (H, W, 3).
        source: (68, 2) landmarks in its pixels.
        target: (68, 2) where they are to be, in its pixels.

    Returns:
        RGB (H, W, 3); the border stays where it is.
    """
    height, width = image.shape[:2]
    edge = np.linspace(0, 1, 5)
    frame = np.array([(x, y) for x in edge for y in edge if x in (0, 1) or y in (0, 1)]) * [width - 1, height - 1]
    # the map goes from a place in the result to the place it is taken from
    places = np.concatenate([target, frame]).astype(np.float64)
    origins = np.concatenate([source, frame]).astype(np.float64)
    spline = RBFInterpolator(places, origins - places, kernel="thin_plate_spline", smoothing=1.0)
    rows, columns = np.arange(0, height + _STEP, _STEP), np.arange(0, width + _STEP, _STEP)
    grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2).astype(np.float64)
    coarse = (grid + spline(grid)).reshape(len(rows), len(columns), 2).astype(np.float32)
    at_x, at_y = np.meshgrid(np.arange(width, dtype=np.float32) / _STEP, np.arange(height, dtype=np.float32) / _STEP)
    maps = cv2.remap(coarse, at_x, at_y, cv2.INTER_LINEAR)
    return cv2.remap(image, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[return-value, call-overload]
