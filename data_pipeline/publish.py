"""From observations to a published version: scores -> verdicts -> split -> crops -> shards."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.accept import Found, Numbered, Plan, judge_pairs, refuse, without
from data_pipeline.candidates import write_candidates
from data_pipeline.card import write_card
from data_pipeline.copies import hash_copies, write_copies
from data_pipeline.divide import Division, divide
from data_pipeline.extension_checks import check_found
from data_pipeline.judge import Judged, count_verdicts
from data_pipeline.ledger import Ledger
from data_pipeline.pack import pack, withdraw
from data_pipeline.pair_columns import Pairs, read_pairs
from data_pipeline.published import CANDIDATES
from data_pipeline.render import render_crops
from data_pipeline.rewrite import Rewriter
from data_pipeline.rules import CODE, SETTINGS
from data_pipeline.samples import crops_to_render, name_crops, plan_samples
from data_pipeline.tracks import NOT_SHARPEST
from data_pipeline.versions import keep_empty
from infra.addresses import join
from infra.console import heading, say, table
from infra.errors import UserError
from infra.storage import commit_changed, sha256_bytes


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
    plan, found = judge_pairs(plan)
    if plan.base:
        for reason, count in plan.base.count_taken_out().items():
            say(f"  {count} samples of version {plan.base.index['name']}, which is extended, are taken out: {reason}")
    fresh = refuse(plan, found)
    if until == "pair":
        raise Stopped(_funnel(plan, found, Counter()))
    if plan.base:
        check_found(plan.base, [row["key"] for _, row in found.accepted])
    division = divide([row for _, row in fresh], plan.observed.items, found.tied, plan.base, plan.config.split)
    apart = {row["key"]: verdict for _, row in fresh if (verdict := division.verdict(row))}
    left = without(fresh, apart, found.judged)
    pairs = read_pairs(found.tables, found.judged, [(number, row["number"]) for number, row in left], plan.work)
    names = name_crops(pairs, plan.config.render.seeker)
    kept = _render(plan, left, pairs, names, found.judged)
    if until == "render":
        raise Stopped(_funnel(plan, found, Counter()))
    if not kept and not plan.base:
        funnel = _funnel(plan, found, Counter())
        print_funnel(funnel)
        keep_empty(plan.work, plan.config.name, funnel)
        raise UserError(_say_nothing(plan.observed.ledger))
    return _write(plan, found, division, pairs, names, kept)


def _render(plan: Plan, fresh: list[Numbered], pairs: Pairs, names: list[list[str]], judged: list[Judged]) -> list[int]:
    """Cuts the crops of new accepted pairs, and returns which have both; of the others it changes the verdict."""
    config = plan.config
    failed = render_crops(
        crops_to_render(pairs, names),
        {name: item.uri for name, item in plan.observed.items.items()},
        plan.work,
        config.analyze.workers,
        config.render,
    )
    for name in sorted(failed)[:10]:
        say(f"render failed: {name}: {failed[name]}")
    left = []
    for n, (number, row) in enumerate(fresh):
        if row["source_id"] in failed or row["target_id"] in failed:
            judged[number].codes[row["number"]] = CODE["render failed"]
        else:
            left.append(n)
    return left


def _write(plan: Plan, found: Found, division: Division, pairs: Pairs, names: list[list[str]], kept: list[int]) -> DatasetVersion:
    """Writes the version; its index, last, publishes it."""
    config, observed, base, folder = plan.config, plan.observed, plan.base, plan.folder
    published = [(row["split"], row["instruction"]) for row in base.rows] if base else []
    rewriter = Rewriter(config.instructions, plan.work, published)
    planned = plan_samples(pairs, names, kept, division, observed.items, observed.models_of(), rewriter, plan.work)
    rendered = {sample.key: names[n] for sample, n in zip(planned, kept, strict=True)}
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


def _funnel(plan: Plan, found: Found, samples: Counter[str]) -> list[dict[str, Any]]:
    ledger, verdicts = plan.observed.ledger, count_verdicts(found.judged)
    steps: list[tuple[str, str, int]] = [("sources", "in", len(ledger.rows))]
    steps += [("sources", name, count) for name, count in ledger.counts(found.copies).items()]
    steps += [("frames", "looked at", ledger.total("frames")), ("faces", "found", ledger.total("faces"))]
    # the ledger counts piece by piece: of a track that goes on over pieces, some are no longer chosen
    not_chosen = Counter(ledger.not_chosen()) + Counter({NOT_SHARPEST: found.left_out})
    steps += [("faces", "representatives", ledger.total("representatives") - found.left_out)]
    steps += [("faces", reason, count) for reason, count in sorted(not_chosen.items())]
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
