"""`lato edit` shows a model what training showed it."""

import numpy as np
import pytest

from data_pipeline.crops import shared_crops
from data_pipeline.render import crop_landmarks, cut
from data_pipeline.rules import PairingConfig
from infra.jobs.edit import _crop_face
from lato.pairs import decode_image

FRAME = (1280, 720)


@pytest.mark.parametrize("middle", [(640, 360), (140, 360), (640, 160), (1170, 600)], ids=["middle", "left", "top", "corner"])
def test_a_photo_is_cut_as_a_pair_of_that_face_is(middle):
    noise = np.random.default_rng(1)
    picture = noise.integers(0, 255, (FRAME[1], FRAME[0], 3)).astype(np.uint8)
    points = (np.array(middle) + noise.uniform(-100, 100, (68, 2))).astype(np.float32)
    pair = np.stack([points, points]).astype(np.float64)
    crops, _ = shared_crops(pair, np.array([FRAME, FRAME], np.float64), np.array([0]), np.array([1]), PairingConfig().margin)
    crop = tuple(crops[0].tolist())
    face, placed = _crop_face(picture, points)
    assert np.array_equal(placed, crop_landmarks({"landmarks": points}, crop))
    assert np.array_equal(face, decode_image(cut(picture, crop), "crop"))
    assert crop[0] >= 0 and crop[1] >= 0, "shifted into the frame, as a builder's crop is"
