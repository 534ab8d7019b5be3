"""What the words of an instruction say: each clause is read whole, or not at all, so that nothing is asked beside the edit that is read.

A clause that no part of an edit comes of, or that could ask for more than its edit says, is not understood. That costs a good text now and then; a text that
asks for another edit than its sample shows would be learned.
"""

from __future__ import annotations

import re

from lato.instruction_templates import TEMPLATES


class UnclearError(ValueError):
    """A clause asks for no edit of ours, or for more than one can say."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EXPRESSION_WORDS = {
    word: expression
    for expression, stems in {
        "neutral": ("neutral", "calm", "expressionless", "relaxed"),
        "happy": ("happy", "happiness", "smile", "smiling", "joyful", "joy", "cheerful"),
        "sad": ("sad", "sadness", "unhappy", "sorrow"),
        "angry": ("angry", "anger", "furious"),
        "surprised": ("surprised", "surprise", "astonished"),
        "fearful": ("fearful", "fear", "scared", "afraid", "frightened"),
        "disgusted": ("disgusted", "disgust"),
    }.items()
    for word in stems
}
_INTENSITY_WORDS = {
    **dict.fromkeys(("slightly", "slight", "little", "mild", "subtle", "bit"), "slightly"),
    **dict.fromkeys(("very", "strongly", "strong", "intense", "extremely"), "strongly"),
}
_WAYS = {
    **{way: way for way in ("left", "right", "up", "down")},
    **dict.fromkeys(("upward", "upwards", "lift", "raise"), "up"),
    **dict.fromkeys(("downward", "downwards", "lower", "drop"), "down"),
}
_ROLL_WORDS = _words("tilt tilted lean leaning incline inclined cock cant tip bend ear shoulder")
_ROTATE_WORDS = _words("rotate rotates rotated rotating swivel pivot swing")
_TURN_WORDS = _ROTATE_WORDS | _words("turn turns turned turning")
_POSE_WORDS = (
    _ROLL_WORDS
    | _ROTATE_WORDS
    | _WAYS.keys()
    | _words("nod direct point points pointing aim facing head chin gaze pose pitch")
    | _words("direction position angle side around about further more additional extra")
)
"""In a clause without degrees: a movement that is not said how far, or an amount that is none of ours."""
_MOVES = re.compile(r"\b(?:turn|move|shift)\w*")
_CHANGES = re.compile(r"\b(?:turn|move|shift)\w*(?: (?!to\b)\S+){0,3} (?:expression|mood|emotion|into)\b")
"""`turn the expression to`, `turn the face into`: no movement."""
_FELT = _words("emotion emotional mood feel feels feeling")
_FILLERS = _words("please kindly also so now")
_HARMLESS = _words(
    "a an the this that these their his her its my your you i we they it he she him them me is are be been being was as at by of in on to into onto for "
    "with from so until just now please kindly would like should can could will may and also then while both same time such way "
    "person person's people man man's woman woman's subject subject's individual individual's face faces face's facial head head's expression expressions "
    "photo image picture portrait pose gaze chin look looks looking looked appear appears appearing appearance seem seems seeming feel feels feeling "
    "show shows showing shown display displays displaying express expresses expressing convey conveys portray wear wears wearing reflect reflects "
    "make makes making give gives change changes changing alter adjust modify edit transform turn turns turned turning rotate rotates rotated rotating "
    "move moves shift shifted swivel pivot swing direct point points pointing aim face facing lift raise lower drop tilt tilted lean incline nod bend "
    "further more additional extra approximately about around exactly toward towards side direction position angle left right up down upward upwards "
    "downward downwards degree degrees emotion emotional mood smile smiling let have has get bring set put add become becomes"
)


def read_clause(clause: str) -> dict[str, str | int]:
    """The part of an edit that a clause of an instruction, in lower case, asks for; empty where it only says please.

    Raises:
        UnclearError: It asks for no part, or may ask for more.
    """
    words = re.findall(r"[a-z]+", clause)
    if not re.search(r"\d", clause) and _FILLERS.issuperset(words):
        return {}
    expressions = {_EXPRESSION_WORDS[word] for word in words if word in _EXPRESSION_WORDS}
    intensities = {_INTENSITY_WORDS[word] for word in words if word in _INTENSITY_WORDS}
    posed = _read_pose(clause, words)
    if len(expressions) > 1 or len(intensities) > 1 or not (expressions or posed):
        raise UnclearError(clause)
    if not expressions:
        if intensities or not _FELT.isdisjoint(words):  # `slightly to the right`, `with an emotional look`
            raise UnclearError(clause)
        return posed
    if posed and any(
        word in _INTENSITY_WORDS and after not in _EXPRESSION_WORDS for word, after in zip(words, [*words[1:], ""], strict=True)
    ):
        raise UnclearError(clause)  # of the turn, or of the expression
    return posed | {"expression": expressions.pop(), "intensity": intensities.pop() if intensities else "plain"}


def _read_pose(clause: str, words: list[str]) -> dict[str, str | int]:
    """Empty where the clause is about an expression alone."""
    numbers = re.findall(r"(?:[-\u2010-\u2015\u2212]\s*)?\d+", clause)
    if not numbers:
        if not _POSE_WORDS.isdisjoint(words) or len(_MOVES.findall(clause)) > len(_CHANGES.findall(clause)):
            raise UnclearError(clause)
        return {}
    degrees = re.search(r"(\d+)\s*(?:-\s*)?(?:degrees?\b|°)", clause)
    tilted = not _ROLL_WORDS.isdisjoint(words)
    lowered = {"drop", "lower"} if "shoulder" in words else set()  # towards it: a tilt
    ways = {_WAYS[word] for word in words if word in _WAYS and word not in lowered}
    if len(numbers) > 1 or not numbers[0].isdecimal() or not degrees or len(ways) != 1 or "from" in words:
        raise UnclearError(clause)
    way = ways.pop()
    upright = way in ("up", "down")
    if (tilted and not _TURN_WORDS.isdisjoint(words)) or (not upright and not {"nod", "pitch"}.isdisjoint(words)):
        raise UnclearError(clause)  # about two axes
    axis = "pitch" if upright else "roll" if tilted else "yaw"
    return {axis: int(degrees.group(1)) * (1 if way in ("up", "right") else -1)}


def unread_words(text: str) -> list[str]:
    """The words of an instruction that neither an edit nor our ways of asking for one account for: something else is asked, or it is negated."""
    return [word for word in re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", text.lower()) if word.replace("\u2019", "'") not in _KNOWN]


def _known_words() -> set[str]:
    templates = [
        text.format(adjective="", noun="", degrees="", direction="")
        for sides in TEMPLATES.values()
        for side in sides.values()
        for text in side
    ]
    return {*(word for text in templates for word in text.split()), *_EXPRESSION_WORDS, *_INTENSITY_WORDS, *_HARMLESS}


_KNOWN = _known_words()
