"""Quotas of the whole dataset: how many pairs there may be of one cell, that is of one change of expression with one pose step. They come last, over what all
other quotas and near-duplicates left of all tables: what goes for another reason takes no place.

Both directions of a pair lie in one cell and count once: neutral to happy and back is one change, so that the way back to rest, which every expression has,
does not fill a cell before the rarer expressions come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.near_duplicates import order_twins
from data_pipeline.pairing import AXES, EXPRESSIONS
from lato.edits import POSE_STEP

COLUMNS = ["from_expression", "to_expression", *(f"step_{axis}" for axis in AXES)]
"""What the cell of a pair depends on."""


def cells_of(table: pa.Table) -> npt.NDArray[np.int64]:
    """The cell of each pair as a number, the same for both of its directions."""
    names = pa.array(EXPRESSIONS)
    source, target = (np.asarray(pc.index_in(table[f"{side}_expression"], names)).astype(np.int64) + 1 for side in ("from", "to"))
    source, target = (np.where(source == target, 0, side) for side in (source, target))  # which one stays is no change
    steps = [np.asarray(table[f"step_{axis}"]).astype(np.int64) // POSE_STEP for axis in AXES]
    return np.minimum(_number(source, target, steps), _number(target, source, [-step for step in steps]))


def _number(source: npt.NDArray[np.int64], target: npt.NDArray[np.int64], steps: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    number = source * 8 + target
    for step in steps:
        number = number * 16 + step + 8
    return number


def over_quota_of_cells(
    rows: Sequence[dict[str, Any]], used: Mapping[int, int], kept: Collection[str], good: Collection[str], quota: int
) -> set[str]:
    """Finds what is beyond the quotas of cells: those called good come first, then the sharpest.

    Args:
        rows: Accepted rows of score tables; of other verdicts none.
        used: Cell -> pairs of the version that is extended.
        kept: Keys that stay, and are counted in `used`: samples of that version.
        good: Keys that a person called good.
        quota: Pairs a cell may have.

    Returns:
        Keys. A pair and its reverse are in it together.
    """
    if not rows:
        return set()
    twins, stays = order_twins(rows, kept, good)
    cells = cells_of(pa.table({name: [row[name] for row in rows] for name in COLUMNS})).tolist()
    counts, found = Counter(used), set[str]()
    for twin, numbers in twins.items():
        if stays[twin]:
            continue
        if counts[cells[numbers[0]]] < quota:
            counts[cells[numbers[0]]] += 1
        else:
            found |= {rows[n]["key"] for n in numbers}
    return found
