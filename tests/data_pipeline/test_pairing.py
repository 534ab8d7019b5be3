"""What is scored of pairs of representatives, and how their edit is told."""

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.judge import judge
from data_pipeline.pairing import AXES, Person, edit_of, edit_texts, score_person
from data_pipeline.rules import VERDICTS, PairingConfig, Rules
from data_pipeline.score import write_scores
from lato.edits import Edit, Expression, Intensity
from tests.benchmarks.accepted_cells import Known
from tests.data_pipeline.test_real_expressions import KNOWN, face, fer


def numbered(*faces):
    return Person("p", "same_track", [one | {"frame": n, "row": n} for n, one in enumerate(faces)])


def rows_of(person):
    """Scored pairs as rows."""
    scored = score_person(person, 2.1)
    return [dict(zip(scored, values, strict=True)) for values in zip(*scored.values(), strict=True)]


@pytest.mark.parametrize(("read", "told"), [(0.31, "slightly"), (0.7, "plain"), (1.0, "strongly")])
@pytest.mark.parametrize("asked", list(Intensity))
def test_an_edited_photo_is_told_as_strong_as_it_reads_and_a_drawn_one_as_it_was_drawn(read, told, asked):
    declared = KNOWN | {"expression": "happy", "intensity": asked.value}
    rest = face("neutral", 0.0, fer(neutral=1))
    for of_photo, expected in ((True, Intensity(told)), (False, asked)):
        shown = face("happy", read, fer(happy=1), declared=declared | {"of_photo": of_photo})
        forth = rows_of(numbered(rest, shown))[0]
        assert edit_of(forth) == Edit(expression=Expression.HAPPY, intensity=expected) and not forth["misread"]


def test_two_edits_of_one_photo_are_as_far_apart_as_they_read():
    declared = KNOWN | {"intensity": "plain", "of_photo": True}
    weak, strong = (face("sad", read, declared=declared, roll=roll) for read, roll in ((0.5, 0.0), (0.9, 30.0)))
    assert rows_of(numbered(weak, strong))[0]["intensity_gap"] == pytest.approx(0.4)


@pytest.mark.parametrize("sizes", [(900, 620), (620, 900)])
def test_a_pair_and_its_reverse_are_cut_alike_from_pictures_of_two_sizes(sizes, tmp_path):
    """The square must lie in both: cut for the larger it stands out of the smaller one."""
    points = np.random.default_rng(0).uniform(0, 300, (68, 2))
    places = [points + np.array([300, 300] if size == 900 else [150, 160]) for size in sizes]
    faces = [
        face(
            *shown,
            sharpness=99.0,
            width=size,
            height=size,
            landmarks=place.reshape(-1).tolist(),
            frame=n,
            row=n,
            phash=bytes([n * 255]) * 32,
        )
        for n, (size, place, shown) in enumerate(
            zip(sizes, places, [("neutral", 0.0, fer(neutral=1)), ("happy", 0.9, fer(happy=1))], strict=True)
        )
    ]
    forth, back = rows_of(numbered(*faces))
    assert forth["crop_source"].tolist() == back["crop_source"].tolist()
    assert forth["padding"] == back["padding"] == 0.0
    write_scores([numbered(*faces)], 2.1, uri := str(tmp_path / "pairs.parquet"))
    (judged,) = judge([uri], Rules(PairingConfig()), Known([{"embedding": np.ones(4) / 2}] * 2))
    assert [VERDICTS[code] for code in judged.codes] == ["accepted", "accepted"]


def test_the_text_of_a_pair_says_its_own_steps_however_far_apart_two_readings_are():
    steps = [
        {"yaw": yaw, "pitch": pitch, "roll": roll} for yaw in (-180, 0, 90) for pitch in (-90, 60) for roll in (-360, -240, 0, 240, 360)
    ]
    columns = {f"step_{axis}": pa.array([step[axis] for step in steps], pa.int16()) for axis in AXES}
    shown = {name: pa.array([value] * len(steps), pa.int8()) for name, value in (("edit_expression", 1), ("edit_intensity", 2))}
    numbers, texts = edit_texts(pa.table(columns | shown))
    expected = [", ".join(["happy strongly", *(f"{axis} {step[axis]:+d}" for axis in AXES if step[axis])]) for step in steps]
    assert [texts[int(number)] for number in numbers] == expected
