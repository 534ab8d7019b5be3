"""What an edit is (expression, intensity, head pose steps) and its two-way passage to instruction text.

Left and right are the image's, as in the released example. Seven expressions and pose steps of 30 degrees are the paper's scope.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from lato.instruction_templates import TEMPLATES
from lato.instruction_words import read_clause

POSE_STEP = 30
"""Pose changes come in multiples of this many degrees."""
MAX_TURN = 90
"""Degrees: the largest pose change, on each axis."""


class Expression(StrEnum):
    """The seven expressions."""

    NEUTRAL = "neutral"
    HAPPY = "happy"
    SAD = "sad"
    ANGRY = "angry"
    SURPRISED = "surprised"
    FEARFUL = "fearful"
    DISGUSTED = "disgusted"


class Intensity(StrEnum):
    """How strongly an expression is shown."""

    SLIGHTLY = "slightly"
    PLAIN = "plain"
    STRONGLY = "strongly"


class Edit(BaseModel):
    """A change of expression, of head pose, or of both. At least one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expression: Expression | None = None
    """The expression to show; None leaves it as it is."""
    intensity: Intensity = Intensity.PLAIN
    yaw: int = 0
    """Degrees to turn, a multiple of 30; positive towards image right."""
    pitch: int = 0
    """Degrees to raise the face, a multiple of 30; positive looks further up."""
    roll: int = 0
    """Degrees to tilt, a multiple of 30; positive leans towards image right (clockwise as seen)."""

    @model_validator(mode="after")
    def _check(self) -> Edit:
        for axis in ("yaw", "pitch", "roll"):
            value = getattr(self, axis)
            if value % POSE_STEP or abs(value) > MAX_TURN:
                raise ValueError(f"{axis}: expected a multiple of {POSE_STEP} within +-{MAX_TURN} degrees, given {value}")
        if self.expression is None and not (self.yaw or self.pitch or self.roll):
            raise ValueError("an edit changes the expression, the pose or both; this one changes nothing")
        if self.intensity is not Intensity.PLAIN and self.expression in (None, Expression.NEUTRAL):
            raise ValueError(f"intensity {self.intensity} needs an expression that has degrees, given {self.expression}")
        return self

    @property
    def kind(self) -> Literal["expression", "pose", "compound"]:
        """Which of the three families the edit belongs to."""
        posed = bool(self.yaw or self.pitch or self.roll)
        if self.expression is None:
            return "pose"
        return "compound" if posed else "expression"

    def __str__(self) -> str:
        """Short form for tables: `happy strongly, yaw +30`."""
        parts = []
        if self.expression is not None:
            parts.append(self.expression.value + ("" if self.intensity is Intensity.PLAIN else f" {self.intensity.value}"))
        parts += [f"{axis} {getattr(self, axis):+d}" for axis in ("yaw", "pitch", "roll") if getattr(self, axis)]
        return ", ".join(parts)

    def mirrored(self) -> Edit:
        """The same edit seen in a mirror: yaw and roll change sign."""
        return self.model_copy(update={"yaw": -self.yaw, "roll": -self.roll})


class Rewriting(BaseModel):
    """How a language model was asked to put an instruction in its own words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompt: str
    """All of it, the template's text too."""
    seed: int
    picture: bool = False
    """Whether it was shown the sample's source."""


@dataclass(frozen=True)
class Instruction:
    """Instruction text, the templates it was written with (`kind/side/number`, joined by `+`), and how it was rewritten, where it was."""

    text: str
    template: str
    rewriting: Rewriting | None = None


_NOUNS = {
    Expression.NEUTRAL: "calm",
    Expression.HAPPY: "happiness",
    Expression.SAD: "sadness",
    Expression.ANGRY: "anger",
    Expression.SURPRISED: "surprise",
    Expression.FEARFUL: "fear",
    Expression.DISGUSTED: "disgust",
}
_DEGREES = {  # intensity -> (before an adjective, before a noun)
    Intensity.SLIGHTLY: (("slightly ", "a little "), ("slight ", "mild ")),
    Intensity.PLAIN: (("",), ("",)),
    Intensity.STRONGLY: (("very ", "strongly "), ("strong ", "intense ")),
}
_DIRECTIONS = {"yaw": ("left", "right"), "pitch": ("down", "up"), "roll": ("left", "right")}
_CONNECTORS = (" and ", ", then ", ", and also ")


def instruction_for(edit: Edit, key: str, split: str) -> Instruction:
    """Writes an instruction for an edit, chosen by the sample's key.

    Args:
        edit: What to ask for.
        key: The sample's key; equal keys get equal text.
        split: `test` uses templates that no other split uses.

    Returns:
        Text that `parse_instruction` reads back to the same edit, with its provenance.
    """
    words = _Choice(key)
    clauses = []
    if edit.expression is not None:
        clauses.append(_expression_clause(edit.expression, edit.intensity, split, words))
    for axis in ("yaw", "pitch", "roll"):
        degrees = getattr(edit, axis)
        if degrees:
            clauses.append(_pose_clause(axis, degrees, split, words))
    if words.number(2):
        clauses.reverse()
    text = clauses[0].text
    for clause in clauses[1:]:
        text += _CONNECTORS[words.number(len(_CONNECTORS))] + clause.text
    return Instruction(text[0].upper() + text[1:], "+".join(clause.template for clause in clauses))


def parse_instruction(text: str) -> Edit | None:
    """Reads an instruction back to an edit.

    Args:
        text: English text, in the words of our templates or near them.

    Returns:
        The edit, or None where the text names none, names two values for one thing, or may ask for more than an edit says.
    """
    found: dict[str, str | int] = {}
    try:
        for clause in _split(text):
            for name, value in read_clause(clause).items():
                if name in found and (name in _DIRECTIONS or found[name] != value):  # twice 30 degrees are 60
                    return None
                found[name] = value
        return Edit.model_validate(found)
    except ValueError:  # a clause is unclear, or a number is no pose step: the text may be understood, but it is not an edit of ours
        return None


def plain_words(text: str) -> str:
    """A text without case and marks, to be held against others."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def uses_template(text: str, edit: Edit, side: Literal["train", "test"]) -> bool:
    """Whether a clause of an instruction for an edit is, but for case and marks, one that the templates of a side would give for it."""
    return not _clauses_of(edit, side).isdisjoint(plain_words(clause) for clause in _split(text))


def _split(text: str) -> list[str]:
    return re.split(r"\band also\b|\band\b|\bthen\b|\bwhile\b|[,;.]", text.lower())


@cache
def _clauses_of(edit: Edit, side: str) -> frozenset[str]:
    """All clauses that the templates of a side can give for an edit, in plain words."""
    found = []
    if edit.expression is not None:
        adverbs, adjectives = _DEGREES[edit.intensity]
        found += [
            _say_expression(template, edit.expression, adverb, adjective)
            for template in TEMPLATES["expression"][side]
            for adverb in adverbs
            for adjective in adjectives
        ]
    for axis in _DIRECTIONS:
        if getattr(edit, axis):
            found += [_say_pose(template, axis, getattr(edit, axis)) for template in TEMPLATES[axis][side]]
    return frozenset(map(plain_words, found))


def mirror_instruction(text: str) -> str:
    """The instruction for the mirrored picture: left and right change places, with what they begin (`leftwards`). Nothing else does."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(1)
        other = "right" if word.lower() == "left" else "left"
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return re.sub(r"\b(left|right)(?=\b|wards?\b|ward-|most\b)", swap, text, flags=re.IGNORECASE)


class _Choice:
    """Draws small numbers from a key, one after another."""

    def __init__(self, key: str) -> None:
        self._state = hashlib.sha256(key.encode()).digest()

    def number(self, below: int) -> int:
        self._state = hashlib.sha256(self._state).digest()
        return int.from_bytes(self._state[:8], "big") % below


def _pick_template(kind: str, split: str, words: _Choice) -> Instruction:
    side = "test" if split == "test" else "train"
    templates = TEMPLATES[kind][side]
    number = words.number(len(templates))
    return Instruction(templates[number], f"{kind}/{side}/{number}")


def _expression_clause(expression: Expression, intensity: Intensity, split: str, words: _Choice) -> Instruction:
    template = _pick_template("expression", split, words)
    adverbs, adjectives = _DEGREES[intensity]
    adverb, adjective = adverbs[words.number(len(adverbs))], adjectives[words.number(len(adjectives))]
    return Instruction(_say_expression(template.text, expression, adverb, adjective), template.template)


def _say_expression(template: str, expression: Expression, adverb: str, adjective: str) -> str:
    text = template.format(adjective=adverb + expression.value, noun=adjective + _NOUNS[expression])
    return re.sub(r"\ba (?=[aeiou])", "an ", text.replace("a a little ", "a slightly "))


def _pose_clause(axis: str, degrees: int, split: str, words: _Choice) -> Instruction:
    template = _pick_template(axis, split, words)
    return Instruction(_say_pose(template.text, axis, degrees), template.template)


def _say_pose(template: str, axis: str, degrees: int) -> str:
    negative, positive = _DIRECTIONS[axis]
    return template.format(degrees=abs(degrees), direction=positive if degrees > 0 else negative)
