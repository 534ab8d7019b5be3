"""The contract between the stages of a build: who reads which columns of which table, and as what, held against what is written, before anything is looked at.

What is listed here is what the stages read with: a column that is not in a list does not reach its stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from data_pipeline import candidates, extend, identities, joins, judge, motion, observations, pair_columns, pairing, published, rules
from data_pipeline.groups import GROUPS, Group
from lato.pairs import MEMBERS

PARTS, PAIRS, CANDIDATES, MANIFEST = "parts", "pairs", published.CANDIDATES, published.MANIFEST


class Reads(NamedTuple):
    """What a stage reads of a table."""

    stage: str
    table: str
    """`PARTS`, `columns/<group>`, `PAIRS`, `CANDIDATES` or `MANIFEST`, as they lie in a build's folder."""
    columns: Sequence[str]


def _typed(**columns: str) -> dict[str, pa.DataType]:
    """Column -> type, of the names that are given by type."""
    kinds = {
        "text": pa.string(), "flag": pa.bool_(), "float32": pa.float32(), "float64": pa.float64(), "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(),
        "int64": pa.int64(), "data": pa.binary(), "hash": pa.binary(32), "floats": pa.list_(pa.float32()), "doubles": pa.list_(pa.float64()),
        "texts": pa.list_(pa.string()),
    }  # fmt: skip
    return {name: kinds[kind] for kind, names in columns.items() for name in names.split()}


_SCORED = _typed(
    text="key source_id target_id kind person scope from_part to_part from_expression to_expression",
    flag="misread held_out",
    int8="edit_expression edit_intensity",
    int16="step_yaw step_pitch step_roll",
    int32="from_row from_track from_width to_row to_track",
    float32=" ".join(pairing.STORED_SCORES),
    float64="from_skin_ita from_face_px to_face_px from_expression_intensity to_expression_intensity",
    doubles="crop_source crop_target",
    hash="phash_source phash_target",
)
TYPES: Mapping[str, Mapping[str, pa.DataType]] = {
    PARTS: _typed(
        text="source_id source_sha256 kind identity image_uri expression declared",
        flag="representative at_start goes_on",
        int32="track width height",
        int64="frame",
        float32="yaw pitch roll expression_intensity sharpness noise clipped blockiness letterbox face_px skin_ita",
        float64="pts",
        data="chip",
        floats="box landmarks blendshapes",
        doubles="chip_transform",
        hash="phash",
    ),
    "columns/identity": _typed(int32="row", floats="embedding"),
    "columns/occlusion": _typed(float32="occlusion"),
    "columns/writing": _typed(int32="row", float32="writing"),
    "columns/surroundings": _typed(floats="background clothing"),
    "columns/fer": _typed(floats="fer_scores"),
    PAIRS: _SCORED,
    CANDIDATES: _SCORED | _typed(text="verdict edit edit_kind split licence", float32="similarity writing", texts="rendered"),
    MANIFEST: _typed(
        text="key split kind source_id identity instruction edit_kind expression intensity shard licence consent url target_id target_licence target_consent "
        "target_url",
        int64="yaw pitch roll " + " ".join(f"{member}_{what}" for member in MEMBERS for what in ("offset", "length")),
        float64="identity_similarity",
    ),
}
"""Table -> column -> what its readers take it for. Who changes the type of a column looks at them, and says so here."""
READS = (
    Reads("groups", PARTS, observations.CHIP_COLUMNS),
    Reads("score", PARTS, pairing.OBSERVED),
    *(Reads("score", f"columns/{group}", names) for group, names in pairing.OF_GROUPS.items()),
    *(Reads("what is asked for", f"columns/{name}", columns) for name, columns in identities.NEEDED.items()),
    Reads("judge", PAIRS, judge.NEEDED),
    Reads("accepted pairs (judge.OF_ACCEPTED)", PAIRS, judge.OF_ACCEPTED),
    Reads("joins", PARTS, joins.OBSERVED),
    Reads("samples", PAIRS, pair_columns.SCORED),
    Reads("samples", PARTS, pair_columns.OBSERVED),
    Reads("copies", PARTS, motion.READ),
    Reads("extend", CANDIDATES, extend.NEEDED),
    Reads("whoever opens a version", MANIFEST, tuple(TYPES[MANIFEST])),
)
FILTERS = {verdict: score for verdict, (score, _, _) in (rules.LIMITS | rules.VERIFIERS).items()}
"""Verdict -> its score."""


def check_contract() -> None:
    """Holds what is read against what is written. Groups that a config leaves out are no mistake: the build warns of them.

    Raises:
        AssertionError: They do not fit: a mistake in the code. All of them, a line each.
    """
    mistakes = find_mistakes(GROUPS, READS, FILTERS)
    if mistakes:
        raise AssertionError("the stages do not fit together:\n" + "\n".join(f"  {mistake}" for mistake in mistakes))


def find_mistakes(groups: Mapping[str, Group], reads: Sequence[Reads], filters: Mapping[str, str]) -> list[str]:
    """What does not fit: stage, column, and where it should come from."""
    written: dict[str, Mapping[str, pa.DataType]] = {
        PARTS: _columns(observations.SCHEMA),
        PAIRS: _columns(pairing.SCORE_SCHEMA),
        CANDIDATES: _columns(candidates.SCHEMA),
        MANIFEST: _columns(published.MANIFEST_SCHEMA),
        **{f"columns/{name}": {"row": pa.int32(), **group.columns} for name, group in groups.items()},
    }
    made_by = {
        PARTS: "observations.SCHEMA",
        PAIRS: "pairing.SCORE_SCHEMA",
        CANDIDATES: "candidates.SCHEMA",
        MANIFEST: "published.MANIFEST_SCHEMA",
    }
    found = []
    for stage, table, columns in reads:
        for column in columns:
            made, taken_for, maker = (
                written.get(table, {}).get(column),
                TYPES.get(table, {}).get(column),
                made_by.get(table, "groups.GROUPS"),
            )
            if made is None:
                found.append(f"{stage} reads {column} of {table}; {maker} does not have it")
            elif taken_for is None:
                found.append(f"{stage} reads {column} of {table}; contract.TYPES does not say as what")
            elif made != taken_for:
                found.append(f"{stage} reads {column} of {table} as {taken_for}; {maker} has it as {made}")
    return found + _find_clashes(groups) + _find_odd_filters(filters)


def _columns(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in schema}


def _find_clashes(groups: Mapping[str, Group]) -> list[str]:
    """Columns of one name: `score` puts a face's observations and its groups' columns into one row."""
    writers: dict[str, list[str]] = defaultdict(list)
    for column in (*observations.SCHEMA.names, "row", "part", "held_out"):  # the last three are given by the stages
        writers[column].append("observations")
    for name, group in groups.items():
        for column in group.columns:
            writers[column].append(f"group {name}")
    return [f"{column} is written by {' and '.join(names)}; rename one" for column, names in writers.items() if len(names) > 1]


def _find_odd_filters(filters: Mapping[str, str]) -> list[str]:
    """Filters without a score, and groups of which `rules.READ_FROM` says other than what is read of them: a build would warn wrongly, or not at all."""
    found = [
        f"the filter {name} asks for {score}; pairing.SCORES does not have it"
        for name, score in filters.items()
        if score not in pairing.SCORES
    ]
    read_of = pairing.OF_GROUPS | {identities.WRITING: identities.NEEDED[identities.WRITING][1:]}
    for group in sorted(read_of.keys() | rules.READ_FROM.keys()):
        told = {filters.get(verdict) for verdict in rules.READ_FROM.get(group, ())}
        if told != {pairing.SCORE_OF.get(column, column) for column in read_of.get(group, ())}:
            found.append(
                f"the filters of group {group} in rules.READ_FROM do not ask for what is read of it (pairing.OF_GROUPS, identities.NEEDED)"
            )
    return found
