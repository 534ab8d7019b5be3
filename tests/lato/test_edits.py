"""Every instruction we can write is read back to the edit it was written for."""

import itertools

import pytest

from lato.edits import Edit, Expression, Intensity, instruction_for, parse_instruction
from lato.instruction_templates import TEMPLATES


def every_edit():
    expressions = [(None, Intensity.PLAIN), (Expression.NEUTRAL, Intensity.PLAIN)]
    expressions += [(e, i) for e in Expression if e is not Expression.NEUTRAL for i in Intensity]
    for (expression, intensity), yaw, pitch, roll in itertools.product(expressions, (-60, 0, 30), (-30, 0, 30), (-30, 0, 30)):
        if expression or yaw or pitch or roll:
            yield Edit(expression=expression, intensity=intensity, yaw=yaw, pitch=pitch, roll=roll)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_instruction_reads_back_to_its_edit(split):
    for number, edit in enumerate(every_edit()):
        for draw in range(4):
            instruction = instruction_for(edit, f"sample_{number}_{draw}", split)
            assert parse_instruction(instruction.text) == edit, instruction.text


def test_every_template_reads_back():
    for kind, sides in TEMPLATES.items():
        for template in sides["train"] + sides["test"]:
            if kind == "expression":
                text = template.format(adjective="very sad", noun="strong sadness")
                assert parse_instruction(text) == Edit(expression=Expression.SAD, intensity=Intensity.STRONGLY), text
            else:
                text = template.format(degrees=30, direction={"pitch": "down"}.get(kind, "left"))
                assert parse_instruction(text) == Edit(**{kind: -30}), text


def test_test_templates_are_their_own_and_enough():
    for kind, sides in TEMPLATES.items():
        assert not set(sides["train"]) & set(sides["test"]), kind
        assert len(sides["train"]) + len(sides["test"]) >= 30, kind


def test_left_is_image_left():
    assert parse_instruction("turn his/her head 30 degrees to the left") == Edit(yaw=-30)
    assert parse_instruction("Make him happy strongly") == Edit(expression="happy", intensity="strongly")


@pytest.mark.parametrize("text", ["", "make it nice", "turn the head 45 degrees to the left", "look happy and look sad"])
def test_what_is_not_an_edit_is_none(text):
    assert parse_instruction(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "turn the head 30 degrees to the right and tilt it to the left",  # a movement without degrees
        "turn her head 30 degrees right and lower her chin",
        "turn the head 30 degrees to the right, looking up",
        "tilt the head 30 degrees to the left and turn it slightly to the right",
        "make him smile and turn his head to the left",
        "turn with a smile",
        "turn to the side with a smile",
        "make her smile, nodding",
        "turn the face 30 degrees to the right with a sad smile",  # two expressions
        "make the man look very slightly happy",  # two intensities
        "make the man look very, very slightly happy",
        "give him a slight smile and a strong look",
        "make him happy and very happy",
        "make the face happy, strongly",
        "make the man look more happy",
        "turn the head very strongly 30 degrees to the right with a smile",  # whose intensity?
        "turn the head 30 degrees left so that the left ear is lower",  # two axes
        "nod the head 30 degrees to the left",
        "turn the head 30 degrees towards the left shoulder",
        "turn the head up 30 degrees to the left",
        "lower the chin 30 degrees up",
        "turn the head until it is 30 degrees right of the 60 degrees left position",  # two numbers
        "turn the head 30-60 degrees to the left",
        "turn the head -30 degrees to the left",
        "turn the head 30 degrees left and turn the head 30 degrees left",
        "turn the head 30 degrees from the left",
        "turn the head 30 degrees to the right with a change of mood",
    ],
)
def test_what_may_ask_for_more_is_none(text):
    assert parse_instruction(text) is None


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("Please, adjust the man's face so that he appears very happy", Edit(expression="happy", intensity="strongly")),
        ("Turn the man's face into a sad one", Edit(expression="sad")),
        ("Shift the mood to calm", Edit(expression="neutral")),
        ("Lift her chin by 30 degrees", Edit(pitch=30)),
        ("Drop the head 30 degrees towards the left shoulder", Edit(roll=-30)),
        ("Bend his head 30\u00b0 to the right", Edit(roll=30)),
        ("While smiling, the woman should look 60 degrees further to the left", Edit(expression="happy", yaw=-60)),
        ("Rotate the face 30 degrees right with a slight smile", Edit(expression="happy", intensity="slightly", yaw=30)),
    ],
)
def test_other_words_for_an_edit_are_read(text, edit):
    assert parse_instruction(text) == edit


def test_an_edit_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match="changes nothing"):
        Edit()
    with pytest.raises(ValueError, match="multiple of 30"):
        Edit(yaw=20)
