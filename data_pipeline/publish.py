"""From observations to a published version: scores -> verdicts -> split -> crops -> shards."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.candidates import write_candidates
from data_pipeline.card import write_card
from data_pipeline.config import DataConfig
from data_pipeline.divide import Division, divide
from data_pipeline.extend import Base
from data_pipeline.judge import Judged, accepted_rows, count_verdicts, judge
from data_pipeline.ledger import Ledger
from data_pipeline.models_used import Model
from data_pipeline.near_duplicates import find_across_sources
from data_pipeline.observe import Observed
from data_pipeline.pack import pack, withdraw
from data_pipeline.render import render_crops
from data_pipeline.rewrite import Rewriter
from data_pipeline.rules import CODE, SETTINGS, Rules, Usage
from data_pipeline.samples import crops_to_render, plan_samples
from data_pipeline.score import ScoreInput, score_pairs
from infra.console import heading, say, table
from infra.errors import UserError
from infra.storage import commit_changed, join

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
    ledger = plan.observed.ledger
    tables, judged = _judge(plan)
    if until == "pair":
        raise Stopped(_funnel(ledger, judged, Counter()))
    accepted = [(number, row) for number, uri in enumerate(tables) for row in accepted_rows(uri, judged[number])]
    fresh = [(number, row) for number, row in accepted if not (plan.base and row["key"] in plan.base.keys)]
    centroids = {track: face for found in judged for track, face in found.people.items()}
    division = divide([row for _, row in fresh], plan.observed.items, centroids, plan.base, plan.config.split)
    if plan.base:
        plan.base.check_found([row["key"] for _, row in accepted])
    fresh = _refuse(plan, division, fresh, accepted, judged)
    rows = _render(plan, fresh, judged)
    if until == "render":
        raise Stopped(_funnel(ledger, judged, Counter()))
    if not rows and not plan.base:
        print_funnel(_funnel(ledger, judged, Counter()))
        raise UserError(_say_nothing(ledger))
    return _write(plan, tables, judged, division, rows)


def _judge(plan: Plan) -> tuple[list[str], list[Judged]]:
    """Score tables of all people, and the verdicts on their rows."""
    observed, pairing, base = plan.observed, plan.config.pairing, plan.base
    given = ScoreInput(observed.columns, observed.identities, pairing.margin, pairing.same_person, observed.holdout)
    people = {name: item.identity for name, item in observed.items.items()}
    workers = plan.config.analyze.workers
    tables = score_pairs(observed.ledger.usable(), given, people, plan.work, workers)
    rules = Rules(pairing, plan.labels, base.keys if base else frozenset(), base.usage if base else Usage(), observed.holdout.bars)
    return tables, judge(tables, rules, observed.identities, workers)


def _refuse(plan: Plan, division: Division, fresh: list[Numbered], accepted: list[Numbered], judged: list[Judged]) -> list[Numbered]:
    """New accepted pairs that may go on; of the others, in conflict with the split or seen in another source, it changes the verdict."""
    refused = {row["key"]: verdict for _, row in fresh if (verdict := division.verdict(row))}
    items, published = plan.observed.items, plan.base.keys if plan.base else frozenset[str]()
    again = find_across_sources(
        [row for _, row in accepted if row["key"] not in refused],
        lambda row: division.components.of_source[row["source_id"]],
        {name: item.identity for name, item in items.items()},
        published | {key for key, good in plan.labels.items() if good},
        plan.config.pairing.near_duplicate_bits,
    )
    refused |= dict.fromkeys(again, "near-duplicate")
    for number, row in fresh:
        if row["key"] in refused:
            judged[number].codes[row["number"]] = CODE[refused[row["key"]]]
    return [(number, row) for number, row in fresh if row["key"] not in refused]


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


def _write(plan: Plan, tables: list[str], judged: list[Judged], division: Division, rows: list[dict[str, Any]]) -> DatasetVersion:
    """Writes the version; its index, last, publishes it."""
    config, observed, base, folder = plan.config, plan.observed, plan.base, plan.folder
    rewriter = Rewriter(config.instructions, plan.work)
    planned, rendered = plan_samples(rows, division, observed.items, observed.models_of(), rewriter, plan.work, config.render.seeker)
    splits = {sample.key: sample.split for sample in planned} | (base.splits if base else {})
    funnel = _funnel(observed.ledger, judged, Counter(splits.values())) + rewriter.counts()
    withdraw(folder)
    commit_changed(join(folder, "funnel.json"), json.dumps(funnel, indent=1).encode())
    commit_changed(join(folder, SETTINGS), json.dumps({"pairing": config.pairing.model_dump(mode="json")}, indent=1).encode())
    rendered |= base.rendered if base else {}
    licences = {name: item.licence for name, item in observed.items.items()}
    write_candidates(tables, judged, dict(splits), licences, rendered, folder)
    division.write(folder, plan.work)
    digest = pack(planned, config.pack, folder, config.name, plan.created_from, base, plan.models)
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


def _funnel(ledger: Ledger, judged: list[Judged], samples: Counter[str]) -> list[dict[str, Any]]:
    verdicts = count_verdicts(judged)
    steps: list[tuple[str, str, int]] = [("sources", "in", len(ledger.rows))]
    steps += [("sources", name, count) for name, count in ledger.counts().items()]
    steps += [("frames", "looked at", ledger.total("frames")), ("faces", "found", ledger.total("faces"))]
    steps += [("faces", "representatives", ledger.total("representatives")), ("candidate pairs", "in", sum(verdicts.values()))]
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
