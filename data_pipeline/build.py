"""The whole build: sources -> observations -> scores -> verdicts -> split -> crops -> shards. A rerun redoes nothing that stands."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_pipeline.analyze import AnalyzeConfig, analyze, write_ledger
from data_pipeline.audit import read_labels
from data_pipeline.candidates import write_candidates
from data_pipeline.card import write_card
from data_pipeline.divide import divide
from data_pipeline.extend import Base, read_base
from data_pipeline.groups import backfill, group_digests, group_models
from data_pipeline.holdout import Holdout, HoldoutConfig
from data_pipeline.identities import NAME, Identities, same_person_threshold
from data_pipeline.judge import Judged, accepted_rows, count_verdicts, judge
from data_pipeline.ledger import Ledger
from data_pipeline.models_used import Model, list_models
from data_pipeline.pack import PackConfig, pack, read_index, sweep, withdraw
from data_pipeline.removals import FILE, Removals
from data_pipeline.render import RenderConfig, render_crops
from data_pipeline.rewrite import RewriteConfig, Rewriter
from data_pipeline.rules import READ_FROM, SETTINGS, VERDICTS, PairingConfig, Rules, Usage
from data_pipeline.samples import crops_to_render, plan_samples
from data_pipeline.score import ScoreInput, score_pairs
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.sources import SyntheticConfig, synthetic_sources
from data_pipeline.worklist import WorkItem, check_items, items_from_folder, read_worklist, write_worklist
from infra.config import Config
from infra.console import heading, say, table
from infra.errors import UserError
from infra.state import PUBLISHED, read_json
from infra.storage import commit_changed, exists, join, list_files, sha256_json, sweep_temporaries

VERSION = 8
"""Raise it when the same plan would give other samples."""

NO_SOURCES = "there are no sources: give worklist= (with rows), folder= or synthetic.anny.people="

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
"""Of a version: a folder's name, directly below `versions`, where forgetting looks for it."""


class DataConfig(Config):
    """A dataset build."""

    name: str = Field(default="v1", pattern=_NAME)
    """Name of the version that is published."""
    extends: str | None = Field(default=None, pattern=_NAME)
    """Name of a version of this build whose samples, splits, keys and shards stay as they are; new ones are added."""
    worklist: str | None = None
    """Work list (.parquet, .csv, .jsonl)."""
    folder: str | None = None
    """A folder of videos and images, on disk or in an object store, with all below it; instead of a work list or beside it."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """Generated sources to add; none by default."""
    analyze: AnalyzeConfig = AnalyzeConfig()
    """How sources are looked at."""
    pairing: PairingConfig = PairingConfig()
    """What makes a pair."""
    render: RenderConfig = RenderConfig()
    """How crops are cut."""
    split: SplitConfig = SplitConfig()
    """How samples are divided."""
    instructions: RewriteConfig = RewriteConfig()
    """Rewriting of instructions by a language model; off by default."""
    pack: PackConfig = PackConfig()
    """How shards are cut."""
    holdout: HoldoutConfig = HoldoutConfig()
    """Evaluation sets that training may not see."""


@dataclass(frozen=True)
class DatasetVersion:
    """A published version."""

    uri: str
    digest: str
    samples: dict[str, int]
    """Split -> count."""
    funnel: list[dict[str, Any]]
    """Rows of step, name, count."""


@dataclass(frozen=True)
class Observed:
    """What is known of the sources before anything is paired."""

    items: dict[str, WorkItem]
    ledger: Ledger
    columns: dict[str, str]
    """Column group -> digest."""
    models: dict[str, str]
    """`group/file` of the groups' models -> sha256."""
    identities: Identities
    holdout: Holdout

    def digest(self) -> str:
        """Of all that pairs are made from."""
        tied = [item.model_dump(include={"source_id", "group", "split", "licence"}) for item in self.items.values()]
        parts = sorted(part for row in self.ledger.rows for part in row["parts"])
        return sha256_json({"parts": parts, "columns": self.columns, "items": tied, "holdout": self.holdout.digest})


class Stopped(Exception):
    """A build ended where it was asked to; `funnel` says what would come of it."""

    def __init__(self, funnel: list[dict[str, Any]]) -> None:
        super().__init__("stopped as asked")
        self.funnel = funnel


def build_dataset(
    config: DataConfig, work: str, models: Path, extra: list[WorkItem] | None = None, until: Literal["pair", "render"] | None = None
) -> DatasetVersion:
    """Builds and publishes a dataset version. The caller holds the folder's lease.

    Args:
        config: The build.
        work: Its folder.
        models: Folder of the perception models.
        extra: Sources beside those the config names.
        until: The stage after which to stop.

    Raises:
        Stopped: At `until`; what was done stands.
        UserError: There are no sources, nothing could be paired, or sources are still pending (nothing is published then).
    """
    config = with_own_thresholds(config, models)
    folder = join(work, "versions", config.name)
    _check_name(config, folder)
    observed = observe(config, work, models, extra)
    base = read_base(join(work, "versions", config.extends), work) if config.extends else None
    labels = read_labels(work)
    chosen = config.model_dump(mode="json", include={"pairing", "render", "split", "instructions", "pack"})
    hashes = {name: digest for models_of in _models_of(observed).values() for name, digest in models_of.items()}
    used = list_models(hashes, config.analyze.groups, config.synthetic, config.instructions, base.index.get("models", []) if base else [])
    created_from = sha256_json(
        {
            "version": VERSION,
            "observed": observed.digest(),
            "config": chosen,
            "labels": labels,
            "base": base and base.digest,
            "models": used,
        }
    )
    published = _read_published(folder, created_from)
    if published:
        sweep(folder)  # of a build that was killed after it published
        write_card(folder)
        say(f"  version {config.name} stands already ({sum(published.samples.values())} samples)")
        return published
    return _publish(config, observed, base, labels, folder, work, created_from, used, until)


def _check_name(config: DataConfig, folder: str) -> None:
    if config.extends == config.name:
        raise UserError(f"extends={config.extends}: a version cannot extend itself; give the new one another name (name=...)")
    if exists(join(folder, "index.json")) and "view_of" in read_index(folder):
        raise UserError(f"name={config.name}: a view of that name is there ({folder}); choose another name")


def with_own_thresholds(config: DataConfig, models: Path) -> DataConfig:
    """The config with the recognizer's own same-person threshold wherever none is given."""
    own = same_person_threshold(models, config.analyze.groups)
    fields = {"pairing": "min_similarity", "split": "link_similarity", "holdout": "similarity"}
    lacking = {name: getattr(config, name) for name, field in fields.items() if field not in getattr(config, name).model_fields_set}
    return config.model_copy(update={name: part.model_copy(update={fields[name]: own}) for name, part in lacking.items()})


def observe(config: DataConfig, work: str, models: Path, extra: list[WorkItem] | None = None) -> Observed:
    """Looks at all sources: work list, ledger, columns. What stands is not done again."""
    sweep_temporaries(work)
    for group in sorted(READ_FROM.keys() - set(config.analyze.groups.names)):
        say(f"  warning: analyze.groups.names has no {group}: not computed, and no pair is refused as {' or '.join(READ_FROM[group])}")
    digests = group_digests(models, config.analyze.groups)
    items = _sources(config, work, models, extra or [])
    holdout = Holdout.read(config.holdout, models, config.analyze.groups)
    ledger = analyze(items, config.analyze, models, work)
    write_ledger(ledger, join(work, "ledger.jsonl"))
    _stop_if_pending(ledger)
    parts = [part for row in ledger.usable() for part in row["parts"]]
    groups, workers = config.analyze.groups, config.analyze.workers
    identities = Identities.open(work, digests, groups, models, workers)
    backfill(parts, {name: digest for name, digest in digests.items() if name != NAME}, groups, models, work, workers)
    return Observed({item.source_id: item for item in items}, ledger, digests, group_models(models, groups), identities, holdout)


def print_version(version: DatasetVersion) -> None:
    """Shows the funnel and where the shards are."""
    print_funnel(version.funnel)
    counts = ", ".join(f"{count} {split}" for split, count in sorted(version.samples.items()))
    say(f"  {version.uri}: {counts}; digest {version.digest[:16]}")


def read_sources(config: DataConfig, extra: list[WorkItem]) -> list[WorkItem]:
    """The work items that a config names, and others; duplicates merged."""
    items = list(extra)
    if config.worklist:
        items += read_worklist(config.worklist)
    if config.folder:
        items += items_from_folder(config.folder)
    return check_items(items, "the sources")


def _sources(config: DataConfig, work: str, models: Path, extra: list[WorkItem]) -> list[WorkItem]:
    """All sources, generated ones too, without what was removed; written as the build's work list."""
    removals = Removals.read(work)
    named = read_sources(config, extra)
    given = removals.keep(named)  # before anything is generated of them
    made = synthetic_sources(config.synthetic, given, models, work)
    items = given + removals.keep(made)
    if len(items) < len(named) + len(made):
        say(f"  {len(named) + len(made) - len(items)} sources are left out: they were removed from this build ({FILE})")
    if not items:
        raise UserError(NO_SOURCES)
    write_worklist(items, join(work, "worklist.parquet"))
    return items


def _publish(
    config: DataConfig,
    observed: Observed,
    base: Base | None,
    labels: dict[str, bool],
    folder: str,
    work: str,
    created_from: str,
    used: list[Model],
    until: str | None,
) -> DatasetVersion:
    usable = observed.ledger.usable()
    workers = config.analyze.workers
    given = ScoreInput(observed.columns, observed.identities, config.pairing.margin, config.pairing.same_person, observed.holdout)
    identities = {name: item.identity for name, item in observed.items.items()}
    tables = score_pairs(usable, given, identities, work, workers)
    rules = Rules(config.pairing, labels, base.keys if base else frozenset(), base.usage if base else Usage(), observed.holdout.bars)
    judged = judge(tables, rules, observed.identities, workers)
    accepted = [(number, row) for number, uri in enumerate(tables) for row in accepted_rows(uri, judged[number])]
    fresh = [(number, row) for number, row in accepted if not (base and row["key"] in base.keys)]

    if until == "pair":
        raise Stopped(_funnel(observed.ledger, judged, Counter()))
    centroids = {track: face for found in judged for track, face in found.people.items()}
    division = divide([row for _, row in fresh], observed.items, centroids, base, config.split)
    if base:
        base.check_found([row["key"] for _, row in accepted])
    refused = {row["key"]: division.verdict(row) for _, row in fresh}
    failed = render_crops(
        crops_to_render([row for _, row in fresh if not refused[row["key"]]], work, config.render.seeker),
        {name: item.uri for name, item in observed.items.items()},
        work,
        workers,
        config.render,
    )
    for name in sorted(failed)[:10]:
        say(f"render failed: {name}: {failed[name]}")
    for number, row in fresh:
        lost = "render failed" if row["source_id"] in failed or row["target_id"] in failed else None
        refused[row["key"]] = refused[row["key"]] or lost
        if refused[row["key"]]:
            judged[number].codes[row["number"]] = VERDICTS.index(str(refused[row["key"]]))
    if until == "render":
        raise Stopped(_funnel(observed.ledger, judged, Counter()))
    rows = [row for _, row in fresh if not refused[row["key"]]]
    if not rows and not base:
        print_funnel(_funnel(observed.ledger, judged, Counter()))
        raise UserError(_say_nothing(observed.ledger))
    rewriter = Rewriter(config.instructions, work)
    planned, rendered = plan_samples(rows, division, observed.items, _models_of(observed), rewriter, work, config.render.seeker)
    splits = {sample.key: sample.split for sample in planned} | (base.splits if base else {})
    funnel = _funnel(observed.ledger, judged, Counter(splits.values())) + rewriter.counts()
    withdraw(folder)
    commit_changed(join(folder, "funnel.json"), json.dumps(funnel, indent=1).encode())
    commit_changed(join(folder, SETTINGS), json.dumps({"pairing": config.pairing.model_dump(mode="json")}, indent=1).encode())
    rendered |= base.rendered if base else {}
    licences = {name: item.licence for name, item in observed.items.items()}
    write_candidates(tables, judged, dict(splits), licences, rendered, folder)
    division.write(folder, work)
    digest = pack(planned, config.pack, folder, config.name, created_from, base, used)
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


def _models_of(observed: Observed) -> dict[str, dict[str, str]]:
    """Source id -> every model that had a part in its pairs, with its sha256."""
    return {row["source_id"]: row["models"] | observed.models for row in observed.ledger.usable()}


def _stop_if_pending(ledger: Ledger) -> None:
    pending = ledger.with_status("pending")
    if pending:
        names = ", ".join(row["source_id"] for row in pending[:5])
        raise UserError(
            f"{len(pending)} of {len(ledger.rows)} sources are still pending ({names}...): their workers ended before a verdict. "
            "Nothing is published. Run the same command again; it goes on where it stopped."
        )


def _read_published(folder: str, created_from: str) -> DatasetVersion | None:
    if not exists(join(folder, "index.json")):
        return None
    index = read_index(folder)
    if index.get("created_from") != created_from:
        return None
    named = {shard["name"] for shard in index["shards"]} | {index["manifest"], index["candidates"], "funnel.json", SETTINGS}
    lying = {uri.rsplit("/", 1)[-1] for folder_of in (folder, join(folder, "shards")) for uri in list_files(folder_of)}
    if named - lying:
        say(f"  {folder}: {', '.join(sorted(named - lying)[:3])} is missing; the version is written again")
        return None
    counts: Counter[str] = Counter()
    for shard in index["shards"]:
        counts[shard["split"]] += shard["count"]
    return DatasetVersion(folder, index["digest"], dict(counts), read_json(join(folder, "funnel.json"), mend=PUBLISHED))


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
