"""Identity vectors, computed for the faces that are asked for and no others: the recognizer costs more than all else that is done to a face.

A pair is asked for when it passes every other limit and its quotas have room (`judge`), a face when a track may go on over a segment's border (`score`).
What was computed once is kept; a looser config asks for more, and that comes from chips, without decoding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.groups import GROUPS, GroupsConfig, compute_rows
from infra.addresses import join
from infra.errors import UserError
from infra.state import read_table
from infra.storage import list_files
from lato.faces.identity import SAME_PERSON_THRESHOLD

NAME = "identity"
NEEDED = ("row", "embedding")
"""What is read of the group's columns."""
Vector = npt.NDArray[np.float32]


class Vectors(Protocol):
    """Where identity vectors come from (`Identities`)."""

    def read(self, part: str) -> Mapping[int, Vector]:
        """Row -> vector of a part's faces, as far as they were computed."""

    def compute(self, wanted: Mapping[str, set[int]]) -> None:
        """Computes those of some rows, by part."""


@dataclass
class Identities:
    """The vectors of one recognizer in a build."""

    work: str
    digest: str
    config: GroupsConfig
    models: Path
    workers: int
    _files: dict[str, list[str]] = field(default_factory=dict)
    """Part -> its column files: some rows each, or all."""

    @classmethod
    def open(cls, work: str, digests: Mapping[str, str], config: GroupsConfig, models: Path, workers: int) -> Identities:
        """Those of a build's folder.

        Raises:
            UserError: The config computes no identity.
        """
        if NAME not in digests:
            raise UserError("analyze.groups.names: identity is not among them, and pairs are judged by it. Add it")
        found = cls(work, digests[NAME], config, models, workers)
        found._list()
        return found

    def read(self, part: str) -> dict[int, Vector]:
        """Row number in the part -> vector, of those that were computed."""
        vectors: dict[int, Vector] = {}
        for uri in self._files.get(part, []):
            table = read_table(uri, list(NEEDED))
            flat = np.asarray(table["embedding"].combine_chunks().flatten(), np.float32)
            vectors.update(zip(table["row"].to_pylist(), flat.reshape(len(table), -1), strict=True) if len(table) else ())
        return vectors

    def compute(self, wanted: Mapping[str, set[int]]) -> None:
        """Computes those of some faces, by part; faces that have one are passed over."""
        lacking = {part: rows - self.read(part).keys() for part, rows in wanted.items()}
        lacking = {part: rows for part, rows in lacking.items() if rows}
        if lacking:
            compute_rows(NAME, lacking, self.digest, self.config, self.models, self.work, self.workers)
            self._list()

    def _list(self) -> None:
        files = defaultdict(list)
        for uri in sorted(list_files(join(self.work, "columns", NAME), ".parquet")):
            part, digest, *_ = uri.rsplit("/", 1)[-1].removesuffix(".parquet").split("-")
            if digest == self.digest[:16]:
                files[part].append(uri)
        self._files = dict(files)


def same_person_threshold(models: Path, config: GroupsConfig) -> float:
    """Cosine from which the build's recognizer takes two faces for one person.

    Raises:
        UserError: None is known for it.
    """
    name = GROUPS[NAME].models(models, config)[-1].name
    if name not in SAME_PERSON_THRESHOLD:
        raise UserError(f"no same-person threshold is known for the recognizer {name}; known: {', '.join(SAME_PERSON_THRESHOLD)}")
    return SAME_PERSON_THRESHOLD[name]


def nobody(vector: Vector) -> bool:
    """Nobody is held out."""
    return False


class Asked:
    """The identity of faces in a table, asked for pair by pair; remembers whose."""

    def __init__(self, vectors: Vectors, bars: Callable[[Vector], bool]) -> None:
        self._vectors, self._bars = vectors, bars
        self._parts: dict[str, Mapping[int, Vector]] = {}
        self._tracks: dict[str, dict[tuple[str, int], Vector]] = defaultdict(dict)
        self.lacking: set[tuple[str, int]] = set()
        """Part and row of the faces that have no vector yet."""

    def open(self, taken: pa.Table) -> None:
        """Turns to the rows of another piece."""
        self._taken, self._parts = taken, {}

    def similarity(self, n: int) -> float:
        """Of the two faces of row `n`; 1 as long as one of them is not known."""
        first, second = self._ends(n)
        return 1.0 if first is None or second is None else float(np.dot(first, second))

    def barred(self, n: int) -> bool:
        """Whether one of them is somebody who is held out."""
        return self._taken["kind"][n].as_py() != "synthetic" and any(end is not None and self._bars(end) for end in self._ends(n))

    def people(self) -> dict[str, Vector]:
        """Track -> mean direction of its faces."""
        means = {name: np.mean([faces[key] for key in sorted(faces)], axis=0) for name, faces in sorted(self._tracks.items())}
        return {name: mean / max(float(np.linalg.norm(mean)), 1e-9) for name, mean in means.items()}

    def _ends(self, n: int) -> list[Vector | None]:
        return [
            self._of(n, *names)
            for names in (("from_part", "from_row", "source_id", "from_track"), ("to_part", "to_row", "target_id", "to_track"))
        ]

    def _of(self, n: int, part_name: str, row_name: str, source_name: str, track_name: str) -> Vector | None:
        part, row = self._taken[part_name][n].as_py(), self._taken[row_name][n].as_py()
        if part not in self._parts:
            self._parts[part] = self._vectors.read(part)
        vector = self._parts[part].get(row)
        if vector is None:
            self.lacking.add((part, row))
        elif self._taken["kind"][n].as_py() != "synthetic":
            self._tracks[f"{self._taken[source_name][n].as_py()}/{self._taken[track_name][n].as_py()}"][part, row] = vector
        return vector
