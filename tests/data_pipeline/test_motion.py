"""Tracks of a component lie on disk while they are compared."""

import tracemalloc

import numpy as np

from data_pipeline.motion import Track, keep_on_disk
from tests.alone import alone


def drawn(number):
    moved = np.random.default_rng(number).normal(size=(2, 500, 188)).astype(np.float16)
    return Track(number, (number, 0), (moved[0], moved[1, 1:]))


def most_held(path):
    tracemalloc.start()
    with open(path, "w+b") as out:
        keep_on_disk((drawn(number) for number in range(200)), out)
    return tracemalloc.get_traced_memory()[1]


def test_memory_does_not_grow_with_the_hours_of_a_component(tmp_path):
    """Tracks lie in a file: 75 MB of them here, as they come. They are the same."""
    assert alone(most_held, tmp_path / "counted") < 20e6
    with open(tmp_path / "tracks", "w+b") as out:
        kept = keep_on_disk((drawn(number) for number in range(200)), out)
    for number in (0, 117, 199):
        whole = drawn(number)
        assert kept[number][:2] == whole[:2]
        assert all(np.array_equal(a, b) for a, b in zip(kept[number].changes, whole.changes, strict=True))
    with open(tmp_path / "none", "w+b") as out:
        assert keep_on_disk([], out) == []
