"""What a warp computes: only around the face, piece by piece, and the same bytes as all at once."""

import tracemalloc

import cv2
import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from data_pipeline.synthetic import warp as module
from data_pipeline.synthetic.warp import warp
from tests.alone import alone


def warp_whole(photo, source, target):
    """The same for all pixels of the photo at once."""
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    low, high = source.min(0), source.max(0)
    radius = 1.1 * (high - low).max()
    ring = (low + high) / 2 + radius * np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 16, endpoint=False)])
    values = np.vstack([source - target, np.zeros_like(ring)])
    shift = RBFInterpolator(np.vstack([target, ring]), values, kernel="thin_plate_spline", smoothing=0.5)
    height, width = photo.shape[:2]
    ys, xs = np.arange(0, height + 8, 8), np.arange(0, width + 8, 8)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.float64)
    fade = np.clip((1.0 - np.linalg.norm(grid - ring.mean(0), axis=1) / radius) / 0.15, 0, 1)
    coarse = (shift(grid) * fade[:, None]).reshape(len(ys), len(xs), 2).astype(np.float32)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    fine = cv2.remap(coarse, columns / 8, rows / 8, cv2.INTER_LINEAR)
    return cv2.remap(photo, columns + fine[..., 0], rows + fine[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def landmarks_at(centre, side, seed=0):
    """(68, 2) in a square of that side, and others near by."""
    draw = np.random.default_rng(seed)
    source = (draw.uniform(-side / 2, side / 2, (68, 2)) + centre).astype(np.float32)
    return source, source + draw.normal(0, side / 25, (68, 2)).astype(np.float32)


@pytest.mark.parametrize("at_once", [module._AT_ONCE, 10_000])
@pytest.mark.parametrize(
    ("size", "centre", "side"),
    [
        ((701, 523), (260, 341), 90),  # in the middle
        ((333, 1200), (1180, 300), 150),  # over the photo's edges
        ((400, 300), (150, 200), 400),  # all of the photo
        ((97, 61), (5, 3), 20),
    ],
)
def test_the_bytes_are_those_of_the_whole_photo_warped_at_once(monkeypatch, at_once, size, centre, side):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    photo = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    warped, whole = warp(photo, *landmarks_at(centre, side)), warp_whole(photo, *landmarks_at(centre, side))
    assert np.array_equal(warped, whole)
    assert (warped != photo).any(axis=2).mean() > 0.03


def test_a_photo_wider_than_remap_takes_is_warped():
    photo = np.zeros((160, 33_000, 3), np.uint8)
    cut = np.random.default_rng(1).integers(0, 256, (160, 400, 3), dtype=np.uint8)
    cut = cv2.GaussianBlur(cut, (0, 0), 4)
    photo[:, -400:] = cut
    source, target = landmarks_at((300, 80), 60)
    out = np.array([32_600, 0])
    warped = warp(photo, source + out, target + out)
    assert not warped[:, :-400].any()
    alone = warp_whole(cut, source, target)
    assert (
        np.abs(warped[:, -400:].astype(int) - alone).max() <= 3 < np.abs(alone.astype(int) - cut).max()
    )  # places are less fine so far out


def most_held(photo, side):
    tracemalloc.start()
    warp(photo, *landmarks_at((1500, 1000), side))
    return tracemalloc.get_traced_memory()[1]


@pytest.mark.parametrize("side", [100, 1500])
def test_memory_is_that_of_the_photo_and_of_a_piece(side):
    """However large the photo, and the face in it."""
    photo = np.zeros((2000, 3000, 3), np.uint8)
    assert alone(most_held, photo, side) < photo.nbytes + 60 * module._AT_ONCE
