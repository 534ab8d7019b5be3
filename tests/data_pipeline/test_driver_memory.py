"""What the process that runs a build holds of each sample: little, as there are millions."""

import gc
import tracemalloc

import pyarrow as pa
import pytest

from data_pipeline import publish as publish_module
from data_pipeline.publish import publish
from tests.data_pipeline.multiplied import multiply
from tests.data_pipeline.small import config


class Seen(Exception):
    """All that there is to see was seen."""


def held():
    gc.collect()
    return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()


def test_when_packing_begins_little_is_held_of_each_sample(built, models, tmp_path, monkeypatch):
    """Of all samples at once: the row that was decided on, columns, an instruction, names of crops. As rows, observations and closures it was 15 KB."""
    work, _ = built
    plan = multiply(config(8), work, models, 10, tmp_path / "many")

    def look(samples, *rest):
        raise Seen(held() - before, len(samples))

    monkeypatch.setattr(publish_module, "pack", look)
    tracemalloc.start()
    before = held()
    try:
        with pytest.raises(Seen) as seen:
            publish(plan, None)
    finally:
        tracemalloc.stop()
    taken, samples = seen.value.args
    assert samples >= 400 and taken / samples < 6000
