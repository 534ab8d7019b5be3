"""From observations to a published version: scores -> verdicts -> split -> crops -> shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.candidates import write_candidates
from data_pipeline.card import write_card
from data_pipeline.cells import over_quota_of_cells
from data_pipeline.config import DataConfig
from data_pipeline.copies import Copy, find_copies, hash_copies, write_copies
from data_pipeline.divide import Division, Faces, Tied, count_samples, divide, tie
from data_pipeline.extend import Base
from data_pipeline.judge import Judged, accepted_rows, count_verdicts, judge, passed_sources
from data_pipeline.ledger import Ledger
from data_pipeline.models_used import Model
from data_pipeline.motion import Clock
from data_pipeline.near_duplicates import find_across_sources, over_quota_of_people
from data_pipeline.observe import Observed
from data_pipeline.pack import pack, withdraw
from data_pipeline.published import CANDIDATES, sources_of
from data_pipeline.render import render_crops
from data_pipeline.rewrite import Rewriter
from data_pipeline.rules import CODE, SETTINGS, Rules, Usage
from data_pipeline.samples import crops_to_render, plan_samples
from data_pipeline.score import ScoreInput, score_pairs
from data_pipeline.versions import keep_empty
from infra.addresses import join
from infra.console import heading, say, table
from infra.errors import UserError
from infra.storage import commit_changed, sha256_bytes

_MANY = 500
"""Videos of one component, from which on it is asked whether that is too large before they are compared with each other: 512 tracks of a minute take
50 s, and time grows with the square."""
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
    merges: list[tuple[str, str]]
    """Pairs of sources that a person said show one person."""
    models: list[Model]
    work: str
    folder: str
    created_from: str


@dataclass(frozen=True)
class DatasetVersion:
    """A published version."""

    uri: str
    digest: str
    samples: dict[str, int]
    """Split -> count."""
    funnel: list[dict[str, Any]]
    """Rows of step, name, count."""


class Stopped(Exception):
    """A build ended where it was asked to; `funnel` says what would come of it."""

    def __init__(self, funnel: list[dict[str, Any]]) -> None:
        super().__init__("stopped as asked")
        self.funnel = funnel


def publish(plan: Plan, until: Literal["pair", "render"] | None) -> DatasetVersion:
    """Scores, judges, divides, renders and packs; what stands of it is not done again.

    Raises:
        Stopped: At `until`.
        UserError: No pair is left, or the sources cannot be divided.
    """
    found = _judge(plan)
    fresh = _refuse(plan, found)
    if until == "pair":
        raise Stopped(_funnel(plan, found, Counter()))
    if plan.base:
        plan.base.check_found([row["key"] for _, row in found.accepted])
    division = divide([row for _, row in fresh], plan.observed.items, found.tied, plan.base, plan.config.split)
    apart = {row["key"]: verdict for _, row in fresh if (verdict := division.verdict(row))}
    rows = _render(plan, _without(fresh, apart, found.judged), found.judged)
    if until == "render":
        raise Stopped(_funnel(plan, found, Counter()))
    if not rows and not plan.base:
        funnel = _funnel(plan, found, Counter())
        print_funnel(funnel)
        keep_empty(plan.work, plan.config.name, funnel)
        raise UserError(_say_nothing(plan.observed.ledger))
    return _write(plan, found, division, rows)


@dataclass(frozen=True)
class _Found:
    """Score tables of all people, and the verdicts on their rows."""

    tables: list[str]
    judged: list[Judged]
    accepted: list[Numbered]
    fresh: list[Numbered]
    """Those accepted that the version that is extended does not have."""
    centroids: Faces
    tied: Tied
    copies: dict[str, Copy]


def _judge(plan: Plan) -> _Found:
    """Scores and judges; again without copies where there are any, so that quotas and the split count what is used, until no more are found."""
    observed, pairing, base = plan.observed, plan.config.pairing, plan.base
    given = ScoreInput(observed.columns, observed.identities, pairing.margin, pairing.same_person, observed.holdout)
    people = {name: item.identity for name, item in observed.items.items()}
    contents = {row["source_id"]: row["content"] for row in observed.ledger.usable()}
    workers = plan.config.analyze.workers
    tables = score_pairs(observed.ledger.usable(), given, people, plan.work, workers)
    usage, keys = (base.usage, base.keys) if base else (Usage(), frozenset[str]())
    copies: dict[str, Copy] = {}
    compared: list[set[str]] = []
    while True:
        rules = Rules(pairing, plan.labels, keys, usage, observed.holdout.bars, frozenset(copies))
        judged = judge(tables, rules, observed.identities, workers, observed.writing)
        accepted = [(number, row) for number, uri in enumerate(tables) for row in accepted_rows(uri, judged[number])]
        fresh = [(number, row) for number, row in accepted if row["key"] not in keys]
        centroids = {track: face for found in judged for track, face in found.people.items()}
        tied = tie([row for _, row in fresh], observed.items, centroids, base, plan.config.split, copies, contents, plan.merges)
        more = _find_copies(plan, tables, judged, accepted, tied, copies, compared)
        if not more:
            return _Found(tables, judged, accepted, fresh, centroids, tied, copies)
        copies |= more


def _check_large(plan: Plan, accepted: list[dict[str, Any]], tied: Tied) -> None:
    """Ends a build with a component that is too large before its many videos are compared, which would take hours. Pairs that go in any case, bridges and
    those beyond the quotas of people whom faces tell or of the whole dataset, are not counted.

    Raises:
        UserError: One has too much of the data.
    """
    published = plan.base.keys if plan.base else frozenset[str]()
    left = [row for row in accepted if row["key"] in published or not tied.verdict(row)]
    gone = published | _over_quotas(plan, left, tied).keys()
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
    passed = {name for uri, found in zip(tables, judged, strict=True) for name in passed_sources(uri, found)} - known.keys()
    least = Clock(plan.config.analyze.fps).least
    seen = [row for row in plan.observed.ledger.usable() if row["source_id"] in passed and row["frames"] >= least]
    parts = {row["source_id"]: row["parts"] for row in seen}
    published = {name for row in plan.base.rows for name in sources_of(row)} if plan.base else set[str]()
    return find_copies(of, items, parts, published, plan.config.analyze.fps, plan.work, compared)


def _refuse(plan: Plan, found: _Found) -> list[Numbered]:
    """New accepted pairs that may go on; of the others, in conflict with the split, seen in another source, or beyond the quotas of somebody whom faces alone
    tell or of the whole dataset, it changes the verdict."""
    refused = {row["key"]: verdict for _, row in found.fresh if (verdict := found.tied.verdict(row))}
    identities = {name: item.identity for name, item in plan.observed.items.items()}
    published = plan.base.keys if plan.base else frozenset[str]()

    def left() -> list[dict[str, Any]]:
        return [row for _, row in found.accepted if row["key"] not in refused]

    again = find_across_sources(
        left(),
        lambda row: found.tied.components.of_source[row["source_id"]],
        identities,
        published | {key for key, good in plan.labels.items() if good},
        plan.config.pairing.near_duplicate_bits,
    )
    refused |= dict.fromkeys(again, "near-duplicate")
    refused |= _over_quotas(plan, left(), found.tied)
    return _without(found.fresh, refused, found.judged)


def _over_quotas(plan: Plan, rows: list[dict[str, Any]], tied: Tied) -> dict[str, str]:
    """Key -> verdict of the accepted pairs beyond the quotas of somebody whom faces alone tell and, of what these leave, of the whole dataset."""
    pairing, base = plan.config.pairing, plan.base
    identities = {name: item.identity for name, item in plan.observed.items.items()}
    published = base.keys if base else frozenset[str]()
    good = {key for key, called in plan.labels.items() if called}
    refused = dict.fromkeys(over_quota_of_people(rows, tied.components.person_of, identities, published, good, pairing), "quota")
    if pairing.cell_quota is not None:
        left = [row for row in rows if row["key"] not in refused]
        used = base.usage.dataset if base else Counter[int]()
        refused |= dict.fromkeys(over_quota_of_cells(left, used, published, good, pairing.cell_quota), "cell quota")
    return refused


def _without(rows: list[Numbered], refused: Mapping[str, str], judged: list[Judged]) -> list[Numbered]:
    """The rows that are not refused; of the others it changes the verdict."""
    for number, row in rows:
        if row["key"] in refused:
            judged[number].codes[row["number"]] = CODE[refused[row["key"]]]
    return [(number, row) for number, row in rows if row["key"] not in refused]


def _render(plan: Plan, fresh: list[Numbered], judged: list[Judged]) -> list[dict[str, Any]]:
    """Cuts the crops of new accepted pairs, and returns those that have both; of the others it changes the verdict."""
    config = plan.config
    failed = render_crops(
        crops_to_render([row for _, row in fresh], plan.work, config.render.seeker),
        {name: item.uri for name, item in plan.observed.items.items()},
        plan.work,
        config.analyze.workers,
        config.render,
    )
    for name in sorted(failed)[:10]:
        say(f"render failed: {name}: {failed[name]}")
    left = []
    for number, row in fresh:
        if row["source_id"] in failed or row["target_id"] in failed:
            judged[number].codes[row["number"]] = CODE["render failed"]
        else:
            left.append(row)
    return left


def _write(plan: Plan, found: _Found, division: Division, rows: list[dict[str, Any]]) -> DatasetVersion:
    """Writes the version; its index, last, publishes it."""
    config, observed, base, folder = plan.config, plan.observed, plan.base, plan.folder
    published = [(row["split"], row["instruction"]) for row in base.rows] if base else []
    rewriter = Rewriter(config.instructions, plan.work, published)
    planned, rendered = plan_samples(rows, division, observed.items, observed.models_of(), rewriter, plan.work, config.render.seeker)
    splits = {sample.key: sample.split for sample in planned} | (base.splits if base else {})
    funnel = _funnel(plan, found, Counter(splits.values())) + rewriter.counts()
    withdraw(folder)
    settings = {"pairing": config.pairing.model_dump(mode="json")}
    told = {name: json.dumps(value, indent=1).encode() for name, value in (("funnel.json", funnel), (SETTINGS, settings))}
    for file, data in told.items():
        commit_changed(join(folder, file), data)
    files = {file: sha256_bytes(data) for file, data in told.items()}
    rendered |= base.rendered if base else {}
    licences = {name: item.licence for name, item in observed.items.items()}
    files[CANDIDATES] = write_candidates(found.tables, found.judged, dict(splits), licences, rendered, folder)
    write_copies(found.copies, folder)
    shown = [row for _, row in found.accepted if row["key"] in splits]
    files |= hash_copies(found.copies) | division.write(shown, found.centroids, config.split.link_similarity, folder, plan.work)
    digest = pack(planned, config.pack, folder, config.name, plan.created_from, base, plan.models, files)
    write_card(folder)
    return DatasetVersion(folder, digest, dict(Counter(splits.values())), funnel)


def _say_nothing(ledger: Ledger) -> str:
    """Why there is no sample: because of the sources, of the thresholds, or of both."""
    lost = {name: count for name, count in ledger.counts().items() if name != "ok"}
    told = (
        f" Of {len(ledger.rows)} sources, {', '.join(f'{count} {name}' for name, count in lost.items())}: ledger.jsonl says why."
        if lost
        else ""
    )
    faces = ledger.total("representatives")
    mend = "The table above says why; loosen the thresholds under `pairing`." if faces else "No face was found in any source."
    return f"no pair was accepted.{told} {mend}"


def _funnel(plan: Plan, found: _Found, samples: Counter[str]) -> list[dict[str, Any]]:
    ledger, verdicts = plan.observed.ledger, count_verdicts(found.judged)
    steps: list[tuple[str, str, int]] = [("sources", "in", len(ledger.rows))]
    steps += [("sources", name, count) for name, count in ledger.counts(found.copies).items()]
    steps += [("frames", "looked at", ledger.total("frames")), ("faces", "found", ledger.total("faces"))]
    steps += [("faces", "representatives", ledger.total("representatives"))]
    steps += [("faces", reason, count) for reason, count in ledger.not_chosen().items()]
    steps += [("candidate pairs", "in", sum(verdicts.values()))]
    steps += [("candidate pairs", f"rejected: {name}", count) for name, count in verdicts.items() if name != "accepted"]
    steps += [("candidate pairs", "accepted", verdicts.get("accepted", 0))]
    steps += [("samples", split, samples[split]) for split in ("train", "val", "test") if samples]
    return [{"step": step, "name": name, "count": count} for step, name, count in steps]


def print_funnel(funnel: list[dict[str, Any]]) -> None:
    """Shows what became of sources, faces and pairs."""
    heading("Funnel")
    table("", ["step", "what", "count"], [(row["step"], row["name"], row["count"]) for row in funnel])


def print_version(version: DatasetVersion) -> None:
    """Shows the funnel and where the shards are."""
    print_funnel(version.funnel)
    counts = ", ".join(f"{count} {split}" for split, count in sorted(version.samples.items()))
    say(f"  {version.uri}: {counts}; digest {version.digest[:16]}")
