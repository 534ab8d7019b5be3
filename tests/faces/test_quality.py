"""Quality scores by known answers: each reacts to what it is named after, and to nothing else by much."""

import cv2
import numpy as np
import pytest

from lato.faces.quality import hash_distance, measure


@pytest.fixture(scope="module")
def scene(reader, clip):
    image = cv2.cvtColor(cv2.imread(clip("obama")), cv2.COLOR_BGR2RGB)
    reading = reader.read(image)
    return image, reading.mesh.landmarks68


def scores(scene, change):
    image, points = scene
    return measure(change(image.copy()), points)


def blur(image):
    return cv2.GaussianBlur(image, (0, 0), 6)


def noisy(image):
    return np.clip(image + np.random.default_rng(0).normal(0, 25, image.shape), 0, 255).astype(np.uint8)


def overexposed(image):
    return np.clip(image.astype(float) * 2.5, 0, 255).astype(np.uint8)


def compressed(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 6])[1], cv2.IMREAD_COLOR)


def barred(image):
    image[: image.shape[0] // 5] = 0
    return image


@pytest.mark.parametrize(
    ("change", "score", "factor"),
    [(blur, "sharpness", 0.3), (noisy, "noise", 2.0), (compressed, "blockiness", 1.5)],
)
def test_scores_react(scene, change, score, factor):
    before, after = (getattr(scores(scene, c), score) for c in (lambda i: i, change))
    assert after < before * factor if factor < 1 else after > before * factor


def test_shares_are_shares(scene):
    assert scores(scene, overexposed).clipped > 0.1 > scores(scene, lambda i: i).clipped
    assert scores(scene, barred).letterbox == pytest.approx(0.2, abs=0.01)
    assert scores(scene, lambda i: i).letterbox < 0.01


def test_skin_tone_angle_by_known_colours(scene):
    """Cheeks painted in colours of known L* and b* (Lab, D65)."""
    image, points = scene
    angles = []
    for lightness, yellow in ((75.0, 12.0), (60.0, 18.0), (35.0, 15.0)):
        lab = np.full((1, 1, 3), (lightness, 8.0, yellow), np.float32)
        rgb = (cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)[0, 0] * 255).round().astype(np.uint8)
        painted = np.broadcast_to(rgb, image.shape).copy()
        angle = measure(painted, points).skin_ita
        assert angle == pytest.approx(np.degrees(np.arctan2(lightness - 50, yellow)), abs=2)
        angles.append(angle)
    assert angles == sorted(angles, reverse=True)


def test_hashes_are_near_for_the_same_face_and_far_for_others(scene, reader, clip):
    image, points = scene
    same = scores(scene, lambda i: cv2.GaussianBlur(i, (0, 0), 1.5)).phash
    other_image = cv2.cvtColor(cv2.imread(clip("biden")), cv2.COLOR_BGR2RGB)
    other = reader.read(other_image)
    mine = measure(image, points).phash
    assert len(mine) == 32
    assert hash_distance(mine, same) <= 10 < hash_distance(mine, other.quality.phash)


def test_a_box_over_the_edge_is_measured(scene):
    image, points = scene
    assert np.isfinite(measure(image, points - points.mean(0)).sharpness)


def test_cheeks_above_the_picture_take_no_pixels_of_its_lower_edge():
    image = np.full((200, 200, 3), (30, 20, 15), np.uint8)
    image[150:] = (240, 230, 220)
    points = np.zeros((68, 2))
    points[36:42], points[42:48], points[36], points[45], points[48], points[54] = (
        *((60, -60), (120, -60)),
        *((55, -60), (125, -60), (70, -10), (110, -10)),
    )
    assert measure(image, points).skin_ita is None  # none is seen
    assert measure(image.swapaxes(0, 1), points[:, ::-1]).skin_ita is None


@pytest.mark.parametrize("colour", [(200, 200, 200), (40, 40, 40), (150, 160, 210)])
def test_grey_and_bluish_pictures_tell_no_skin_tone(scene, colour):
    """The angle would be 90 degrees or more for light ones, very light skin, and -90 for dark ones."""
    image, points = scene
    assert measure(np.broadcast_to(np.array(colour, np.uint8), image.shape).copy(), points).skin_ita is None
