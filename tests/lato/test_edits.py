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


def test_an_edit_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match="changes nothing"):
        Edit()
    with pytest.raises(ValueError, match="multiple of 30"):
        Edit(yaw=20)
