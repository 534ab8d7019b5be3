"""What the report counts: groups of what was and what was not measured."""

import numpy as np
import pyarrow as pa

from data_pipeline.cells import COLUMNS
from data_pipeline.report import _groups
from data_pipeline.report_coverage import find_coverage


def test_skin_tone_that_was_not_measured_is_a_group_of_its_own():
    """It was called very light, or brown where it was stored as 0."""
    columns = {"kind": ["video"] * 4, "source_id": ["s"] * 4, "edit_kind": ["pose"] * 4}
    sizes = {name: np.full(4, 300.0) for name in ("from_face_px", "to_face_px", "from_width")}
    judged = pa.table(columns | sizes | {"from_skin_ita": pa.array([60.0, None, 0.0, -40.0])})
    found = {name: (names.tolist(), order) for name, names, order in _groups(judged, {})}
    names, order = found["skin tone (individual typology angle, degrees)"]
    assert names == ["very light (over 55)", "not measured", "brown (-30 to 10)", "dark (under -30)"] and order[-1] == "not measured"
    assert found["face size"][0] == ["192 to 383 px"] * 4


def cell(source, target, **steps):
    return {"from_expression": source, "to_expression": target} | {f"step_{axis}": steps.get(axis, 0) for axis in ("yaw", "pitch", "roll")}


def coverage_of(rows, quota):
    types = {name: pa.string() if name.endswith("expression") else pa.int16() for name in COLUMNS}
    found = find_coverage(pa.Table.from_pylist(rows, pa.schema(list(types.items()))), quota)
    return found, {name: (dict(zip(found.poses, cells, strict=True)), others) for name, cells, others in found.rows}


def test_the_shortfall_of_a_cell_is_in_the_unit_of_its_quota():
    """A row was the expression that edits lead to, from any of six: a full cell made all of them look full, and two of them twice as full."""
    rows = [cell("neutral", "happy")] * 6 + [cell("happy", "neutral")] * 4 + [cell("sad", "happy")] * 10
    found, table = coverage_of(rows, 10)
    assert table["neutral to happy"][0]["same pose"] == table["happy to sad"][0]["same pose"] == (10, 0)
    assert table["happy to angry"][0]["same pose"] == (0, 10)
    assert len(found.short) == 148 and sum(found.short) == 1480  # of 150: 21 changes x 7 steps, and three turns without one


def test_a_turn_and_the_way_back_are_one_cell():
    rows = [cell("happy", "neutral", yaw=30), cell("neutral", "happy", yaw=-30), cell("neutral", "neutral", yaw=-30)]
    rows += [cell("sad", "sad", yaw=30), cell("sad", "sad", yaw=60), cell("sad", "neutral", yaw=30, roll=30)]
    found, table = coverage_of(rows, None)
    assert found.goal == 1
    assert table["neutral to happy"][0]["yaw -30"] == (2, 0) and table["neutral to happy"][0]["yaw +30"] == (0, 1)
    same, others = table["same expression"]
    assert (same["same pose"], same["yaw +30"], same["yaw -30"], others) == ((0, 0), (2, 0), None, 1)
    assert table["neutral to sad"][1] == 1


def test_no_pair_has_no_coverage():
    found, _ = coverage_of([], None)
    assert found.goal == 1 and len(found.short) == 150
