"""What is known of the sources before anything is paired: work list, ledger, columns. What stands is not done again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.analyze import analyze, write_ledger
from data_pipeline.config import DataConfig
from data_pipeline.contract import check_contract
from data_pipeline.duplicates import refuse_renamed
from data_pipeline.extend import Base
from data_pipeline.extension_checks import check_worklist
from data_pipeline.folders import items_from_folder
from data_pipeline.groups import backfill, group_digests, group_models
from data_pipeline.holdout import Holdout
from data_pipeline.identities import NAME, WRITING, AskedGroup
from data_pipeline.ledger import Ledger
from data_pipeline.places import places_of
from data_pipeline.removals import FILE, Removals
from data_pipeline.rules import READ_FROM
from data_pipeline.segments import refusal
from data_pipeline.synthetic.sources import synthetic_sources
from data_pipeline.taken_out import read_merges
from data_pipeline.worklist import WorkItem, check_items, read_worklist, write_worklist
from infra.addresses import join
from infra.console import say
from infra.errors import UserError
from infra.pool import prepare_places
from infra.scratch import sweep_scratch
from infra.storage import sha256_json, sweep_temporaries

NO_SOURCES = "there are no sources: give worklist= (with rows), folder= or synthetic.anny.people="


@dataclass(frozen=True)
class Observed:
    """What is known of the sources before anything is paired."""

    items: dict[str, WorkItem]
    ledger: Ledger
    columns: dict[str, str]
    """Column group -> digest."""
    models: dict[str, str]
    """`group/file` of the groups' models -> sha256."""
    identities: AskedGroup
    writing: AskedGroup | None
    """None where it is not computed."""
    holdout: Holdout

    def digest(self) -> str:
        """Of all that pairs are made from."""
        tied = [item.model_dump(include={"source_id", "group", "split", "licence", "consent", "url"}) for item in self.items.values()]
        parts = sorted(part for row in self.ledger.rows for part in row["parts"])
        outcomes = [[row["source_id"], row["status"], row["reason"]] for row in self.ledger.rows]  # another look may end otherwise
        made_of = {"parts": parts, "outcomes": outcomes, "columns": self.columns, "items": tied, "holdout": self.holdout.digest}
        stated = self.identities.config.pack_threshold  # by which tracks are joined; a known one comes with its recognizer
        return sha256_json(made_of | ({} if stated is None else {"pack_threshold": stated}))

    def models_of(self) -> dict[str, dict[str, str]]:
        """Source id -> every model that had a part in its pairs, with its sha256."""
        return {row["source_id"]: row["models"] | self.models for row in self.ledger.usable()}

    def all_models(self) -> dict[str, str]:
        """Those of all sources together."""
        return {name: digest for of in self.models_of().values() for name, digest in of.items()}


def observe(config: DataConfig, work: str, models: Path, extra: list[WorkItem] | None = None, base: Base | None = None) -> Observed:
    """Looks at all sources: work list, ledger, columns. What stands is not done again.

    Args:
        config: The build.
        work: Its folder.
        models: Folder of the perception models.
        extra: Sources beside those the config names.
        base: The version that is extended.
    """
    check_contract()
    sweep_temporaries(work)
    sweep_scratch()
    prepare_places(places_of(config))
    for group in sorted(READ_FROM.keys() - set(config.analyze.groups.names)):
        say(f"  warning: analyze.groups.names has no {group}: not computed, and no pair is refused as {' or '.join(READ_FROM[group])}")
    groups, workers = config.analyze.groups, config.analyze.workers
    digests = group_digests(models, groups)
    identities = AskedGroup.open(NAME, work, digests, groups, models, workers)
    writing = AskedGroup.open(WRITING, work, digests, groups, models, workers) if WRITING in digests else None
    items = _sources(config, work, models, extra or [], base)
    holdout = Holdout.read(config.holdout, models, config.analyze.groups)
    published = base.sources if base else set[str]()
    ledger = refuse_renamed(analyze(items, config.analyze, models, work, published), items, published, work)
    write_ledger(ledger, join(work, "ledger.jsonl"))
    _stop_if_pending(ledger)
    usable = {row["source_id"] for row in ledger.usable()}
    holdout = holdout.find_sources(items, usable, work).with_photos(items, usable, models, groups)
    parts = [part for row in ledger.usable() for part in row["parts"]]
    backfill(parts, {name: digest for name, digest in digests.items() if name not in (NAME, WRITING)}, groups, models, work, workers)
    return Observed({item.source_id: item for item in items}, ledger, digests, group_models(models, groups), identities, writing, holdout)


def read_sources(config: DataConfig, extra: list[WorkItem], work: str) -> list[WorkItem]:
    """What a build would look at, but for what it generates: the work items that a config names, and others, without those that were removed."""
    return Removals.read(work).keep(_named_sources(config, extra, work))


def _named_sources(config: DataConfig, extra: list[WorkItem], work: str) -> list[WorkItem]:
    """The work items that a config names, and others; duplicates merged. What lies in the build's own folder is none."""
    items = list(extra)
    if config.worklist:
        items += read_worklist(config.worklist)
    if config.folder:
        items += items_from_folder(config.folder, work)
    return check_items(items, "the sources")


def _sources(config: DataConfig, work: str, models: Path, extra: list[WorkItem], base: Base | None) -> list[WorkItem]:
    """All sources, generated ones too, without what was removed; written as the build's work list."""
    removals = Removals.read(work)
    named = _named_sources(config, extra, work)
    given = removals.keep(named)  # before anything is generated of them
    made = synthetic_sources(config.synthetic, [item for item in given if refusal(item, config.analyze) is None], models, work)
    kept = given + removals.keep(made)
    if len(kept) < len(named) + len(made):
        say(f"  {len(named) + len(made) - len(kept)} sources are left out: they were removed from this build ({FILE})")
    items = check_items(kept, "the sources and those generated of them")
    if not items:
        raise UserError(NO_SOURCES)
    if base:
        check_worklist(base, {item.source_id: item for item in items}, read_merges(work))  # what is refused replaces no work list
    write_worklist(items, join(work, "worklist.parquet"))
    return items


def _stop_if_pending(ledger: Ledger) -> None:
    pending = ledger.with_status("pending")
    if pending:
        names = ", ".join(row["source_id"] for row in pending[:5])
        raise UserError(
            f"{len(pending)} of {len(ledger.rows)} sources are still pending ({names}...): their workers ended before a verdict. "
            "Nothing is published. Run the same command again; it goes on where it stopped."
        )
