"""Thresholds and quotas on stored scores: the one place where a pair is accepted or refused. Reads a table of scores in pieces; decodes nothing.

Identity and writing come last: they are asked for where a pair passes all else and its quotas have room. What was not computed is taken for well, computed, and the
table judged again, until nothing is lacking; the verdicts are then those of one pass that knew all, whatever was known before.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.choose import Chosen, Said
from data_pipeline.identities import NAME, WRITING, Asked, Face, Vector, Vectors
from data_pipeline.pairing import AXES, STORED_SCORES, VERIFIABLE, edit_texts
from data_pipeline.rules import ACCEPTED, ASKED, CODE, FIRST, LIMITS, PASSED, VERDICTS, PairingConfig, Rules, Usage, passes
from data_pipeline.tables import on_each, read_pieces
from lato.edits import MAX_TURN

NEEDED = [
    "key", "source_id", "kind", "person", "edit_expression", "edit_intensity", *(f"step_{axis}" for axis in AXES), "misread", "held_out", *STORED_SCORES,
    "phash_source", "phash_target", "target_id", "from_part", "from_row", "from_track", "to_part", "to_row", "to_track",
]  # fmt: skip
"""What verdicts are made from."""
OF_ACCEPTED = [
    "key", "source_id", "target_id", "edit_expression", "edit_intensity", *(f"step_{axis}" for axis in AXES), "sharpness", "from_expression", "to_expression",
    "phash_source", "phash_target", "from_part", "from_row", "from_track", "to_part", "to_row", "to_track",
]  # fmt: skip
"""What is read of accepted pairs, to divide them and to find near-duplicates. All of them are held as Python values, so that no more is read here than that
takes: `samples` reads what samples are made of."""


@dataclass
class Judged:
    """What was decided on a score table."""

    codes: npt.NDArray[np.int8]
    """Of its rows, in `VERDICTS`."""
    similarity: npt.NDArray[np.float32]
    """Of its rows; NaN where identity was not asked for."""
    writing: npt.NDArray[np.float32]
    """Likewise, the share of text."""
    people: dict[str, Vector]
    """Track (`source/track`) -> mean direction of its faces that were asked for. Synthetic people are left out: their identity is declared."""


def judge(uris: list[str], rules: Rules, vectors: Vectors, workers: int = 0, writing: Vectors | None = None) -> list[Judged]:
    """Decides on every scored pair.

    Args:
        uris: Score tables; a person's pairs lie in one row group.
        rules: Thresholds, labels, what is frozen.
        vectors: Identity of the faces.
        workers: Ray actors, used where there are very many pairs; 0 works here.
        writing: Text on the faces; None where it is not computed, and refuses nothing.

    Returns:
        What was decided on each table.
    """
    judged: dict[str, Judged] = {}
    done: set[str] = set()
    todo = list(dict.fromkeys(uris))
    while todo:
        wanted: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for uri, (found, lacking) in zip(
            todo, on_each("judge", functools.partial(_judge_table, rules, vectors, writing), todo, workers), strict=True
        ):
            judged[uri] = replace(found, codes=found.codes.copy())  # of Ray's memory nothing may be changed, and verdicts are added to
            for name, faces in lacking.items():
                for part, row in faces:
                    wanted[name][part].add(row)
            if not lacking:
                done.add(uri)
        for name, group in ((NAME, vectors), (WRITING, writing)):
            if group and name in wanted:
                group.compute(wanted[name])
        todo = [uri for uri in todo if uri not in done]
    return [judged[uri] for uri in uris]


def _judge_table(rules: Rules, vectors: Vectors, writing: Vectors | None, uri: str) -> tuple[Judged, dict[str, set[Face]]]:
    """What is decided with what is known of faces, and those of which something is lacking, by group. Again where a track turned out to be of somebody who is
    held out: pairs of it were decided on before."""
    lacking: dict[str, set[Face]] = defaultdict(set)
    barred = frozenset[str]()
    while True:
        asked = Asked(vectors, writing, rules.bars, barred)
        used = rules.usage.copy()  # a source lies in one table
        pieces = [_judge_piece(table, rules, used, asked) for table in read_pieces(uri, NEEDED)]
        for name, faces in asked.lacking.items():
            lacking[name] |= faces
        if barred == asked.barred_tracks:
            break
        barred = frozenset(asked.barred_tracks)
    codes, similar, text = (
        np.concatenate([piece[n] for piece in pieces]) if pieces else np.zeros(0, kind)
        for n, kind in enumerate((np.int8, np.float32, np.float32))
    )
    return Judged(codes, similar, text, asked.people()), lacking


def _judge_piece(
    table: pa.Table, rules: Rules, used: Usage, asked: Asked
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Verdicts, and what was asked for of their faces: likeness and text."""
    code = _apply_limits(table, rules.config)
    frozen, trained, distinct, good = (
        _among(table["key"], keys)
        for keys in (rules.frozen, rules.trained, rules.distinct, {key for key, label in rules.labels.items() if label})
    )
    if rules.labels:
        good &= ~_read_otherwise(table, good, rules.labelled_edits)
        code[good & (code != CODE["no edit of ours"]) & ~_without_edit(table)] = ACCEPTED
        code[_among(table["key"], {key for key, label in rules.labels.items() if not label})] = CODE["labelled bad"]
    held_out = np.asarray(table["held_out"])
    code[(code == ACCEPTED) & held_out] = CODE["held out"]
    if rules.copies:
        shown = _among(table["source_id"], rules.copies) | _among(table["target_id"], rules.copies)
        code[(code == ACCEPTED) & shown] = CODE["near-duplicate"]
    code[frozen] = ACCEPTED
    code[trained & held_out] = CODE["held out"]
    for verdict in set(rules.taken_out.values()):
        code[_among(table["key"], {key for key, why in rules.taken_out.items() if why == verdict})] = CODE[verdict]
    if rules.taken_out:
        _ask_of(table.filter(pa.array(_among(table["key"], rules.taken_out))), asked)
    return code, *_choose(table, code, Said(frozen, trained, distinct, good), rules.config, used, asked)


def _read_otherwise(table: pa.Table, good: npt.NDArray[np.bool_], labelled: Mapping[str, str]) -> npt.NDArray[np.bool_]:
    """Of pairs that were called good, those that have another edit now than the one that was shown: nobody called that good."""
    rows = np.flatnonzero(good)
    edits, texts = edit_texts(table.take(rows))
    found = np.zeros_like(good)
    found[rows] = [
        texts[edit] != labelled.get(key, texts[edit]) for edit, key in zip(edits.tolist(), table["key"].take(rows).to_pylist(), strict=True)
    ]
    return found


def _ask_of(taken_out: pa.Table, asked: Asked) -> None:
    """Whom samples showed that are none any more: what shows them, too, is tied to their sources as before."""
    asked.open(taken_out)
    for n in range(len(taken_out)):
        asked.similarity(n)


def _without_edit(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Pairs that no label can make a sample of, as `edit_of` has no instruction for them, whatever refused them first."""
    steps = np.stack([np.asarray(table[f"step_{axis}"]) for axis in AXES])
    return ((np.asarray(table["edit_expression"]) < 0) & (steps == 0).all(axis=0)) | (np.abs(steps).max(axis=0) > MAX_TURN)


def _among(column: pa.ChunkedArray, keys: Collection[str]) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.is_in(column, value_set=pa.array(list(keys), pa.string()))) if keys else np.zeros(len(column), bool)


def _apply_limits(table: pa.Table, config: PairingConfig) -> npt.NDArray[np.int8]:
    """First verdict that holds, in the order of `VERDICTS`; what is asked for is not among them yet."""
    expression = np.asarray(table["edit_expression"])
    conditions = [
        np.asarray(table["misread"]),
        ~passes(table["declared_miss"], config.pose_tolerance, -1),
        _without_edit(table)
        | ~passes(table["pose_miss"], config.pose_tolerance, -1)
        | ~passes(table["intensity_gap"], config.max_intensity_gap, -1),
        (expression >= 0) & ~VERIFIABLE[np.maximum(expression, 0)],
    ]
    limits = [name for name in LIMITS if name not in ASKED]
    for score, name, sign in (LIMITS[limit] for limit in limits):  # of what was not computed the build has warned
        conditions.append(~passes(table[score], getattr(config, name), sign))
    codes = [CODE[name] for name in (*FIRST[1:], *limits)]
    return np.select(conditions, codes, ACCEPTED).astype(np.int8)


def _choose(
    table: pa.Table, code: npt.NDArray[np.int8], said: Said, config: PairingConfig, used: Usage, asked: Asked
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Decides on what passed all limits (`Chosen`); returns likeness and text of all rows."""
    similar, text = np.full(len(code), np.nan, np.float32), np.full(len(code), np.nan, np.float32)
    rows = np.flatnonzero(code == ACCEPTED)
    if len(rows):
        chosen = Chosen(table.take(rows), said.take(rows), config, asked)
        chosen.run(used)
        code[rows], similar[rows], text[rows] = chosen.code, chosen.similar, chosen.text
    return similar, text


def count_verdicts(judged: list[Judged]) -> dict[str, int]:
    """Verdict -> pairs, the most frequent first."""
    total = sum((np.bincount(found.codes, minlength=len(VERDICTS)) for found in judged), np.zeros(len(VERDICTS), np.int64))
    return {VERDICTS[code]: int(total[code]) for code in np.argsort(-total, kind="stable") if total[code]}


def row_verdicts(codes: npt.NDArray[np.int8]) -> pa.Array:
    """Codes as the names that are stored."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(VERDICTS)).cast(pa.string())


def passed_sources(uri: str, judged: Judged) -> set[str]:
    """Sources of the pairs of a score table that no filter refused."""
    passed = np.isin(judged.codes, [CODE[name] for name in PASSED])
    found: set[str] = set()
    start = 0
    for table in read_pieces(uri, ["source_id", "target_id"]):
        mine = table.filter(pa.array(passed[start : start + len(table)]))
        found |= {name for column in mine.columns for name in pc.unique(column).to_pylist()}
        start += len(table)
    return found


def held_out_keys(uri: str, judged: Judged, of: frozenset[str]) -> set[str]:
    """Those of some keys whose rows of a score table are held out."""
    found, start = set[str](), 0
    for table in read_pieces(uri, ["key"]) if of else ():
        mine = judged.codes[start : start + len(table)] == CODE["held out"]
        found.update(table["key"].filter(pa.array(mine)).to_pylist())
        start += len(table)
    return found & of


def accepted_rows(uri: str, judged: Judged) -> list[dict[str, Any]]:
    """The accepted rows of a score table (`OF_ACCEPTED`), each with its number as `number`; equal words are one object."""
    found: list[dict[str, Any]] = []
    known: dict[str, str] = {}
    start = 0
    for table in read_pieces(uri, OF_ACCEPTED):
        mine = np.flatnonzero(judged.codes[start : start + len(table)] == ACCEPTED)
        for n, row in zip((mine + start).tolist(), table.take(mine).to_pylist(), strict=True):
            row["number"] = n
            found.append({name: known.setdefault(value, value) if isinstance(value, str) else value for name, value in row.items()})
        start += len(table)
    return found
