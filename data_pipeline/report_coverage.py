"""What the report says of coverage: the pairs of each cell, in the unit of `pairing.cell_quota` (`cells`), and how many it lacks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa

from data_pipeline.cells import COLUMNS, cells_of
from data_pipeline.pairing import AXES, EXPRESSIONS
from lato.edits import POSE_STEP

_STEPS = [dict.fromkeys(AXES, 0), *(dict.fromkeys(AXES, 0) | {axis: step} for axis in AXES for step in (POSE_STEP, -POSE_STEP))]
"""Pose steps that are asked for; of two axes at once, or larger ones, there are too many cells."""
_CHANGES = [*combinations(EXPRESSIONS, 2), (EXPRESSIONS[0], EXPRESSIONS[0])]
"""Which two expressions a pair has; the last stands for all that have one, which is no change, whichever it is."""


@dataclass(frozen=True)
class Coverage:
    """Pairs by change of expression (rows) and pose step (columns)."""

    poses: list[str]
    rows: list[tuple[str, list[tuple[int, int] | None], int]]
    """Change, by pose step its pairs and how many it lacks (None: it is the same cell as that of the step before), and its pairs of other steps."""
    goal: int
    """Pairs that a cell should have: its quota, else half of an even share."""

    @property
    def short(self) -> list[int]:
        """How many each cell lacks that lacks any."""
        return [cell[1] for _, cells, _ in self.rows for cell in cells if cell and cell[1]]


def find_coverage(pairs: pa.Table, quota: int | None) -> Coverage:
    """The coverage of some pairs, each given in one direction. That nothing changes is no edit, and lacks nothing."""
    grid = [
        {"from_expression": source, "to_expression": target} | {f"step_{axis}": step for axis, step in steps.items()}
        for source, target in _CHANGES
        for steps in _STEPS
    ]
    numbers = cells_of(pa.Table.from_pylist(grid)).reshape(len(_CHANGES), len(_STEPS)).tolist()
    counts, changes = Counter(cells_of(pairs.select(COLUMNS)).tolist()), Counter(cells_of(_without_steps(pairs)).tolist())
    nothing = numbers[-1][0]
    asked = {number for row in numbers for number in row} - {nothing}
    goal = quota or max(1, round(len(pairs) / len(asked) / 2))
    rows = []
    for (source, target), mine in zip(_CHANGES, numbers, strict=True):
        cells = [
            None if number in mine[:place] else (counts[number], max(0, goal - counts[number]) if number in asked else 0)
            for place, number in enumerate(mine)
        ]
        name = "same expression" if source == target else f"{source} to {target}"
        rows.append((name, cells, changes[mine[0]] - sum(cell[0] for cell in cells if cell)))
    return Coverage([_say(steps) for steps in _STEPS], rows, goal)


def _without_steps(pairs: pa.Table) -> pa.Table:
    flat = np.zeros(len(pairs), np.int16)
    return pa.table({name: flat if name.startswith("step_") else pairs[name] for name in COLUMNS})


def _say(steps: dict[str, int]) -> str:
    return " ".join(f"{axis} {step:+d}" for axis, step in steps.items() if step) or "same pose"
