"""The chain of thought says what the landmarks do, in four steps; mirrored instructions mean mirrored edits; the committed tokenizer is the trained one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lato.edits import Edit, Expression, Intensity, instruction_for, mirror_instruction, parse_instruction
from lato.landmarks import mirror_landmarks
from lato.reasoning import measure_movement, write_reasoning
from lato.tiny_tokenizer import FILE, MAX_TOKENS, coordinate_token, train_tokenizer


@pytest.fixture(scope="module")
def points():
    """`points(expression, yaw=...)` -> (68, 2) landmarks of one synthetic person."""
    from data_pipeline.synthetic.anny_people import landmark_vertices
    from data_pipeline.synthetic.head_mesh import load_head
    from data_pipeline.synthetic.person import Pose, actions_for, draw_person, pose_vertices
    from data_pipeline.synthetic.rasterizer import project

    mesh = load_head()
    person = draw_person(np.random.default_rng(0), mesh)

    def make(expression="neutral", **pose):
        vertices = pose_vertices(mesh, person, actions_for(Expression(expression), Intensity.PLAIN), Pose(**pose))
        return project(vertices[landmark_vertices()], 512)

    return make


def test_rigid_and_non_rigid_movement_are_told_apart(points):
    rest = points()
    tilted = measure_movement(rest, points(roll=20))
    assert tilted.turn == pytest.approx(20, abs=2)
    assert max(abs(value) for value in (tilted.brows, tilted.corners, tilted.lids, tilted.lips)) < 6
    assert measure_movement(rest, points(yaw=30)).shift[0] > 40
    surprised = measure_movement(rest, points("surprised"))
    assert surprised.lips > 10 and surprised.lids > 1 and surprised.chin > 3 and abs(surprised.turn) < 2
    smile = measure_movement(rest, points("happy"))
    assert smile.corners < -5 and smile.width > 5


@pytest.mark.parametrize("syntax", ["json", "compact"])
def test_four_steps_say_state_movements_kinematics_and_coordinates(points, syntax):
    edit = Edit(expression=Expression.HAPPY, intensity=Intensity.STRONGLY, yaw=-30)
    text = write_reasoning(Expression.SAD, (28.0, 0.0, 0.0), edit, points("sad", yaw=28.0), points("happy"), syntax)
    places = [text.index(f"{step}{'.' if syntax == 'json' else ' '}") for step in (1, 2, 3, 4)]
    assert places == sorted(places) and places[0] == 0
    steps = [text[start:end] for start, end in zip(places, [*places[1:], None])]
    assert "sad" in steps[0] and ("right 28" in steps[0] or "yaw 30" in steps[0])
    assert "sad fades" in steps[1] and "strongly happy" in steps[1] and "head turns left 30" in steps[1]
    assert "rigid" in steps[2]
    assert all(part in steps[3] for part in ("jaw", "brows", "nose", "eyes", "mouth"))
    if syntax == "compact":
        assert len(text) < 400 and coordinate_token(256) in text


def test_a_face_that_only_shifts_turns_by_zero_without_the_sign_of_its_last_digits(points):
    """Which of +1e-15 and -1e-15 degrees is measured depends on the processor, and what is trained on these texts would."""
    rest = points()
    for shift in np.random.default_rng(0).normal(0, 20, (20, 2)):
        text = write_reasoning(Expression.NEUTRAL, (0.0, 0.0, 0.0), Edit(yaw=30), rest, rest + shift)
        assert "turns +0 degrees" in text


@settings(max_examples=100, deadline=None)
@given(
    expression=st.sampled_from([None, *Expression]), yaw=st.sampled_from([-30, 0, 60]), roll=st.sampled_from([-30, 0, 30]),
    key=st.text(min_size=1, max_size=4), split=st.sampled_from(["train", "test"]),
)  # fmt: skip
def test_a_mirrored_instruction_means_the_mirrored_edit(expression, yaw, roll, key, split):
    if expression is None and not yaw and not roll:
        return
    edit = Edit(expression=expression, yaw=yaw, roll=roll)
    text = instruction_for(edit, key, split).text
    assert parse_instruction(mirror_instruction(text)) == edit.mirrored()
    assert mirror_instruction(mirror_instruction(text)) == text


def test_a_mirrored_face_moves_the_other_way(points):
    start, end = points(), points("happy", yaw=30, roll=10)
    seen, mirrored = measure_movement(start, end), measure_movement(mirror_landmarks(start), mirror_landmarks(end))
    assert mirrored.shift == pytest.approx(seen.shift * [-1, 1], abs=1e-3)
    assert mirrored.turn == pytest.approx(-seen.turn, abs=0.1)
    assert mirrored.lips == pytest.approx(seen.lips, abs=1e-3)


def test_the_committed_tokenizer_is_what_its_command_trains():
    trained = train_tokenizer()
    assert trained.to_str() == FILE.read_text(), "templates changed: python -m lato.tiny_tokenizer"
    assert trained.get_vocab_size() <= MAX_TOKENS
    for text in ("Turn the head 30 degrees to the left", "<think>é 你</think>", coordinate_token(7)):
        ids = trained.encode(text).ids
        assert trained.decode(ids, skip_special_tokens=False) == text
    assert len(trained.encode(coordinate_token(7)).ids) == 1
