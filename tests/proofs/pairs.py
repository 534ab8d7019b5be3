"""Face pairs of synthetic people in memory, as a stage reads them from a dataset: known landmarks, small pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.image_set import Declared
from data_pipeline.synthetic.anny_people import AnnyConfig, draw_set
from lato.edits import Edit, Expression, Intensity, instruction_for
from lato.landmarks import CANVAS
from lato.pairs import FacePair, FaceState, PairMeta, Provenance

_IMAGES = 5
_AXES = ("yaw", "pitch", "roll")


class People:
    """Looks like a `training.data.Dataset`: six ordered pairs of each person's five pictures.

    Args:
        train: How many people train.
        val: How many others are held out.
        size: Side of a picture in pixels.
    """

    name = uri = "people"

    def __init__(self, train: int, val: int, size: int = 64) -> None:
        self._config = AnnyConfig(images=_IMAGES, size=size, seed=23)
        self.pairs: dict[str, FacePair] = {}
        self.rows = []
        for number in range(train + val):
            split = "train" if number < train else "val"
            for pair in self._person(number, split):
                self.pairs[pair.key] = pair
                self.rows.append({"key": pair.key, "split": split, "instruction": pair.meta.instruction})

    def split(self, name: str) -> list[dict[str, Any]]:
        """Rows of a split."""
        return [row for row in self.rows if row["split"] == name]

    def read(self, row: dict[str, Any]) -> FacePair:
        """One sample."""
        return self.pairs[row["key"]]

    def read_landmarks(self, rows: list[dict[str, Any]]) -> np.ndarray:
        """(N, 2, 68, 2) source and target landmarks."""
        return np.stack([self.pairs[row["key"]].landmarks for row in rows])

    def _person(self, number: int, split: str) -> list[FacePair]:
        pictures, declared = draw_set(self._config, number)
        ways = [(i, j) for i in range(_IMAGES) for j in range(_IMAGES) if edit_between(declared[i], declared[j]) is not None]
        order = np.random.default_rng((29, number)).permutation(len(ways))[:6]
        return [self._pair(number, split, pictures, declared, *ways[index]) for index in order]

    def _pair(self, number: int, split: str, pictures: list[bytes], declared: list[Declared], i: int, j: int) -> FacePair:
        key, edit = f"p{number:05d}_{i}_{j}", edit_between(declared[i], declared[j])
        assert edit is not None
        instruction = instruction_for(edit, key, split)
        scale = CANVAS.width / self._config.size
        points = np.array([declared[i].landmarks, declared[j].landmarks], np.float32) * scale
        meta = PairMeta(
            instruction=instruction.text, template=instruction.template, edit=edit, source=_state(declared[i], i), target=_state(declared[j], j),
            identity_similarity=None, quality={}, crop=(0.0, 0.0, float(self._config.size)), split=split,
            provenance=Provenance(source_id=f"p{number}", source_sha256="", kind="synthetic", identity=f"p{number}", licence="CC0-1.0",
                                  scope="same_person", models={}),
        )  # fmt: skip
        return FacePair(key, pictures[i], pictures[j], points, meta)


def edit_between(source: Declared, target: Declared) -> Edit | None:
    """The edit that leads from one picture to the other; None where there is none, or a turn beyond 60 degrees."""
    changes: dict[str, Any] = {axis: round((getattr(target, axis) - getattr(source, axis)) / 30) * 30 for axis in _AXES}
    if max(abs(degrees) for degrees in changes.values()) > 60:
        return None
    if (source.expression, source.intensity) != (target.expression, target.intensity):
        changes["expression"] = target.expression
        changes["intensity"] = Intensity.PLAIN if target.expression is Expression.NEUTRAL else target.intensity
    elif not any(changes.values()):
        return None
    return Edit(**changes)


def _state(declared: Declared, number: int) -> FaceState:
    pose = {axis: getattr(declared, axis) for axis in _AXES}
    return FaceState(expression=declared.expression, expression_intensity=1.0, frame=number, pts=float(number), **pose)


def mean_shifts(pairs: list[FacePair]) -> dict[Edit, np.ndarray]:
    """Edit -> mean displacement (68, 2) over the pairs with that edit."""
    found: dict[Edit, list[np.ndarray]] = {}
    for pair in pairs:
        found.setdefault(pair.meta.edit, []).append(pair.landmarks[1] - pair.landmarks[0])
    return {edit: np.mean(moves, axis=0) for edit, moves in found.items()}


def shift_of(edit: Edit, shifts: dict[Edit, np.ndarray]) -> np.ndarray:
    """The mean shift of an edit; where no training sample has it, the sum of those of its parts."""
    if edit in shifts:
        return shifts[edit]
    parts = [Edit(**{axis: getattr(edit, axis)}) for axis in _AXES if getattr(edit, axis)]
    if edit.expression is not None:
        parts.append(Edit(expression=edit.expression, intensity=edit.intensity))
    return sum((shifts.get(part, np.zeros((68, 2))) for part in parts), np.zeros((68, 2)))


def jitter_error(pairs: list[FacePair]) -> float:
    """What nobody can know: mean error in px of the target's own landmarks turned to the pose without its jitter of up to 2 degrees."""
    from data_pipeline.synthetic.anny_people import landmark_vertices
    from data_pipeline.synthetic.head_mesh import load_head
    from data_pipeline.synthetic.person import Pose, actions_for, draw_person, pose_vertices
    from data_pipeline.synthetic.rasterizer import project

    mesh, errors = load_head(), []
    for pair in pairs:
        person = draw_person(np.random.default_rng((23, int(pair.key[1:6]))), mesh)
        state, intensity = pair.meta.target, pair.meta.edit.intensity
        found = []
        for degrees in ([getattr(state, axis) for axis in _AXES], [round(getattr(state, axis) / 30) * 30.0 for axis in _AXES]):
            vertices = pose_vertices(mesh, person, actions_for(state.expression, intensity), Pose(*degrees))
            found.append(project(vertices[landmark_vertices()], 512))
        errors.append(np.abs(found[0] - found[1]).mean())
    return float(np.mean(errors))
