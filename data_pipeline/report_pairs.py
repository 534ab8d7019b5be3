"""Pairs that the data report shows, with landmarks: some of those accepted, and those that missed each filter by least."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from data_pipeline.candidates import read_candidate_pieces, take_candidates
from data_pipeline.rules import LIMITS, VERIFIERS, PairingConfig
from data_pipeline.sheet import Sources, Unreadable, draw_faces, read_samples
from data_pipeline.words import instruction_of, missed_by

_ACCEPTED = 18
_REJECTED = 6
_NEAREST = 400
"""Of a filter's refused pairs those nearest to its threshold, among which pairs of different sources are looked for."""
_SIDE = 170
"""Pixels of a face."""


class Shown(NamedTuple):
    """A pair on the page."""

    picture: str
    """JPEG in base64: source, then target."""
    instruction: str
    notes: list[str]
    """What else is to be known of it, a line each."""
    key: str


def accepted_pairs(folder: str, manifest: list[dict[str, Any]]) -> list[Shown]:
    """Samples of every kind of source by turns, of different sources as far as there are."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(manifest, key=lambda row: hashlib.sha256(str(row["key"]).encode()).digest()):
        by_kind.setdefault(str(row["kind"]), []).append(row)
    turns = [row for _, row in sorted(_numbered(list(by_kind.values())), key=lambda entry: entry[0])]
    picked = turns[:_ACCEPTED]
    pairs = zip(picked, read_samples(folder, picked), strict=True)
    return [
        Shown(
            _encode(draw_faces(pair, _SIDE)), str(row["instruction"]), [f"{_sources(row)}, {row['kind']}, {row['split']}"], str(row["key"])
        )
        for row, pair in pairs
    ]


def _numbered(kinds: list[list[dict[str, Any]]]) -> list[tuple[tuple[int, int], dict[str, Any]]]:
    """Each row with its turn: the n-th of its kind, once a row of every source has had its turn."""
    return [((turn, number), row) for number, rows in enumerate(kinds) for turn, row in enumerate(_by_source(rows))]


def _by_source(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append(seen[row["source_id"]])
        seen[row["source_id"]] += 1
    return [rows[n] for n in np.argsort(turns, kind="stable")]


def rejected_pairs(folder: str, sources: Sources, config: PairingConfig) -> tuple[list[tuple[str, list[Shown]]], Counter[str]]:
    """Filter -> the pairs that missed it by least, of different sources as far as there are, drawn from the sources; and why how many
    cannot be drawn."""
    undrawn = Counter[str]()
    sheets = []
    for verdict, numbers in _nearest(folder).items():

        def told(row: dict[str, Any], verdict: str = verdict) -> str:
            return missed_by(row, verdict, config)

        if shown := draw_rejected(take_candidates(folder, numbers), lambda row: [row], told, sources, undrawn):
            sheets.append((verdict, shown))
    return sheets, undrawn


def draw_rejected(
    rows: list[dict[str, Any]],
    drawn: Callable[[dict[str, Any]], list[dict[str, Any]]],
    told: Callable[[dict[str, Any]], str],
    sources: Sources,
    undrawn: Counter[str],
) -> list[Shown]:
    """The first refused pairs that can be drawn, of different sources as far as there are.

    Args:
        rows: Of the candidates, whole; the nearest to the limit first.
        drawn: Of a pair, what is drawn, one above the other.
        told: Of a pair, by what it was refused.
        sources: Of the build.
        undrawn: Why pairs cannot be drawn -> how many; it is added to.
    """
    shown: list[Shown] = []
    for row in _by_source(_one_way(rows)):
        instruction = instruction_of(row)
        if instruction is None:
            continue  # misread as another expression, and as the same one on both pictures
        try:
            picture = _encode(np.vstack([sources.draw(one, _SIDE) for one in drawn(row)]))
        except Unreadable as error:
            undrawn[str(error)] += 1
            continue
        ends = f"{_sources(row)}, {row['from_pts']:.2f} s and {row['to_pts']:.2f} s" if row["kind"] == "video" else _sources(row)
        shown.append(Shown(picture, instruction, [told(row), ends], row["key"]))
        if len(shown) == _REJECTED:
            break
    return shown


def _nearest(folder: str) -> dict[str, npt.NDArray[np.int64]]:
    """Filter -> the numbers of the candidates that missed it by least, nearest first. No more of the others than a row group is ever in memory."""
    filters = {"expression verifier": VERIFIERS["expression verifier"]} | LIMITS | VERIFIERS
    kept = {verdict: (np.zeros(0, np.int64), np.zeros(0)) for verdict in filters}
    start = 0
    for piece in read_candidate_pieces(folder, ["verdict", *dict.fromkeys(score for score, _, _ in filters.values())]):
        for verdict in set(piece["verdict"].unique().to_pylist()) & filters.keys():
            score, _, sign = filters[verdict]
            mine = np.flatnonzero(pc.equal(piece["verdict"], verdict))
            numbers = np.concatenate([kept[verdict][0], mine + start])
            missed = np.concatenate([kept[verdict][1], -np.asarray(piece[score], np.float64)[mine] * sign])
            order = np.lexsort((numbers, missed))[:_NEAREST]
            kept[verdict] = numbers[order], missed[order]
        start += len(piece)
    return {verdict: numbers for verdict, (numbers, _) in kept.items()}


def _sources(row: dict[str, Any]) -> str:
    return " and ".join(dict.fromkeys([str(row["source_id"]), str(row["target_id"])]))


def _one_way(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a pair and its reverse only the first."""
    ends: dict[frozenset[tuple[str, int]], dict[str, Any]] = {}
    for row in rows:
        ends.setdefault(frozenset({(row["from_part"], row["from_row"]), (row["to_part"], row["to_row"])}), row)
    return list(ends.values())


def _encode(image: npt.NDArray[np.uint8]) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, 85]
    return base64.b64encode(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()).decode()
