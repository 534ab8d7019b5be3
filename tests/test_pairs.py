"""What is said of a pair besides its pixels, and samples of older versions."""

import json

import numpy as np

from lato.pairs import decode_pair, encode_pair
from tests.training.versions import make_pair


def test_a_targets_own_crop_is_kept_and_older_samples_are_read():
    shared = make_pair(0, "train")
    members = encode_pair(shared)
    assert "target_crop" not in json.loads(members["json"])  # as before there was one: such samples keep their bytes
    assert decode_pair(shared.key, members).meta == shared.meta and shared.meta.target_crop is None
    own = shared.meta.model_copy(update={"target_crop": (3.0, 4.0, 128.0)})
    found = decode_pair(shared.key, members | {"json": own.model_dump_json().encode()})
    assert found.meta == own and np.array_equal(found.landmarks, shared.landmarks)
