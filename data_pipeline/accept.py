"""Which candidate pairs of a build go on: verdicts, what ties sources, copies of clips, and the quotas that need to know who is one person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data_pipeline.cells import over_quota_of_cells
from data_pipeline.config import DataConfig
from data_pipeline.copies import Copy, find_copies
from data_pipeline.divide import Faces, Tied, count_samples, tie
from data_pipeline.extend import Base
from data_pipeline.judge import Judged, accepted_rows, held_out_keys, judge, passed_sources
from data_pipeline.models_used import Model
from data_pipeline.motion import Clock
from data_pipeline.near_duplicates import find_across_sources, over_quota_of_people
from data_pipeline.observe import Observed
from data_pipeline.rules import CODE, Rules
from data_pipeline.score import ScoreInput, count_left_out, score_pairs
from data_pipeline.taken_out import MERGED, sources_in

_MANY = 500
"""Videos of one component, from which on it is asked whether that is too large before they are compared with each other: the time of that
grows with the square."""
Numbered = tuple[int, dict[str, Any]]
"""A row of a score table, and the table's number."""


@dataclass(frozen=True)
class Plan:
    """All that a version is made from, and where it goes."""

    config: DataConfig
    observed: Observed
    base: Base | None
    """The version that is extended."""
    labels: dict[str, bool]
    """Key -> what a person said of the pair."""
    distinct: frozenset[str]
    """Keys of pairs that a person said are no near-duplicates."""
    merges: list[tuple[str, str]]
    """Pairs of sources that a person said show one person."""
    models: list[Model]
    work: str
    folder: str
    created_from: str
    labelled_edits: Mapping[str, str] = field(default_factory=dict)
    """Key -> the edit that was shown to whoever labelled it."""

    @property
    def preferred(self) -> set[str]:
        """Keys of pairs that come before others where there is no room for all, and are no near-duplicates."""
        return {key for key, good in self.labels.items() if good} | self.distinct

    @property
    def published(self) -> frozenset[str]:
        """Keys of what is published in the version that this one extends."""
        return self.base.keys if self.base else frozenset()

    @property
    def people(self) -> dict[str, str | None]:
        """Who each source declares."""
        return {name: item.identity for name, item in self.observed.items.items()}


@dataclass(frozen=True)
class Found:
    """Score tables of all people, and the verdicts on their rows."""

    tables: list[str]
    judged: list[Judged]
    accepted: list[Numbered]
    fresh: list[Numbered]
    """Those accepted that the version that is extended does not have."""
    centroids: Faces
    tied: Tied
    copies: dict[str, Copy]
    left_out: int
    """Representatives that no pair was made of (`count_left_out`)."""


def judge_pairs(plan: Plan) -> tuple[Plan, Found]:
    """Scores and judges; again without copies where there are any, and without samples of the extended version that are held out now, so that quotas and the
    split count what is used, until no more are found. Returns the plan with what stays of that version, too."""
    observed, pairing = plan.observed, plan.config.pairing
    published = plan.base.faces if plan.base else {}
    holdout = observed.holdout.with_faces(observed.ledger.usable(), plan.people, observed.identities, plan.work)
    given = ScoreInput(observed.columns, observed.identities, pairing.margin, pairing.same_person, holdout, published)
    contents = {row["source_id"]: row["content"] for row in observed.ledger.usable()}
    workers = plan.config.analyze.workers
    tables = score_pairs(observed.ledger.usable(), given, plan.people, plan.work, workers)
    if plan.base:
        plan = replace(plan, base=plan.base.as_joined_in(tables))
    copies: dict[str, Copy] = {}
    compared: list[set[str]] = []
    while True:
        base = plan.base
        rules = Rules(
            pairing, plan.labels, plan.labelled_edits, plan.published, bars=holdout.bars, distinct=plan.distinct, copies=frozenset(copies)
        )
        if base:
            taken_out = {key: one.verdict for key, one in base.taken_out.items()}
            rules = replace(rules, usage=base.usage, trained=base.trained, taken_out=taken_out)
        judged = judge(tables, rules, observed.identities, workers, observed.writing)
        gone = {key for uri, found in zip(tables, judged, strict=True) for key in held_out_keys(uri, found, plan.published)}
        if base and gone:
            plan = replace(plan, base=base.without(dict.fromkeys(gone, "held out")))
            continue
        accepted = [(number, row) for number, uri in enumerate(tables) for row in accepted_rows(uri, judged[number])]
        fresh = [(number, row) for number, row in accepted if row["key"] not in plan.published]
        centroids = {track: face for found in judged for track, face in found.people.items()}
        tied = tie([row for _, row in fresh], observed.items, centroids, base, plan.config.split, copies, contents, plan.merges)
        more = _find_copies(plan, tables, judged, accepted, tied, copies, compared)
        if not more:
            return plan, Found(tables, judged, accepted, fresh, centroids, tied, copies, count_left_out(tables))
        copies |= more


def _check_large(plan: Plan, accepted: list[dict[str, Any]], tied: Tied) -> None:
    """Ends a build with a component that is too large before its many videos are compared, which would take hours. Pairs that go in any case, bridges and
    those beyond the quotas of people whom faces tell or of the whole dataset, are not counted.

    Raises:
        UserError: One has too much of the data.
    """
    left = [row for row in accepted if row["key"] in plan.published or not tied.verdict(row)]
    gone = plan.published | _over_quotas(plan, left, tied).keys()
    count_samples([row for row in left if row["key"] not in gone], tied, plan.config.split)


def _find_copies(
    plan: Plan,
    tables: list[str],
    judged: list[Judged],
    accepted: list[Numbered],
    tied: Tied,
    known: Mapping[str, Copy],
    compared: list[set[str]],
) -> dict[str, Copy]:
    """Copies among the tied videos of which no filter refused every pair, beyond those that are known."""
    items, of = plan.observed.items, tied.components.of_source
    sizes = Counter(of[name] for name, item in items.items() if item.kind == "video" and name in of and name not in known)
    if plan.config.pairing.near_duplicate_bits < 0 or max(sizes.values(), default=0) < 2:
        return {}
    if max(sizes.values()) >= _MANY:
        _check_large(plan, [row for _, row in accepted], tied)
    passed = {name for uri, found in zip(tables, judged, strict=True) for name in passed_sources(uri, found)}
    if plan.base:  # what it took out passed all filters once, and is not to come back in another's clip
        passed |= sources_in((), plan.base.taken_out)
    passed -= known.keys()
    least = Clock(plan.config.analyze.fps).least
    seen = [row for row in plan.observed.ledger.usable() if row["source_id"] in passed and row["frames"] >= least]
    parts = {row["source_id"]: row["parts"] for row in seen}
    published = plan.base.sources if plan.base else set[str]()
    return find_copies(of, items, parts, published, plan.config.analyze.fps, plan.work, compared)


def refuse(plan: Plan, found: Found) -> list[Numbered]:
    """New accepted pairs that may go on; of the others, in conflict with the split, seen in another source, or beyond the quotas of somebody whom faces alone
    tell or of the whole dataset, it changes the verdict."""
    refused = {row["key"]: verdict for _, row in found.fresh if (verdict := found.tied.verdict(row))}
    if plan.base and (given_up := plan.base.given_up(plan.merges)):
        refused |= {row["key"]: MERGED for _, row in found.fresh if {row["source_id"], row["target_id"]} & given_up}

    def left() -> list[dict[str, Any]]:
        return [row for _, row in found.accepted if row["key"] not in refused]

    again = find_across_sources(
        left(),
        lambda row: found.tied.components.of_source[row["source_id"]],
        plan.people,
        plan.published | plan.preferred,
        plan.config.pairing.near_duplicate_bits,
    )
    refused |= dict.fromkeys(again, "near-duplicate")
    refused |= _over_quotas(plan, left(), found.tied)
    return without(found.fresh, refused, found.judged)


def _over_quotas(plan: Plan, rows: list[dict[str, Any]], tied: Tied) -> dict[str, str]:
    """Key -> verdict of the accepted pairs beyond the quotas of somebody whom faces alone tell and, of what these leave, of the whole dataset."""
    pairing, base = plan.config.pairing, plan.base
    published, first = plan.published, plan.preferred
    refused = dict.fromkeys(over_quota_of_people(rows, tied.components.person_of, plan.people, published, first, pairing), "quota")
    if pairing.cell_quota is not None:
        left = [row for row in rows if row["key"] not in refused]
        used = base.usage.dataset if base else Counter[int]()
        refused |= dict.fromkeys(over_quota_of_cells(left, used, published, first, pairing.cell_quota), "cell quota")
    return refused


def without(rows: list[Numbered], refused: Mapping[str, str], judged: list[Judged]) -> list[Numbered]:
    """The rows that are not refused; of the others it changes the verdict."""
    for number, row in rows:
        if row["key"] in refused:
            judged[number].codes[row["number"]] = CODE[refused[row["key"]]]
    return [(number, row) for number, row in rows if row["key"] not in refused]
