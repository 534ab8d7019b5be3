"""The canvas, mirroring and validation of landmarks."""

import numpy as np
import pytest

from lato.landmarks import (
    CANVAS,
    GROUPS,
    MIRROR_INDEX,
    Canvas,
    draw_landmarks,
    eye_centres,
    interocular_distance,
    mirror_landmarks,
    validate_landmarks,
)


def some_landmarks():
    return np.random.default_rng(0).uniform(100, 400, (68, 2)).astype(np.float32)


def test_groups_cover_all_points_once():
    assert sorted(i for group in GROUPS.values() for i in group) == list(range(68))


def test_eye_centres_have_the_points_type_and_bits():
    points = np.stack([some_landmarks(), some_landmarks() + 7])
    right, left = eye_centres(points)
    assert (right.shape, right.dtype) == ((2, 2), np.float32)
    assert np.array_equal(right[1], points[1, 36:42].mean(0))
    assert np.array_equal(left[1], points[1, 42:48].mean(0))


def test_mirror_twice_is_identity_and_swaps_names():
    points = some_landmarks()
    assert np.allclose(mirror_landmarks(mirror_landmarks(points)), points, atol=1e-4)
    for right, left in (("right_eye", "left_eye"), ("right_brow", "left_brow")):
        assert set(MIRROR_INDEX[list(GROUPS[right])]) == set(GROUPS[left])
    # the outer corner stays the outer corner
    assert MIRROR_INDEX[36] == 45
    assert MIRROR_INDEX[48] == 54
    assert MIRROR_INDEX[60] == 64


def test_canvas_converts_each_axis_by_its_own_factor():
    assert Canvas(640, 360).convert(np.array([[320.0, 180.0]]), CANVAS).tolist() == [[256.0, 256.0]]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((67, 2)) + 100, r"expected shape \(..., 68, 2\), given \(67, 2\)"),
        (np.full((68, 2), np.nan), "NaN"),
        (np.random.default_rng(0).uniform(0, 1, (68, 2)), "0..1"),
        (np.full((68, 2), 5000.0), "coordinate of 5000"),
    ],
)
def test_bad_landmarks_are_named(points, message):
    with pytest.raises(ValueError, match=message):
        validate_landmarks(points)


def test_drawing_puts_colour_where_the_points_are():
    points = some_landmarks()
    picture = draw_landmarks(points)
    for x, y in points.round().astype(int):
        assert picture[y, x].any()
    assert interocular_distance(points) == pytest.approx(np.linalg.norm(points[36] - points[45]))
