"""What is shown below a near-duplicate in an audit: the accepted pairs that it may look like. Where they cannot all be shown nobody is asked: who sees others,
or none, calls it good, and a duplicate comes in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

import pyarrow.compute as pc

from data_pipeline.candidates import read_candidate_pieces
from data_pipeline.copies import read_copies
from data_pipeline.extend import read_components

_MOST = 4
"""Pairs that are shown below one."""


class Beside:
    """The accepted pairs of a version, by edit, person and component of the split.

    Args:
        folder: The version's.
    """

    def __init__(self, folder: str) -> None:
        self._copies = read_copies(folder).keys()
        self._component: Mapping[str, str] = (read_components(folder) or {}).get("components", {})
        self._of_person: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._tied: dict[tuple[str, str, bool], list[tuple[str, str]]] = defaultdict(list)  # declared or not apart -> source, key
        if not self._component:
            return
        pieces = read_candidate_pieces(folder, ["key", "verdict", "source_id", "person", "edit"])
        for row in (row for piece in pieces for row in piece.filter(pc.equal(piece["verdict"], "accepted")).to_pylist()):
            self._of_person[row["person"], row["edit"]].append(row["key"])
            self._tied[self._component[row["source_id"]], row["edit"], is_declared(row)].append((row["source_id"], row["key"]))

    def of(self, row: dict[str, Any]) -> tuple[str, ...]:
        """Keys of those of one edit that a near-duplicate was compared with: of its person, and of other sources of its component, but not of two people who are
        declared as two.

        Args:
            row: Of the candidates.

        Returns:
            Empty where it cannot be asked: there are none or too many, something was forgotten since and nobody knows what was compared, or the pair is of a copy
            or of a source in conflict with the split, which no label brings back.
        """
        if row["source_id"] not in self._component or {row["source_id"], row["target_id"]} & self._copies:
            return ()
        component, edit = self._component[row["source_id"]], row["edit"]
        compared = (False,) if is_declared(row) else (False, True)
        others = chain.from_iterable(self._tied.get((component, edit, declared), ()) for declared in compared)
        found = chain(self._of_person.get((row["person"], edit), ()), (key for source, key in others if source != row["source_id"]))
        keys = tuple(islice(found, _MOST + 1))
        return tuple(sorted(keys)) if len(keys) <= _MOST else ()


def is_declared(row: dict[str, Any]) -> bool:
    """Who is not has the name of a track."""
    return not row["person"].startswith(f"{row['source_id']}/")
