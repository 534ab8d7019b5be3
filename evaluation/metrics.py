"""What is measured of an edit. A face that is not found is a state of its own: counted, never a zero in a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from lato.edits import Edit, Expression
from lato.faces import FaceReading
from lato.faces.expression import progress_along
from lato.faces.identity import similarity
from lato.landmarks import Landmarks, interocular_distance

_LEAST_ASKED = 0.1
"""Of a strong expression: a true target that changes by less says nothing about what is made."""


@dataclass(frozen=True)
class Scores:
    """Of one edited picture."""

    state: str
    """`ok`, `no_face`, or the editor's own state when it made no picture."""
    identity: float | None = None
    """Cosine of source and edited face."""
    rectified_identity: float | None = None
    """`rectified_identity`; None where the true target hardly changes either."""
    landmark_error: float | None = None
    """Mean L1 a coordinate in px of the 512 canvas, between landmarks found on the picture and those it was to have."""
    landmark_nme: float | None = None
    """Mean Euclidean distance over the target's distance between outer eye corners."""


def rectified_identity(identity: float, made: Sequence[float]) -> float:
    """max(0, s - mean of (1 - made)^2): the paper's rectified identity, where the edit has one part.

    The mean is of the squares, one a part: else twice of one part would make up for none of another.

    Args:
        identity: s, cosine of the identity vectors.
        made: Change that was made as a share of what was asked, one a part of the edit; 1 is all of it, negative the other way.
    """
    return max(0.0, identity - float(np.mean([(1.0 - share) ** 2 for share in made])))


def shares_made(edit: Edit, before: FaceReading, after: FaceReading, wanted: FaceReading) -> list[float] | None:
    """How much of each part of an edit was made, as a share of what was asked; None where the true target hardly changes either.

    For a pose: degrees about each instructed axis. For an expression: length along its direction in blendshape space (1 is a strong one), instructed by the
    true target's own. For neutral, which is a place and no direction: how much of the source's way to the true target no longer lies before it, so that who
    shows another expression instead has not got there.
    """
    turns = [axis for axis in ("yaw", "pitch", "roll") if getattr(edit, axis)]
    made = [(getattr(after.mesh, axis) - getattr(before.mesh, axis)) / getattr(edit, axis) for axis in turns]
    if edit.expression is None:
        return made
    source, edited, target = (face.mesh.blendshapes for face in (before, after, wanted))
    asked, done = (progress_along(edit.expression, there - source) for there in (target, edited))
    if edit.expression is Expression.NEUTRAL:
        asked = -asked
        done = asked + progress_along(edit.expression, edited - target)
    return None if asked < _LEAST_ASKED else [*made, float(done / asked)]


def score(
    edit: Edit, before: FaceReading, after: FaceReading | None, wanted: FaceReading, target: Landmarks, canvas_per_pixel: float
) -> Scores:
    """Scores an edited picture.

    Args:
        edit: What was asked.
        before: The source's face.
        after: The edited picture's face, or None where none was found.
        wanted: The true target's face.
        target: (68, 2) canvas px that the picture was to have.
        canvas_per_pixel: 512 over the edited picture's side.
    """
    if after is None:
        return Scores("no_face")
    found = after.mesh.landmarks68 * canvas_per_pixel
    identity = similarity(before.embedding, after.embedding)
    made = shares_made(edit, before, after, wanted)
    return Scores(
        state="ok",
        identity=identity,
        rectified_identity=None if made is None else rectified_identity(identity, made),
        landmark_error=float(np.abs(found - target).mean()),
        landmark_nme=float(np.linalg.norm(found - target, axis=-1).mean() / interocular_distance(target)),
    )


@dataclass(frozen=True)
class Mean:
    """A mean with its sample size and 95 % interval. `value` is None without samples, `low` and `high` where samples are of fewer than two people."""

    value: float | None
    low: float | None
    high: float | None
    count: int


def mean_of(values: Sequence[float | None], people: Sequence[str]) -> Mean:
    """Mean of the values that are there; its interval is a bootstrap of people, because what several samples of one person say is nearly the same.

    Args:
        values: One a sample.
        people: Whose each is.
    """
    by_person: dict[str, list[float]] = {}
    for value, person in zip(values, people, strict=True):
        if value is not None:
            by_person.setdefault(person, []).append(value)
    if not by_person:
        return Mean(None, None, None, 0)
    sums = np.array([(sum(mine), len(mine)) for mine in by_person.values()], np.float64)
    total, count = sums.sum(axis=0)
    if len(sums) < 2:
        return Mean(float(total / count), None, None, int(count))
    draws = np.random.default_rng(0).integers(0, len(sums), (2000, len(sums)))
    drawn = sums[draws].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return Mean(float(total / count), float(low), float(high), int(count))


def rate_of(passed: int, total: int) -> Mean:
    """A rate that was counted, with Wilson's interval: a bootstrap of ten in ten has no width."""
    if not total:
        return Mean(None, None, None, 0)
    found = binomtest(passed, total).proportion_ci(method="wilson")
    return Mean(passed / total, float(found.low), float(found.high), total)
