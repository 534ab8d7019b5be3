"""The predictor's chain of thought, written by rule from measured quantities, in the paper's four steps.

1 state (pose, expression, how the landmarks lie), 2 the instruction as anatomical movements, 3 kinematics (what moves rigidly, what changes its shape),
4 coordinates, by part. In words for pretrained VLMs; for the compact syntax in few words, with movements in the answer's own tokens. (In words, a model
from scratch got their size right and their direction wrong: it had not learned yet that "left 72" starts an answer of negative numbers.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lato.edits import Edit, Expression, Intensity
from lato.landmarks import GROUPS, Landmarks, interocular_distance
from lato.tiny_tokenizer import NUM_COORDINATES, coordinate_token

_RIGID = [36, 39, 42, 45, 31, 33, 35]
"""Eye corners and the base of the nose: what a face hardly moves by itself, and nearly one plane, so that an affine map follows a turn in depth."""
_PARTS = {
    "jaw": [*GROUPS["jaw"]],
    "brows": [*GROUPS["right_brow"], *GROUPS["left_brow"]],
    "nose": [*GROUPS["nose_bridge"], *GROUPS["nose_tip"]],
    "eyes": [*GROUPS["right_eye"], *GROUPS["left_eye"]],
    "mouth": [*GROUPS["outer_lip"], *GROUPS["inner_lip"]],
}
_LIDS = ([37, 38, 43, 44], [41, 40, 47, 46])
_ACTIONS = {
    Expression.NEUTRAL: "brows, lids and lips go to rest",
    Expression.HAPPY: "lip corners go up and out, cheeks rise, lids narrow",
    Expression.SAD: "inner brows rise, lip corners drop",
    Expression.ANGRY: "brows drop and draw together, lids tense, lips press",
    Expression.SURPRISED: "brows rise, lids open wide, jaw drops",
    Expression.FEARFUL: "brows rise and draw together, lids open wide, lips stretch",
    Expression.DISGUSTED: "nose wrinkles, upper lip rises, brows drop",
}
_AXES = {  # (negative, positive) -> what the neck does; `short` for the compact syntax
    "yaw": ("head turns left {0} degrees about the vertical axis of the neck", "head turns right {0} degrees about the vertical axis of the neck"),
    "pitch": ("chin drops {0} degrees as the neck bends forward", "chin lifts {0} degrees as the neck bends back"),
    "roll": ("head leans {0} degrees to the left shoulder", "head leans {0} degrees to the right shoulder"),
}  # fmt: skip


@dataclass(frozen=True)
class Movement:
    """What lies between two sets of landmarks, in canvas px and degrees; x to the right, y down."""

    shift: npt.NDArray[np.float64]
    """(2,) of the middle of the rigid landmarks."""
    turn: float
    """Degrees in the picture's plane, clockwise as seen."""
    scale: float
    """Of lengths, both axes together: below 1 where the face turns away."""
    brows: float
    """Up or down beyond the rigid movement; the same for the next two."""
    corners: float
    chin: float
    lids: float
    """How much further apart upper and lower lids are; the next two likewise of lips and of the mouth's corners."""
    lips: float
    width: float
    parts: dict[str, npt.NDArray[np.float64]]
    """(2,) mean movement of jaw, brows, nose, eyes, mouth in all."""


def measure_movement(source: Landmarks, target: Landmarks) -> Movement:
    """Splits the way from source to target landmarks (68, 2) into an affine map of the rigid ones and what is beyond it."""
    start, end = np.asarray(source, np.float64), np.asarray(target, np.float64)
    columns = np.concatenate([start, np.ones((len(start), 1))], axis=1)
    affine = np.linalg.lstsq(columns[_RIGID], end[_RIGID], rcond=None)[0]
    placed = columns @ affine
    before, after = (points[[42, 45]].mean(0) - points[[36, 39]].mean(0) for points in (start, placed))
    turn = np.degrees(np.arctan2(after[1], after[0]) - np.arctan2(before[1], before[0]))
    beyond = end - placed

    def gap(points: npt.NDArray[np.float64], upper: list[int], lower: list[int]) -> float:
        return float(np.linalg.norm(points[upper] - points[lower], axis=1).mean())

    return Movement(
        shift=(placed - start)[_RIGID].mean(0),
        turn=float((turn + 180) % 360 - 180),
        scale=float(np.sqrt(abs(np.linalg.det(affine[:2])))),
        brows=float(beyond[_PARTS["brows"], 1].mean()),
        corners=float(beyond[[48, 54], 1].mean()),
        chin=float(beyond[[7, 8, 9], 1].mean()),
        lids=gap(end, *_LIDS) - gap(placed, *_LIDS),
        lips=gap(end, [61, 62, 63], [67, 66, 65]) - gap(placed, [61, 62, 63], [67, 66, 65]),
        width=gap(end, [48], [54]) - gap(placed, [48], [54]),
        parts={name: (end - start)[rows].mean(0) for name, rows in _PARTS.items()},
    )


def write_reasoning(
    expression: Expression,
    pose: tuple[float, float, float],
    edit: Edit,
    source: Landmarks,
    target: Landmarks,
    syntax: Literal["json", "compact"] = "json",
) -> str:
    """The four steps.

    Args:
        expression: The source's.
        pose: Its yaw, pitch and roll in degrees.
        edit: What is asked for.
        source: (68, 2) canvas px.
        target: (68, 2) canvas px.
        syntax: Of the answer that follows.
    """
    movement = measure_movement(source, target)
    if syntax == "compact":
        return _write_short(expression, pose, edit, movement)
    eyes = np.asarray(source)[_PARTS["eyes"]].mean(0)
    nose = float(np.asarray(source)[30, 0] - eyes[0])
    yaw, pitch, roll = pose
    return (
        f"1. State: the head is {_way(yaw, 'turned right', 'turned left', ' degrees', 'not turned')}, "
        f"{_way(pitch, 'raised', 'lowered', ' degrees', 'level')}, {_way(roll, 'leaning right', 'leaning left', ' degrees', 'upright')}; "
        f"the expression is {expression.value}. The landmarks agree: eyes {float(interocular_distance(source)):.0f} px apart around "
        f"({eyes[0]:.0f}, {eyes[1]:.0f}), nose tip {_way(nose, 'right', 'left', ' px', 'straight below')}.\n"
        f"2. Movements: {'; '.join(_movements(expression, edit))}.\n"
        f"3. Kinematics: rigid, the skull moves {_both(movement.shift)}, turns {round(movement.turn):+d} degrees in the picture and scales by "
        f"{movement.scale:.2f}. Non-rigid, beyond that: brows {_way(movement.brows, 'down', 'up')}, lids {_way(movement.lids, 'open', 'close')}, "
        f"lip corners {_way(movement.corners, 'down', 'up')}, mouth {_way(movement.width, 'wider', 'narrower')}, "
        f"lips {_way(movement.lips, 'part', 'close')}, chin {_way(movement.chin, 'down', 'up')}.\n"
        f"4. Coordinates: {', '.join(f'{part} {_both(move)}' for part, move in movement.parts.items())}."
    )


def _write_short(expression: Expression, pose: tuple[float, float, float], edit: Edit, movement: Movement) -> str:
    yaw, pitch, roll = (round(angle / 10) * 10 for angle in pose)
    shape = (
        ("brows", movement.brows),
        ("lids", movement.lids),
        ("corners", movement.corners),
        ("lips", movement.lips),
        ("chin", movement.chin),
    )
    return (
        f"1 {expression.value}, yaw {yaw} pitch {pitch} roll {roll}. "
        f"2 {'; '.join(_movements(expression, edit))}. "
        f"3 rigid{_tokens(movement.shift, 4)} turn{_tokens([movement.turn], 4)} shape {' '.join(name + _tokens([size], 2) for name, size in shape)}. "
        f"4 {' '.join(part + _tokens(move, 4) for part, move in movement.parts.items())}"
    )


def _movements(expression: Expression, edit: Edit) -> list[str]:
    """The instruction as movements: what is let go of, what each part does, how the neck turns."""
    said = []
    if edit.expression is not None:
        degree = "" if edit.intensity is Intensity.PLAIN else f"{edit.intensity.value} "
        if expression not in (Expression.NEUTRAL, edit.expression, None) and edit.expression is not Expression.NEUTRAL:
            said.append(f"{expression.value} fades")
        said.append(f"{degree}{edit.expression.value}, so {_ACTIONS[edit.expression]}")
    for axis, (negative, positive) in _AXES.items():
        degrees = getattr(edit, axis)
        if degrees:
            said.append((positive if degrees > 0 else negative).format(abs(degrees)))
    return said


def _way(value: float, positive: str, negative: str, unit: str = " px", none: str = "still") -> str:
    size = round(abs(float(value)))
    return f"{positive if value > 0 else negative} {size}{unit}" if size else none


def _both(move: npt.NDArray[np.float64]) -> str:
    return f"{_way(move[0], 'right', 'left')} and {_way(move[1], 'down', 'up')}"


def _tokens(values: npt.NDArray[np.float64] | list[float], step: int) -> str:
    """Signed numbers as the tokens of displacements, in steps: a plan need not be exact."""
    half = NUM_COORDINATES // 2
    return "".join(coordinate_token(int(np.clip(round(float(value) / step) * step + half, 0, NUM_COORDINATES - 1))) for value in values)
