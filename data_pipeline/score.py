"""Score: representatives of all sources to tables of scored pairs, in bundles on Ray. Equal inputs, equal tables; what stands is not scored again."""

from __future__ import annotations

import functools
import io
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.groups import read_columns
from data_pipeline.holdout import Holdout
from data_pipeline.identities import AskedGroup, same_person_threshold
from data_pipeline.observations import read_representatives
from data_pipeline.pairing import OBSERVED, OF_GROUPS, SCORE_SCHEMA, Person, group_people, score_person
from data_pipeline.places import scores
from infra.addresses import join
from infra.console import Progress
from infra.pool import run_all
from infra.storage import commit, exists, sha256_json

VERSION = 7
"""Raise it when equal observations would give other scores."""
_BUNDLE = 50
"""Sources a table, more where a declared person has more."""
_FEW = 2
_ROW_GROUP = 50_000
"""Pairs a row group, more where a person has more."""
_SAME_FACE_IOU = 0.3
_TRACKS_A_SEGMENT = 1_000_000


@dataclass(frozen=True)
class ScoreInput:
    """What scores depend on beside the observations."""

    columns: dict[str, str]
    """Column group -> its digest."""
    identities: AskedGroup
    margin: float
    same_person: bool
    holdout: Holdout


def score_pairs(ledger: list[dict[str, Any]], given: ScoreInput, identities: dict[str, str | None], work: str, workers: int) -> list[str]:
    """Scores every pair that may be made.

    Args:
        ledger: Rows of usable sources.
        given: Groups and what else decides the scores.
        identities: Source id -> declared person.
        work: The build's folder.
        workers: Ray actors; 0 works here.

    Returns:
        URIs of the tables, in order; a person's pairs lie in one row group of one table.
    """
    given.identities.compute(find_borders([row for row in ledger if len(row["parts"]) > 1], work, workers))
    bundles = _bundle(ledger, identities)
    settings = [VERSION, given.columns, given.margin, given.same_person, given.holdout.digest]
    tables = [join(work, "pairs", f"{sha256_json([settings, [row['parts'] for row in bundle]])}.parquet") for bundle in bundles]
    todo = [(bundle, table) for bundle, table in zip(bundles, tables, strict=True) if not exists(table)]
    progress = Progress("score", len(todo), "bundles")
    # a few are done here sooner than workers start
    for _done in run_all(functools.partial(_Worker, given, work), todo, workers if len(todo) > _FEW else 0, scores()):
        progress.advance()
    return tables


def read_faces(row: dict[str, Any], columns: dict[str, str], identities: AskedGroup, work: str) -> list[dict[str, Any]]:
    """A source's representatives with what is read of the groups' columns; tracks that meet at a segment's border are joined."""
    pieces = []
    for number, part in enumerate(row["parts"]):
        faces = [face | {"part": part} for face in read_representatives(work, part, OBSERVED)]
        for name, names in OF_GROUPS.items():
            if name in columns:
                extra = read_columns(work, name, part, columns[name], names)
                faces = [face | extra[face["row"]] for face in faces]
        if len(row["parts"]) > 1:
            vectors = identities.read(part)
            faces = [face | {"embedding": vectors.get(face["row"])} for face in faces]
        pieces.append([face | {"track": face["track"] + number * _TRACKS_A_SEGMENT} for face in faces])
    if len(pieces) > 1:
        own = same_person_threshold(identities.models, identities.config)
        for before, after in itertools.pairwise(pieces):
            _join_tracks(before, after, own)
    return [face for faces in pieces for face in faces]


def _join_tracks(before: list[dict[str, Any]], after: list[dict[str, Any]], alike: float) -> None:
    """Gives tracks of the second piece the number of the track of the first that they go on with: nearest in time, same place, same face (cosine `alike`)."""
    last, first = _ends(before, latest=True), _ends(after, latest=False)
    renamed = {}
    for track, face in first.items():
        met = [(overlap, other) for other in last.values() if (overlap := _iou(face["box"], other["box"])) >= _SAME_FACE_IOU]
        scored = [(overlap, other["track"]) for overlap, other in met if np.dot(face["embedding"], other["embedding"]) >= alike]
        if scored:
            renamed[track] = max(scored)[1]
    for face in after:
        face["track"] = renamed.get(face["track"], face["track"])


def find_borders(ledger: list[dict[str, Any]], work: str, workers: int) -> dict[str, set[int]]:
    """Part -> rows of the faces that may be one over a segment's border: their identity decides whether tracks are joined."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for done in run_all(functools.partial(_Borders, work), ledger, workers if len(ledger) > _FEW else 0, scores()):
        for part, row in done.result:
            wanted[part].add(row)
    return wanted


class _Borders:
    def __init__(self, work: str) -> None:
        self._work = work

    def run(self, row: dict[str, Any]) -> list[tuple[str, int]]:
        """Part and row of the faces of a source that meet another over a border."""
        pieces = [[face | {"part": part} for face in read_representatives(self._work, part, OBSERVED)] for part in row["parts"]]
        met = []
        for before, after in itertools.pairwise(pieces):
            for face, other in itertools.product(_ends(before, latest=True).values(), _ends(after, latest=False).values()):
                if _iou(face["box"], other["box"]) >= _SAME_FACE_IOU:
                    met += [(face["part"], face["row"]), (other["part"], other["row"])]
        return met


def _ends(faces: list[dict[str, Any]], latest: bool) -> dict[int, dict[str, Any]]:
    ordered = sorted(faces, key=lambda face: face["pts"], reverse=not latest)
    return {face["track"]: face | {"box": _box(face)} for face in ordered}


def _box(face: dict[str, Any]) -> tuple[float, float, float, float]:
    points = np.asarray(face["landmarks"]).reshape(68, 2)
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared + 1e-9)


def _bundle(ledger: list[dict[str, Any]], identities: dict[str, str | None]) -> list[list[dict[str, Any]]]:
    """Sources in bundles; all sources of a declared person in one. An own bundle for a person of many, so that others need not be scored anew."""
    people: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ledger:
        people[identities.get(row["source_id"]) or row["source_id"]].append(row)
    bundles: list[list[dict[str, Any]]] = [[]]
    for name in sorted(people):
        if len(bundles[-1]) + len(people[name]) > _BUNDLE and bundles[-1]:
            bundles.append([])
        bundles[-1] += people[name]
    return [bundle for bundle in bundles if bundle]


class _Worker:
    def __init__(self, given: ScoreInput, work: str) -> None:
        self._given, self._work = given, work

    def run(self, job: tuple[list[dict[str, Any]], str]) -> None:
        """Scores the pairs of some sources and commits their table."""
        bundle, table = job
        faces = [
            face
            for row in bundle
            for face in self._given.holdout.mark(read_faces(row, self._given.columns, self._given.identities, self._work))
        ]
        buffer = io.BytesIO()
        write_scores(group_people(faces, self._given.same_person), self._given.margin, buffer)
        commit(table, buffer.getvalue(), exclusive=True)


def write_scores(people: Iterable[Person], margin: float, out: Any) -> Counter[str]:
    """Writes a score table whose row groups end between two people; returns pairs by scope."""
    counts: Counter[str] = Counter()
    with pq.ParquetWriter(out, SCORE_SCHEMA, compression="zstd") as writer:
        for piece in _pieces(people, margin):
            writer.write_table(piece, row_group_size=len(piece))
            counts.update(piece["scope"].to_pylist())
    return counts


def _pieces(people: Iterable[Person], margin: float) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    name = ""
    for person in people:
        if person.name != name and sum(map(len, waiting)) >= _ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
        name = person.name
        scored = score_person(person, margin)
        if scored is not None:
            waiting.append(pa.table({field.name: pa.array(scored[field.name], field.type, from_pandas=True) for field in SCORE_SCHEMA}))
    if waiting:
        yield pa.concat_tables(waiting)
