"""How far another expression network agrees with the verifier, face by face as parts read them, for the report. What it refuses is the verdict
"expression not confirmed".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline import observations
from data_pipeline.groups import computed_parts, read_columns, read_models
from lato.edits import Expression

_GROUP = "fer"
NAMES = [expression.value for expression in Expression]


@dataclass(frozen=True)
class SecondOpinion:
    """Readings of the same faces by both."""

    counts: npt.NDArray[np.int64]
    """(7, 7) faces by the verifier's reading and the other's, each in the order of `Expression`."""
    parts: tuple[int, int]
    """Of how many parts there are scores, and how many there are."""
    models: dict[str, dict[str, str]]
    """File -> sha256 and licence."""

    def rows(self) -> list[tuple[str, list[int], int]]:
        """Verifier's reading, how often the other said what, and faces in all; of readings that there are."""
        return [(name, row.tolist(), int(row.sum())) for name, row in zip(NAMES, self.counts, strict=True) if row.sum()]


def second_opinion(ledger: list[dict[str, Any]], work: str) -> SecondOpinion | None:
    """The opinions on all representatives whose scores were computed.

    Args:
        ledger: Rows of the build.
        work: Its folder.

    Returns:
        None where the group `fer` was left out.
    """
    parts = [part for row in ledger if row.get("faces") for part in row["parts"]]
    computed = computed_parts(work, _GROUP)
    counts = np.zeros((len(NAMES), len(NAMES)), np.int64)
    have = [part for part in parts if part in computed]
    for part in have:
        said = observations.read_columns(work, part, ["expression"])["expression"].to_pylist()
        for number, row in read_columns(work, _GROUP, part, computed[part]).items():
            counts[NAMES.index(said[number]), int(np.argmax(row["fer_scores"]))] += 1
    return SecondOpinion(counts, (len(have), len(parts)), read_models(work, _GROUP, have[0], computed[have[0]])) if have else None
