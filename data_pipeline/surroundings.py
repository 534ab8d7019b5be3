"""What is around a face: colours of the background and of the clothes on its chip, by which two photos of one person are told to be of one occasion."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from data_pipeline.chips import SIDE

_BINS = (5, 8, 8)
"""Of lightness, green to red, blue to yellow."""
_CHROMA = (68, 187)
"""OpenCV's a and b within which bins lie; stronger colours count to the outermost."""


def describe_surroundings(chip: npt.NDArray[np.uint8]) -> dict[str, list[float]]:
    """Colours of an RGB chip `(SIDE, SIDE, 3)`: unit vectors `background` (beside and above the head) and `clothing` (the lower corners); the dot product
    of two is the Bhattacharyya coefficient of their histograms. Where a chip reaches over the picture's edge its grey counts: such pairs are `cut off`."""
    lab = cv2.LUT(cv2.cvtColor(chip, cv2.COLOR_RGB2LAB), _limits())
    return {name: _colours(lab, region).tolist() for name, region in _regions().items()}


@cache
def _limits() -> npt.NDArray[np.uint8]:
    """(1, 256, 3) of OpenCV's L, a and b: strong colours as the outermost that count."""
    levels = np.arange(256, dtype=np.uint8)
    chroma = np.clip(levels, *_CHROMA)
    return np.stack([levels, chroma, chroma], axis=-1)[None]


@cache
def _regions() -> dict[str, npt.NDArray[np.uint8]]:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    side = np.abs(x - 0.5)
    regions = {"background": (side > 0.3) & (y < 0.5), "clothing": (side > 0.15) & (y > 0.84)}
    return {name: region.astype(np.uint8) for name, region in regions.items()}


def _colours(lab: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    counts = cv2.calcHist([lab], [0, 1, 2], mask, list(_BINS), [0, 256, *(_CHROMA[0], _CHROMA[1] + 1) * 2])
    root = np.sqrt(_smoothing() @ np.asarray(counts, np.float64).reshape(-1))
    return (root / max(float(np.linalg.norm(root)), 1e-9)).astype(np.float32)


@cache
def _smoothing() -> npt.NDArray[np.float64]:
    """(bins, bins): a colour at a bin's border counts for its neighbour along each axis too."""
    lines = [0.5 * np.eye(size) + 0.25 * (np.eye(size, k=1) + np.eye(size, k=-1)) for size in _BINS]
    return np.kron(np.kron(lines[0], lines[1]), lines[2])
