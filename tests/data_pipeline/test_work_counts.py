"""The gate on the builder's speed: not times, which a busy machine changes, but how often each network runs and how many frames are decoded."""

import yaml

from tests.data_pipeline.work_counts import TABLE, count_all

FLOOR = 2.0
"""Our calls cost so many times less than the plain loop's, both weighed by what a call takes; renewing the table does not lower it."""


def test_a_build_does_the_work_that_is_committed_and_less_than_half_of_the_plain_loops(models, clip):
    found, committed = count_all(models, clip), yaml.safe_load(TABLE.read_text())
    differ = [
        f"{name}: {what} {committed[name]['ours'].get(what, 0)} -> {found[name]['ours'].get(what, 0)}"
        for name in found
        for what in sorted(found[name]["ours"].keys() | committed[name]["ours"].keys())
        if found[name]["ours"].get(what, 0) != committed[name]["ours"].get(what, 0)
    ]
    assert not differ, (
        f"a build does other work than {TABLE.name} says: {'; '.join(differ)}. Where that is meant (fewer is better): "
        "python -m tests.data_pipeline.work_counts --write, and commit the table. Another kind of processor may shift a count by one or two."
    )
    assert found == committed
    assert all(entry["plain over ours"] >= FLOOR for entry in found.values()), found
