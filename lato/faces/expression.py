"""Which of seven expressions a face shows, and how strongly, from its blendshapes minus the same person's neutral ones.

A class is a direction in blendshape space (`expression_directions.json`, with its source). The reading is the class whose direction lies nearest
(cosine) to the face's change from neutral; the change's length along it, in units of a strong expression, is the intensity.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lato.edits import Expression, Intensity
from lato.faces.mesh import BLENDSHAPE_NAMES

_FILE = Path(__file__).with_name("expression_directions.json")
EXPRESSIONS = tuple(Expression)
_IGNORED = ("_neutral", "eyeLook", "eyeBlink", "jawLeft", "jawRight", "mouthLeft", "mouthRight")
"""Gaze, blinks and sideways jaw say nothing about which expression it is."""
_AS_CALM = 1.25
"""A frame so many times as active as a track's calmest may still be at rest; a fifth of the track always may."""


@dataclass(frozen=True)
class ExpressionReading:
    """The expression of one face."""

    label: Expression
    intensity: float
    """Length along the label's direction; 1 is the mean strong expression, 0 for neutral."""
    scores: npt.NDArray[np.float32]
    """(7,) in the order of `EXPRESSIONS`: intensity along each class's direction; neutral's is what is left to its cut-off."""

    @property
    def grade(self) -> Intensity:
        """The intensity in words."""
        cuts = _load().cuts
        if self.label is Expression.NEUTRAL or cuts[0] <= self.intensity < cuts[1]:
            return Intensity.PLAIN
        return Intensity.SLIGHTLY if self.intensity < cuts[0] else Intensity.STRONGLY


@dataclass(frozen=True)
class _Directions:
    weights: npt.NDArray[np.float32]
    """(6, 52) unit vectors, `EXPRESSIONS` without neutral."""
    lengths: npt.NDArray[np.float32]
    """(6,) mean length of a strong expression along its own direction."""
    neutral_below: float
    cuts: tuple[float, float]
    verifiable: frozenset[Expression]


def classify(blendshapes: npt.NDArray[np.floating], neutral: npt.NDArray[np.floating]) -> ExpressionReading:
    """Reads an expression.

    Args:
        blendshapes: `(52,)` of the face.
        neutral: `(52,)` of the same person at rest (`estimate_neutral`).
    """
    directions = _load()
    change = _features(np.asarray(blendshapes, np.float32) - np.asarray(neutral, np.float32))
    along = directions.weights @ change
    cosine = along / max(float(np.linalg.norm(change)), 1e-6)
    best = int(np.argmax(cosine))
    intensities = np.clip(along / directions.lengths, 0, None)
    is_neutral = intensities[best] < directions.neutral_below
    scores = np.concatenate([[max(0.0, 1 - intensities.max() / directions.neutral_below)], intensities]).astype(np.float32)
    if is_neutral:
        return ExpressionReading(Expression.NEUTRAL, 0.0, scores)
    return ExpressionReading(EXPRESSIONS[1 + best], float(intensities[best]), scores)


def progress_along(expression: Expression, change: npt.NDArray[np.floating]) -> float:
    """How far a change of blendshapes `(52,)` goes along an expression's direction; 1 is a strong one.

    Neutral has no direction: rest is a place from which every expression leads away. Of it: minus how far the change goes along any direction, either way.
    """
    directions = _load()
    features = _features(np.asarray(change, np.float32))
    along = (directions.weights @ features) / directions.lengths
    if expression is Expression.NEUTRAL:
        return -float(np.abs(along).max())
    return float(along[EXPRESSIONS.index(expression) - 1])


def estimate_neutral(blendshapes: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The rest state of a track `(T, 52)`: the median of its third of frames that are least active, without those that are much more so than the calmest.

    A median, because in the moment between rest and a smile a face is as little active as at rest and a mean of both is neither.
    """
    blendshapes = np.asarray(blendshapes, np.float32)
    active = np.abs(_features(blendshapes)).sum(axis=1)
    order = np.argsort(active, kind="stable")
    third = order[: max(1, len(order) // 3)]
    as_calm = int((active[third] <= _AS_CALM * active[third[0]]).sum())
    return np.asarray(np.median(blendshapes[third[: max(as_calm, len(order) // 5)]], axis=0), np.float32)


def activity(blendshapes: npt.NDArray[np.floating]) -> float:
    """How much of a face is at work: the sum of all blendshapes that say something about expression."""
    return float(np.abs(_features(np.asarray(blendshapes, np.float32))).sum())


def is_verifiable(expression: Expression) -> bool:
    """Whether the embedded models read this class with a recall of at least 0.7 (measured, see the data file)."""
    return expression is Expression.NEUTRAL or expression in _load().verifiable


def _features(change: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return change * _mask()


@lru_cache(maxsize=1)
def _mask() -> npt.NDArray[np.float32]:
    return np.array([not name.startswith(_IGNORED) for name in BLENDSHAPE_NAMES], np.float32)


@lru_cache(maxsize=1)
def _load() -> _Directions:
    data = json.loads(_FILE.read_text())
    classes = [data["classes"][expression.value] for expression in EXPRESSIONS[1:]]
    weights = np.array([[entry["direction"].get(name, 0.0) for name in BLENDSHAPE_NAMES] for entry in classes], np.float32)
    verifiable = frozenset(e for e, entry in zip(EXPRESSIONS[1:], classes, strict=True) if entry["recall"] >= 0.7)
    lengths = np.array([entry["strong_length"] for entry in classes], np.float32)
    return _Directions(weights, lengths, data["neutral_below"], (data["cuts"][0], data["cuts"][1]), verifiable)
