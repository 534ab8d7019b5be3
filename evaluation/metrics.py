"""What is measured of an edit. A face that is not found is a state of its own: counted, never a zero in a mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lato.edits import Edit
from lato.faces import FaceReading
from lato.faces.expression import progress_along
from lato.faces.identity import similarity
from lato.landmarks import Landmarks, interocular_distance

EPSILON = 1e-6


@dataclass(frozen=True)
class Scores:
    """Of one edited picture."""

    state: str
    """`ok`, `no_face`, or the editor's own state when it made no picture."""
    identity: float | None = None
    """Cosine of source and edited face."""
    rectified_identity: float | None = None
    """`rectified_identity`; None where the instructed change is too small to divide by."""
    landmark_error: float | None = None
    """Mean L1 a coordinate in px of the 512 canvas, between landmarks found on the picture and those it was to have."""
    landmark_nme: float | None = None
    """Mean Euclidean distance over the target's distance between outer eye corners."""


def rectified_identity(identity: float, instructed: float, realised: float) -> float:
    """max(0, s - ((instructed - realised) / (instructed + eps))^2), the paper's rectified identity.

    Args:
        identity: s, cosine of the identity vectors.
        instructed: Change that was asked for, signed so that it is positive.
        realised: Change that was made, in the same unit and sign.
    """
    return max(0.0, identity - ((instructed - realised) / (instructed + EPSILON)) ** 2)


def change_of(edit: Edit, before: FaceReading, after: FaceReading, wanted: FaceReading) -> tuple[float, float] | None:
    """Instructed and realised change of an edit, along what it asks for; None where the true target hardly changes either.

    For a pose: degrees about the instructed axes. For an expression: length along its direction in blendshape space (1 is a strong one), instructed by the
    true target's own. For both: their mean, each in units of what was asked.
    """
    parts = []
    for axis in ("yaw", "pitch", "roll"):
        asked = getattr(edit, axis)
        if asked:
            made = getattr(after.mesh, axis) - getattr(before.mesh, axis)
            parts.append((1.0, made / asked))
    if edit.expression is not None:
        asked = progress_along(edit.expression, wanted.mesh.blendshapes - before.mesh.blendshapes)
        if asked < 0.1:
            return None
        parts.append((1.0, progress_along(edit.expression, after.mesh.blendshapes - before.mesh.blendshapes) / asked))
    return 1.0, float(np.mean([made for _, made in parts]))


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
    change = change_of(edit, before, after, wanted)
    return Scores(
        state="ok",
        identity=identity,
        rectified_identity=None if change is None else rectified_identity(identity, *change),
        landmark_error=float(np.abs(found - target).mean()),
        landmark_nme=float(np.linalg.norm(found - target, axis=-1).mean() / interocular_distance(target)),
    )


@dataclass(frozen=True)
class Mean:
    """A mean with its sample size and 95 % bootstrap interval; `value` is None without samples."""

    value: float | None
    low: float | None
    high: float | None
    count: int


def mean_of(values: Sequence[float | None]) -> Mean:
    """Mean of the values that are there."""
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return Mean(None, None, None, 0)
    draws = np.random.default_rng(0).integers(0, len(known), (2000, len(known)))
    low, high = np.percentile(known[draws].mean(axis=1), [2.5, 97.5])
    return Mean(float(known.mean()), float(low), float(high), len(known))
