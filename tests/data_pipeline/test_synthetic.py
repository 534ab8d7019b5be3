"""Synthetic people: what is declared of them is what perception reads."""

import numpy as np

from data_pipeline.synthetic.anny_people import AnnyConfig, draw_set
from lato.pairs import decode_image


def test_equal_seeds_give_equal_bytes_and_others_other_people():
    config = AnnyConfig(people=1, images=3)
    first, second = draw_set(config, 4), draw_set(config, 4)
    assert first == second
    assert draw_set(config, 5)[0] != first[0]
    assert draw_set(config.model_copy(update={"seed": 1}), 4)[0] != first[0]


def test_declared_pose_and_landmarks_are_read_back(reader):
    errors, wrong = [], 0
    for number in range(8):
        pictures, declared = draw_set(AnnyConfig(images=5), number)
        rest = None
        for picture, truth in zip(pictures, declared, strict=True):
            found = reader.read(decode_image(picture, "x"))
            assert found is not None, (number, truth)
            rest = rest or found
            errors.append(np.linalg.norm(found.mesh.landmarks68 - np.array(truth.landmarks), axis=1).mean())
            for axis in ("yaw", "roll"):
                wrong += abs(getattr(found.mesh, axis) - getattr(rest.mesh, axis) - getattr(truth, axis)) > 12
    assert np.median(errors) < 8  # pixels of 512
    assert wrong <= 2
