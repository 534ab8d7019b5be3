"""What the report counts: groups of what was and what was not measured."""

import numpy as np
import pyarrow as pa

from data_pipeline.report import _groups


def test_skin_tone_that_was_not_measured_is_a_group_of_its_own():
    """It was called very light, or brown where it was stored as 0."""
    columns = {"kind": ["video"] * 4, "source_id": ["s"] * 4, "edit_kind": ["pose"] * 4}
    sizes = {name: np.full(4, 300.0) for name in ("from_face_px", "to_face_px", "from_width")}
    judged = pa.table(columns | sizes | {"from_skin_ita": pa.array([60.0, None, 0.0, -40.0])})
    found = {name: (names.tolist(), order) for name, names, order in _groups(judged, {})}
    names, order = found["skin tone (individual typology angle, degrees)"]
    assert names == ["very light (over 55)", "not measured", "brown (-30 to 10)", "dark (under -30)"] and order[-1] == "not measured"
    assert found["face size"][0] == ["192 to 383 px"] * 4
