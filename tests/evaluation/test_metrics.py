"""Metrics by known answers; the warp baseline by what it is for."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.metrics import mean_of, rate_of, rectified_identity, score, shares_made
from evaluation.report import _common_row, _score_row
from evaluation.run import METRICS, print_summary, show, summarise
from evaluation.warp import warp
from infra.jobs.demo import _log_scores
from lato.edits import Edit
from lato.faces.expression import _load


@pytest.mark.parametrize(
    ("identity", "made", "expected"),
    [
        (0.9, [1], 0.9),
        (0.9, [0], 0.0),
        (0.9, [0.5], 0.65),
        (0.9, [1.5], 0.65),
        (0.9, [-1], 0.0),
        (0.9, [1, 1], 0.9),
        (0.9, [1, 0], 0.4),
        (0.9, [2, 0], 0.0),  # twice of one part makes up for none of another no more
    ],
)
def test_rectified_identity(identity, made, expected):
    assert rectified_identity(identity, made) == pytest.approx(expected, abs=1e-6)


def test_a_mean_leaves_out_what_is_not_there():
    mean = mean_of([1.0, None, 3.0], ["a", "b", "c"])
    assert (mean.value, mean.count) == (2.0, 2)
    assert mean.low <= 2.0 <= mean.high
    assert mean_of([None], ["a"]).value is None


def test_an_interval_is_of_people_and_one_person_has_none():
    noise = np.random.default_rng(0)
    people = [f"person {number // 5}" for number in range(20)]
    values = np.repeat(noise.normal(0.6, 0.15, 4), 5) + noise.normal(0, 0.01, 20)
    apart, together = mean_of(values, [str(number) for number in range(20)]), mean_of(values, people)
    assert (together.value, together.count) == (pytest.approx(apart.value), 20)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    alone = mean_of([0.8, 0.9], ["a", "a"])
    assert (alone.value, alone.low, alone.high, alone.count) == (pytest.approx(0.85), None, None, 2)
    assert show(alone) == "0.850 n=2"


def test_ten_in_ten_is_not_certain():
    rate = rate_of(10, 10)
    assert (rate.value, rate.count) == (1.0, 10)
    assert (rate.low, rate.high) == (pytest.approx(0.722, abs=1e-3), 1.0)  # Wilson 1927
    assert rate_of(0, 0).value is None


def _row(editor, key, state="ok", value=1.0):
    return dict.fromkeys(METRICS, value if state == "ok" else None) | {"editor": editor, "key": key, "person": key, "state": state}


def test_a_row_of_the_report_holds_what_was_measured_and_nothing_else(capsys):
    summary = summarise([_row("copy", "a")])
    assert set(summary["copy"]) == {*METRICS, "detection", "states", "common"}
    row = _score_row("copy", summary["copy"])
    assert (len(row["cells"]), row["states"]) == (1 + len(METRICS), "ok: 1")
    print_summary(summary)
    assert "all editors did" not in capsys.readouterr().out, "it would say the same once more"


def test_an_editor_that_loses_the_hard_faces_does_not_win(capsys):
    hard, easy = [f"h{number}" for number in range(6)], [f"e{number}" for number in range(4)]
    rows = [_row("good", key, value=0.45) for key in hard] + [_row("good", key, value=0.85) for key in easy]
    rows += [_row("bad", key, "no_face") for key in hard] + [_row("bad", key, value=0.8) for key in easy]
    summary = summarise(rows)
    assert summary["bad"]["identity"]["value"] > summary["good"]["identity"]["value"]
    common = {editor: values["common"]["identity"] for editor, values in summary.items()}
    assert {editor: (mean["value"], mean["count"]) for editor, mean in common.items()} == {
        "good": (pytest.approx(0.85), 4),
        "bad": (pytest.approx(0.8), 4),
    }
    assert _common_row("good", summary["good"])["cells"][0].startswith("0.850 [")
    print_summary(summary)
    assert "all editors did" in capsys.readouterr().out
    logged = {}
    _log_scores(SimpleNamespace(metrics=logged.update, artifact=lambda path: None), summary, "scores.parquet")
    assert (logged["bad.identity"], logged["bad.common.identity"], logged["good.common.identity"]) == pytest.approx((0.8, 0.8, 0.85))


def test_a_sample_without_a_face_speaks_against_no_editor(capsys):
    summary = summarise([_row("copy", "a"), _row("copy", "b", "no_face"), _row("copy", "c", "no_face_in_sample")])
    assert (summary["copy"]["detection"]["value"], summary["copy"]["detection"]["count"]) == (0.5, 2)
    print_summary(summary)
    assert "no face is read: 1" in capsys.readouterr().out


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
    assert shares_made(Edit(yaw=-30), before, target, target)[0] < -0.5  # turned the wrong way
    turned = reader.read(draw(yaw=45))
    assert score(edit, before, turned, target, landmarks, 1.0).rectified_identity < 0.1  # half as far again, and no smile


def test_another_expression_is_not_calm(reader, person):
    draw = person(1)
    calm, happy = reader.read(draw()), reader.read(draw("happy", "strongly"))
    edit, landmarks = Edit(expression="neutral"), calm.mesh.landmarks68
    right = score(edit, happy, calm, calm, landmarks, 1.0)
    assert right.rectified_identity == right.identity
    assert score(edit, happy, happy, calm, landmarks, 1.0).rectified_identity == pytest.approx(0, abs=0.01)
    for expression in ("sad", "surprised", "angry", "fearful", "disgusted"):
        scores = score(edit, happy, reader.read(draw(expression, "strongly")), calm, landmarks, 1.0)
        assert scores.rectified_identity < 0.75 * scores.identity, expression


def test_a_little_more_of_another_expression_is_a_little_less_calm():
    """Of six directions the one that changed most was asked, another for each picture: scores went from all to nothing between two that look the same."""
    directions = _load()
    strong = {
        name: directions.weights[number] * directions.lengths[number] for number, name in enumerate(("happy", "sad", "angry", "surprised"))
    }

    def face(blendshapes):
        return SimpleNamespace(mesh=SimpleNamespace(blendshapes=blendshapes))

    rest = np.zeros(52, np.float32)
    for name in ("sad", "angry", "surprised"):
        made = [
            shares_made(Edit(expression="neutral"), face(strong["happy"]), face(strong[name] * part), face(rest))[0]
            for part in np.linspace(0, 1.2, 61)
        ]
        assert made[0] == 1
        assert -0.03 < max(np.diff(made)) <= 0 and min(np.diff(made)) > -0.03, name


def test_warp_moves_landmarks_where_they_are_to_be(reader, person):
    draw = person(3)
    image = draw()
    source = reader.read(image).mesh.landmarks68
    target = reader.read(draw("happy", "strongly")).mesh.landmarks68
    found = reader.read(warp(image, source, target)).mesh.landmarks68
    mouth = slice(48, 68)
    assert np.abs(found[mouth] - target[mouth]).mean() < 0.6 * np.abs(source[mouth] - target[mouth]).mean()
    assert np.array_equal(warp(image, source, source), image) or np.abs(warp(image, source, source).astype(int) - image).mean() < 1
