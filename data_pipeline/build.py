"""The whole build: sources -> observations -> scores -> verdicts -> split -> crops -> shards. A rerun redoes nothing that stands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from data_pipeline.accept import Plan
from data_pipeline.audit import read_distinct, read_labelled_edits, read_labels
from data_pipeline.card import write_card
from data_pipeline.config import DataConfig, with_own_thresholds
from data_pipeline.extend import Base, read_base
from data_pipeline.models_used import list_models
from data_pipeline.observe import observe
from data_pipeline.pack import sweep
from data_pipeline.publish import DatasetVersion, publish
from data_pipeline.published import is_published, read_index
from data_pipeline.rules import SETTINGS
from data_pipeline.taken_out import read_merges
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.console import say
from infra.errors import UserError
from infra.state import PUBLISHED, read_json
from infra.storage import list_files, sha256_json

VERSION = 16
"""Raise it when the same plan would give other samples."""


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
    base = extended_by(config, work)
    observed = observe(config, work, models, extra, base)
    labels, edits, distinct, merges = read_labels(work), read_labelled_edits(work), read_distinct(work), read_merges(work)
    chosen = config.model_dump(mode="json", include={"pairing", "render", "split", "instructions", "pack"})
    earlier = base.index.get("models", []) if base else []
    used = list_models(observed.all_models(), config.analyze.groups, config.synthetic, config.instructions, work, earlier)
    said = {"labels": labels, "edits": edits, "distinct": sorted(distinct), "merges": merges}
    made_from = said | {"version": VERSION, "observed": observed.digest(), "config": chosen, "models": used}
    created_from = sha256_json(made_from | {"base": base and base.digest})
    published = _read_published(folder, created_from)
    if published:
        sweep(folder)  # of a build that was killed after it published
        write_card(folder)
        say(f"  version {config.name} stands already ({sum(published.samples.values())} samples)")
        return published
    return publish(Plan(config, observed, base, labels, distinct, merges, used, work, folder, created_from, edits), until)


def extended_by(config: DataConfig, work: str) -> Base | None:
    """The version that a build extends, without what labels and merges take out of it; None where it extends none."""
    return read_base(join(work, "versions", config.extends), work, read_labels(work)) if config.extends else None


def _check_name(config: DataConfig, folder: str) -> None:
    if config.extends == config.name:
        raise UserError(f"extends={config.extends}: a version cannot extend itself; give the new one another name (name=...)")
    if is_published(folder) and "view_of" in read_index(folder):
        raise UserError(f"name={config.name}: a view of that name is there ({folder}); choose another name")


def _read_published(folder: str, created_from: str) -> DatasetVersion | None:
    if not is_published(folder):
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
