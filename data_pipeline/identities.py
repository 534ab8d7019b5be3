"""Identity and writing, computed for the faces that are asked for and no others: recognizer and text detector cost more than all else that is done to a face.

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

NAME, WRITING = "identity", "writing"
"""The column groups that are asked for."""
NEEDED = {NAME: ("row", "embedding"), WRITING: ("row", "writing")}
"""What is read of their columns."""
Vector = npt.NDArray[np.float32]
Face = tuple[str, int]
"""Its part, and its row there."""
_ENDS = ("source_id", "target_id", *(f"{side}_{name}" for side in ("from", "to") for name in ("part", "row", "track")))


class Vectors(Protocol):
    """Where what is asked of faces comes from (`AskedGroup`)."""

    def read(self, part: str) -> Mapping[int, Vector]:
        """Row -> vector of a part's faces (of writing one number), as far as they were computed."""

    def compute(self, wanted: Mapping[str, set[int]]) -> None:
        """Computes those of some rows, by part."""


@dataclass
class AskedGroup:
    """What one model gave of the faces of a build that were asked for."""

    name: str
    work: str
    digest: str
    config: GroupsConfig
    models: Path
    workers: int
    _files: dict[str, list[str]] = field(default_factory=dict)
    """Part -> its column files: some rows each, or all."""

    @classmethod
    def open(cls, name: str, work: str, digests: Mapping[str, str], config: GroupsConfig, models: Path, workers: int) -> AskedGroup:
        """That of a build's folder.

        Raises:
            UserError: The config does not compute it.
        """
        if name not in digests:
            raise UserError(f"analyze.groups.names: {name} is not among them, and pairs are judged by it. Add it")
        found = cls(name, work, digests[name], config, models, workers)
        found._list()
        return found

    def read(self, part: str) -> dict[int, Vector]:
        """Row number in the part -> vector, of those that were computed."""
        vectors: dict[int, Vector] = {}
        for uri in self._files.get(part, []):
            table = read_table(uri, list(NEEDED[self.name]))
            column = table[NEEDED[self.name][1]].combine_chunks()
            flat = np.asarray(column if pa.types.is_floating(column.type) else column.flatten(), np.float32)
            vectors.update(zip(table["row"].to_pylist(), flat.reshape(len(table), -1), strict=True) if len(table) else ())
        return vectors

    def compute(self, wanted: Mapping[str, set[int]]) -> None:
        """Computes those of some faces, by part; faces that have one are passed over."""
        lacking = {part: rows - self.read(part).keys() for part, rows in wanted.items()}
        lacking = {part: rows for part, rows in lacking.items() if rows}
        if lacking:
            compute_rows(self.name, lacking, self.digest, self.config, self.models, self.work, self.workers)
            self._list()

    def _list(self) -> None:
        files = defaultdict(list)
        for uri in sorted(list_files(join(self.work, "columns", self.name), ".parquet")):
            part, digest, *_ = uri.rsplit("/", 1)[-1].removesuffix(".parquet").split("-")
            if digest == self.digest[:16]:
                files[part].append(uri)
        self._files = dict(files)


def same_person_threshold(models: Path, config: GroupsConfig) -> float:
    """Cosine from which the build's recognizer takes two faces for one person: the one that is stated, else the one that is known.

    Raises:
        UserError: There is neither.
    """
    if config.pack_threshold is not None:
        return config.pack_threshold
    name = GROUPS[NAME].models(models, config)[-1].name
    if name not in SAME_PERSON_THRESHOLD:
        raise UserError(
            f"analyze.groups.pack: no same-person threshold is known for the recognizer {name} (only for {', '.join(SAME_PERSON_THRESHOLD)}). "
            "State the cosine from which two faces count as one person: analyze.groups.pack_threshold=..."
        )
    return SAME_PERSON_THRESHOLD[name]


def nobody(vector: Vector) -> bool:
    """Nobody is held out."""
    return False


class Asked:
    """Identity and writing of faces in a table, asked for pair by pair; remembers whose.

    Args:
        vectors: Identity.
        writing: None where it is not computed.
        bars: Whether somebody is held out.
        barred: Tracks (`source/track`) of which a face was found to be of somebody who is.
    """

    def __init__(
        self, vectors: Vectors, writing: Vectors | None, bars: Callable[[Vector], bool], barred: frozenset[str] = frozenset()
    ) -> None:
        self._vectors, self._writing, self._bars = _Known(vectors), _Known(writing) if writing else None, bars
        self._tracks: dict[str, dict[Face, Vector]] = defaultdict(dict)
        self.barred_tracks = set(barred)
        """Those, and others that were found since: a track shows one person, whom a recognizer does not know in each of its faces."""

    @property
    def lacking(self) -> dict[str, set[Face]]:
        """Group -> faces that were asked for and are not known yet."""
        found = {NAME: self._vectors.lacking, WRITING: self._writing.lacking if self._writing else set()}
        return {name: faces for name, faces in found.items() if faces}

    def open(self, taken: pa.Table) -> None:
        """Turns to the rows of another piece."""
        self._taken = taken
        for known in (self._vectors, self._writing):
            if known:
                known.forget()

    def similarity(self, n: int) -> float:
        """Of the two faces of row `n`; 1 as long as one of them is not known."""
        first, second = self._ends(n)
        return 1.0 if first is None or second is None else float(np.dot(first, second))

    def text(self, n: int) -> float:
        """The larger share of text on the two faces of row `n`; NaN as long as one of them is not known, or where it is not computed."""
        if self._writing is None:
            return float("nan")
        shares = [self._writing.of(face) for face, _ in self._faces(n)]
        return float(np.max([np.nan if share is None else share[0] for share in shares]))

    def barred(self, n: int) -> bool:
        """Whether one of them is somebody who is held out, by itself or by another face of its track."""
        if self._taken["kind"][n].as_py() == "synthetic":
            return False
        found = [(track, self._vectors.of(face)) for face, track in self._faces(n)]
        self.barred_tracks |= {track for track, vector in found if vector is not None and self._bars(vector)}
        return any(track in self.barred_tracks for track, _ in found)

    def people(self) -> dict[str, Vector]:
        """Track -> mean direction of its faces."""
        means = {name: np.mean([faces[key] for key in sorted(faces)], axis=0) for name, faces in sorted(self._tracks.items())}
        return {name: mean / max(float(np.linalg.norm(mean)), 1e-9) for name, mean in means.items()}

    def _faces(self, n: int) -> list[tuple[Face, str]]:
        """The two faces of row `n`, each with its track (`source/track`)."""
        row = {name: self._taken[name][n].as_py() for name in _ENDS}
        return [
            ((row[f"{side}_part"], row[f"{side}_row"]), f"{row[source]}/{row[f'{side}_track']}")
            for side, source in (("from", "source_id"), ("to", "target_id"))
        ]

    def _ends(self, n: int) -> list[Vector | None]:
        found = [(face, track, self._vectors.of(face)) for face, track in self._faces(n)]
        if self._taken["kind"][n].as_py() != "synthetic":
            for face, track, vector in found:
                if vector is not None:
                    self._tracks[track][face] = vector
        return [vector for _, _, vector in found]


class _Known:
    """What is known of faces, read a part at a time."""

    def __init__(self, given: Vectors) -> None:
        self._given = given
        self._parts: dict[str, Mapping[int, Vector]] = {}
        self.lacking: set[Face] = set()

    def of(self, face: Face) -> Vector | None:
        """Of one face; one that is not known is lacking from now on."""
        part, row = face
        if part not in self._parts:
            self._parts[part] = self._given.read(part)
        found = self._parts[part].get(row)
        if found is None:
            self.lacking.add(face)
        return found

    def forget(self) -> None:
        """Holds no part any more."""
        self._parts = {}
