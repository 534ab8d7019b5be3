"""Metrics by known answers; the warp baseline by what it is for."""

import numpy as np
import pytest

from evaluation.metrics import change_of, mean_of, rectified_identity, score
from evaluation.report import _score_row
from evaluation.run import METRICS, summarise
from evaluation.warp import warp
from lato.edits import Edit


@pytest.mark.parametrize(
    ("identity", "instructed", "realised", "expected"),
    [(0.9, 30, 30, 0.9), (0.9, 30, 0, 0.0), (0.9, 30, 15, 0.65), (0.9, 30, 45, 0.65), (0.9, 30, -30, 0.0), (0.9, 0, 5, 0.0)],
)
def test_rectified_identity(identity, instructed, realised, expected):
    assert rectified_identity(identity, instructed, realised) == pytest.approx(expected, abs=1e-6)


def test_a_mean_leaves_out_what_is_not_there():
    mean = mean_of([1.0, None, 3.0])
    assert (mean.value, mean.count) == (2.0, 2)
    assert mean.low <= 2.0 <= mean.high
    assert mean_of([None]).value is None


def test_a_row_of_the_report_holds_what_was_measured_and_nothing_else():
    summary = summarise([dict.fromkeys(METRICS, 1.0) | {"editor": "copy", "state": "ok"}])
    assert set(summary["copy"]) == {*METRICS, "detection", "states"}
    row = _score_row("copy", summary["copy"])
    assert (len(row["cells"]), row["states"]) == (1 + len(METRICS), "ok: 1")


def test_no_face_is_a_state_and_not_a_zero(reader, person):
    before = reader.read(person(0)())
    scores = score(Edit(yaw=30), before, None, before, before.mesh.landmarks68, 1.0)
    assert scores.state == "no_face"
    assert scores.rectified_identity is None


def test_copying_earns_nothing_and_the_true_target_earns_its_likeness(reader, person):
    draw = person(2)
    before, target = reader.read(draw()), reader.read(draw("happy", "strongly", yaw=30))
    edit = Edit(expression="happy", intensity="strongly", yaw=30)
    landmarks = target.mesh.landmarks68
    copied, right = (score(edit, before, after, target, landmarks, 1.0) for after in (before, target))
    assert copied.rectified_identity == pytest.approx(0, abs=0.05)
    assert copied.landmark_error > 20
    assert right.landmark_error == 0
    assert right.rectified_identity > 0.9 * right.identity
    assert change_of(Edit(yaw=-30), before, target, target)[1] < -0.5  # turned the wrong way


def test_warp_moves_landmarks_where_they_are_to_be(reader, person):
    draw = person(3)
    image = draw()
    source = reader.read(image).mesh.landmarks68
    target = reader.read(draw("happy", "strongly")).mesh.landmarks68
    found = reader.read(warp(image, source, target)).mesh.landmarks68
    mouth = slice(48, 68)
    assert np.abs(found[mouth] - target[mouth]).mean() < 0.6 * np.abs(source[mouth] - target[mouth]).mean()
    assert np.array_equal(warp(image, source, source), image) or np.abs(warp(image, source, source).astype(int) - image).mean() < 1
