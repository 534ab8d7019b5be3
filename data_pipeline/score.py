"""Score: representatives of all sources to tables of scored pairs, in bundles on Ray. Equal inputs, equal tables; what stands is not scored again."""

from __future__ import annotations

import functools
import io
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.groups import read_columns
from data_pipeline.holdout import Holdout
from data_pipeline.identities import AskedGroup, same_person_threshold
from data_pipeline.joins import join_tracks, meetings_at_borders, read_joined, read_photos, track_of_source
from data_pipeline.observations import read_representatives
from data_pipeline.pairing import OBSERVED, OF_GROUPS, SCORE_SCHEMA, Person, group_people, score_person
from data_pipeline.places import scores
from infra.addresses import join
from infra.console import Progress
from infra.pool import run_all
from infra.state import read_schema
from infra.storage import commit, exists, sha256_json

VERSION = 8
"""Raise it when equal observations would give other scores."""
_BUNDLE = 50
"""Sources a table, more where a declared person has more."""
_FEW = 2
_LEFT_OUT = b"left_out"
_ROW_GROUP = 50_000
"""Pairs a row group, more where a person has more."""


@dataclass(frozen=True)
class ScoreInput:
    """What scores depend on beside the observations."""

    columns: dict[str, str]
    """Column group -> its digest."""
    identities: AskedGroup
    margin: float
    same_person: bool
    holdout: Holdout
    published: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Part -> rows of faces that a version which is extended has samples of."""

    def published_in(self, bundle: list[dict[str, Any]]) -> dict[str, list[int]]:
        """Those of some sources, where which faces of a track are paired may depend on other pieces or photos."""
        parts = [part for row in bundle if len(row["parts"]) > 1 or self.same_person for part in row["parts"]]
        return {part: sorted(self.published[part]) for part in parts if part in self.published}


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
    stated = given.identities.config.pack_threshold  # by which tracks are joined; a known one comes with its recognizer
    settings = [VERSION, given.columns, given.margin, given.same_person, given.holdout.digest, *([] if stated is None else [stated])]
    made_from = [[settings, [row["parts"] for row in bundle], given.published_in(bundle)] for bundle in bundles]
    tables = [join(work, "pairs", f"{sha256_json(one)}.parquet") for one in made_from]
    todo = [(bundle, table) for bundle, table in zip(bundles, tables, strict=True) if not exists(table)]
    progress = Progress("score", len(todo), "bundles")
    # a few are done here sooner than workers start
    for _done in run_all(functools.partial(_Worker, given, work), todo, workers if len(todo) > _FEW else 0, scores()):
        progress.advance()
    return tables


def read_faces(row: dict[str, Any], columns: dict[str, str], identities: AskedGroup, work: str) -> list[dict[str, Any]]:
    """A source's representatives with what is read of the groups' columns; tracks that meet at a segment's border are one, and their expressions
    are read against the rest of all its pieces. The track of the piece alone is there too, as `own_track`: keys of pairs are made of it, as they stay what they
    are when another piece is looked at again."""
    pieces = []
    for number, part in enumerate(row["parts"]):
        faces = [face | {"part": part} for face in read_representatives(work, part, OBSERVED)]
        for name, names in OF_GROUPS.items():
            if name in columns:
                extra = read_columns(work, name, part, columns[name], names)
                faces = [face | extra[face["row"]] for face in faces]
        own = [track_of_source(number, face["track"]) for face in faces]
        pieces.append([face | {"track": track, "own_track": track} for face, track in zip(faces, own, strict=True)])
    found = [face for faces in pieces for face in faces]
    if len(pieces) > 1:
        alike = same_person_threshold(identities.models, identities.config)
        vectors = [identities.read(part) for part in row["parts"]]
        joined = join_tracks(meetings_at_borders(row["parts"], work), vectors, alike)
        for face in found:
            face["track"] = joined.get(face["track"], face["track"])
        read_joined(found, row["parts"], joined, work)
    return found


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
        borders = zip(itertools.pairwise(row["parts"]), meetings_at_borders(row["parts"], self._work), strict=True)
        return [met for parts, meetings in borders for one in meetings for met in zip(parts, one.faces, strict=True)]


def count_left_out(tables: list[str]) -> int:
    """How many representatives no pair was made of, as their track, joined over pieces, has sharper ones of their pose and expression."""
    return sum(int(read_schema(uri).metadata[_LEFT_OUT]) for uri in tables)


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
        if self._given.same_person:
            read_photos(faces, self._work)
        buffer = io.BytesIO()
        people = list(group_people(faces, self._given.same_person, self._given.published_in(bundle)))
        write_scores(people, self._given.margin, buffer, sum(person.left_out for person in people))
        commit(table, buffer.getvalue(), exclusive=True)


def write_scores(people: Iterable[Person], margin: float, out: Any, left_out: int = 0) -> Counter[str]:
    """Writes a score table whose row groups end between two people, and how many of their representatives were left out; returns pairs by scope."""
    counts: Counter[str] = Counter()
    with pq.ParquetWriter(out, SCORE_SCHEMA.with_metadata({_LEFT_OUT: str(left_out)}), compression="zstd") as writer:
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
