"""What the process that runs a build holds of each sample: little, as there are millions."""

import gc
import tracemalloc

import pyarrow as pa
import pytest

from data_pipeline import publish as publish_module
from data_pipeline.publish import publish
from tests.alone import alone
from tests.data_pipeline.multiplied import multiply
from tests.data_pipeline.small import config


class Seen(Exception):
    """All that there is to see was seen."""


def held():
    gc.collect()
    return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()


def held_when_packing_begins(work, models, folder):
    """Bytes, and samples."""
    plan = multiply(config(8), work, models, 10, folder)

    def look(samples, *rest):
        raise Seen(held() - before, len(samples))

    tracemalloc.start()
    before = held()
    publish_module.pack = look  # this process ends with the test
    with pytest.raises(Seen) as seen:
        publish(plan, None)
    return seen.value.args


def test_when_packing_begins_little_is_held_of_each_sample(built, models, tmp_path):
    """Of all samples at once: the row that was decided on, columns, an instruction, names of crops. As rows, observations and closures it was 15 KB."""
    taken, samples = alone(held_when_packing_begins, built[0], models, tmp_path / "many")
    assert samples >= 400 and taken / samples < 6000
