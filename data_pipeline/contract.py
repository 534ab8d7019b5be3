"""The contract between the stages of a build: who reads which columns of which table, held against what is written, before anything is looked at.

What is listed here is what the stages read with: a column that is not in a list does not reach its stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from data_pipeline import candidates, cells, extend, identities, judge, observations, pairing, rules, samples
from data_pipeline.groups import GROUPS, Group

PARTS, PAIRS, CANDIDATES = "parts", "pairs", "candidates.parquet"


class Reads(NamedTuple):
    """What a stage reads of a table."""

    stage: str
    table: str
    """`PARTS`, `columns/<group>`, `PAIRS` or `CANDIDATES`, as they lie in a build's folder."""
    columns: Sequence[str]


READS = (
    Reads("groups", PARTS, observations.CHIP_COLUMNS),
    Reads("score", PARTS, pairing.OBSERVED),
    *(Reads("score", f"columns/{group}", names) for group, names in pairing.OF_GROUPS.items()),
    Reads("identities", f"columns/{identities.NAME}", identities.NEEDED),
    Reads("judge", PAIRS, judge.NEEDED),
    Reads("cells", PAIRS, cells.NEEDED),
    Reads("accepted pairs (judge.OF_ACCEPTED)", PAIRS, judge.OF_ACCEPTED),
    Reads("samples", PARTS, samples.OBSERVED),
    Reads("extend", CANDIDATES, extend.NEEDED),
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
    written: dict[str, Collection[str]] = {
        PARTS: observations.SCHEMA.names,
        PAIRS: pairing.SCORE_SCHEMA.names,
        CANDIDATES: candidates.WRITTEN,
        **{f"columns/{name}": ("row", *group.columns) for name, group in groups.items()},
    }
    made_by = {PARTS: "observations.SCHEMA", PAIRS: "pairing.SCORE_SCHEMA", CANDIDATES: "candidates.WRITTEN"}
    found = [
        f"{stage} reads {column} of {table}; {made_by.get(table, 'groups.GROUPS')} does not have it"
        for stage, table, columns in reads
        for column in columns
        if column not in written.get(table, ())
    ]
    return found + _find_clashes(groups) + _find_odd_filters(filters)


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
    """Filters without a score, and groups of which `rules.READ_FROM` says other than `pairing.OF_GROUPS`: a build would warn wrongly, or not at all."""
    found = [
        f"the filter {name} asks for {score}; pairing.SCORES does not have it"
        for name, score in filters.items()
        if score not in pairing.SCORES
    ]
    for group in sorted(pairing.OF_GROUPS.keys() | rules.READ_FROM.keys()):
        told = {filters.get(verdict) for verdict in rules.READ_FROM.get(group, ())}
        if told != set(pairing.OF_GROUPS.get(group, ())):
            found.append(f"the filters of group {group} in rules.READ_FROM do not ask for what score reads of it (pairing.OF_GROUPS)")
    return found
