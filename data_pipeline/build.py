"""The whole build: sources -> observations -> pairs -> split -> crops -> shards. A rerun redoes nothing that stands."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.analyze import AnalyzeConfig, analyze, write_ledger
from data_pipeline.candidates import write_candidates
from data_pipeline.card import CARD, write_card
from data_pipeline.forget import FILE, Removals
from data_pipeline.holdout import Holdout, HoldoutConfig
from data_pipeline.ledger import Ledger
from data_pipeline.observations import read_part
from data_pipeline.pack import PackConfig, Planned, pack
from data_pipeline.pairing import Candidate, PairingConfig, apply_quotas, find_candidates
from data_pipeline.render import crop_landmarks, crop_name, render_crops
from data_pipeline.split import SplitConfig, assign, find_components
from data_pipeline.synthetic.anny_people import AnnyConfig, render_people
from data_pipeline.worklist import WorkItem, check_items, items_from_folder, read_worklist, write_worklist
from infra.config import Config
from infra.console import heading, say, table
from infra.errors import UserError
from infra.storage import commit, exists, join, read_bytes, sha256_json
from lato.edits import Expression, instruction_for
from lato.pairs import FacePair, FaceState, PairMeta, Provenance, Split

VERSION = 2
"""Raise it when the same plan would give other samples."""


class DataConfig(Config):
    """A dataset build."""

    name: str = "v1"
    """Name of the version that is published."""
    worklist: str | None = None
    """Work list (.parquet, .csv, .jsonl)."""
    folder: str | None = None
    """A folder of videos and images, instead of a work list or beside it."""
    synthetic: AnnyConfig | None = None
    """Synthetic people to add; none by default."""
    analyze: AnalyzeConfig = AnalyzeConfig()
    """How sources are looked at."""
    pairing: PairingConfig = PairingConfig()
    """What makes a pair."""
    split: SplitConfig = SplitConfig()
    """How samples are divided."""
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


def build_dataset(config: DataConfig, work: str, models: Path, extra: list[WorkItem] | None = None) -> DatasetVersion:
    """Builds and publishes a dataset version. The caller holds the folder's lease and has started Ray.

    Args:
        config: The build.
        work: Its folder.
        models: Folder of the perception models.
        extra: Sources beside those the config names.

    Raises:
        UserError: There are no sources, nothing could be paired, or sources are still pending (nothing is published then).
    """
    given = read_sources(config, extra or [])
    items = given + (render_people(config.synthetic, work) if config.synthetic else [])
    removals = Removals.read(work)
    removed = [item for item in items if removals.covers(item.source_id, item.identity, item.licence)]
    if removed:
        say(f"  {len(removed)} sources are left out: they were removed from this build ({FILE})")
        items = [item for item in items if item not in removed]
    if not items:
        raise UserError("there are no sources: give worklist=, folder= or synthetic.people=")
    holdout = Holdout.read(config.holdout, models)
    write_worklist(items, join(work, "worklist.parquet"))
    ledger = analyze(items, config.analyze, models, work)
    write_ledger(ledger, join(work, "ledger.jsonl"))
    _stop_if_pending(ledger)
    folder = join(work, "versions", config.name)
    created_from = _plan_digest(config, ledger, items, holdout)
    published = _read_published(folder, created_from)
    if published:
        if not exists(join(folder, CARD)):  # a build that was killed between the two
            write_card(folder)
        say(f"  version {config.name} stands already ({sum(published.samples.values())} samples)")
        return published

    rows = [row for entry in ledger.usable() for row in read_part(work, entry["fingerprint"]).to_pylist()]
    candidates = apply_quotas(holdout.bar(find_candidates(rows, config.pairing)), config.pairing)
    accepted = [candidate for candidate in candidates if candidate.verdict == "accepted"]
    by_id = {item.source_id: item for item in items}
    failed = render_crops(accepted, {item.source_id: item.uri for item in items}, work)
    accepted = [c for c in accepted if c.source["source_id"] not in failed and c.target["source_id"] not in failed]
    if not accepted:
        _print_funnel(_funnel(ledger, rows, candidates, failed, Counter()))
        raise UserError("no pair was accepted. The table above says why; loosen the thresholds under `pairing`.")
    splits = _split(accepted, rows, by_id, config.split)
    licences = {entry["source_id"]: entry["models"] for entry in ledger.usable()}
    planned = [
        _plan_sample(c, splits[c.source["source_id"]], by_id[c.source["source_id"]], licences[c.source["source_id"]], work)
        for c in accepted
    ]
    funnel = _funnel(ledger, rows, candidates, failed, Counter(sample.split for sample in planned))
    commit(join(folder, "funnel.json"), json.dumps(funnel, indent=1).encode())
    write_candidates(
        candidates, {sample.key: sample.split for sample in planned}, {name: item.licence for name, item in by_id.items()}, folder
    )
    digest = pack(planned, config.pack, folder, config.name, created_from)
    write_card(folder)
    return DatasetVersion(folder, digest, dict(Counter(sample.split for sample in planned)), funnel)


def print_version(version: DatasetVersion) -> None:
    """Shows the funnel and where the shards are."""
    _print_funnel(version.funnel)
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


def _stop_if_pending(ledger: Ledger) -> None:
    pending = ledger.with_status("pending")
    if pending:
        names = ", ".join(row["source_id"] for row in pending[:5])
        raise UserError(
            f"{len(pending)} of {len(ledger.rows)} sources are still pending ({names}...): their workers ended before a verdict. "
            "Nothing is published. Run the same command again; it goes on where it stopped."
        )


def _plan_digest(config: DataConfig, ledger: Ledger, items: list[WorkItem], holdout: Holdout) -> str:
    parts = sorted(str(row["fingerprint"]) for row in ledger.rows)
    tied = [item.model_dump(include={"source_id", "group", "split", "licence"}) for item in items]
    chosen = config.model_dump(mode="json", include={"pairing", "split", "pack", "holdout"})
    return sha256_json(
        {"version": VERSION, "parts": parts, "config": chosen, "items": tied, "held_out": sorted(mark.hex() for mark in holdout.hashes)}
    )


def _read_published(folder: str, created_from: str) -> DatasetVersion | None:
    if not exists(join(folder, "index.json")):
        return None
    index = json.loads(read_bytes(join(folder, "index.json")))
    if index["created_from"] != created_from:
        return None
    counts: Counter[str] = Counter()
    for shard in index["shards"]:
        counts[shard["split"]] += shard["count"]
    return DatasetVersion(folder, index["digest"], dict(counts), json.loads(read_bytes(join(folder, "funnel.json"))))


def _split(accepted: list[Candidate], rows: list[dict[str, Any]], by_id: dict[str, WorkItem], config: SplitConfig) -> dict[str, Split]:
    components = find_components(rows, {name: item.group for name, item in by_id.items()}, config)
    pins: dict[str, Split] = {}
    for source_id, component in components.items():
        pin = by_id[source_id].split
        if pin and pins.setdefault(component, pin) != pin:
            raise UserError(f"source {source_id} is pinned to {pin}, but it is tied to a source pinned to {pins[component]} ({component})")
    division = assign(Counter(components[c.source["source_id"]] for c in accepted), pins, config)
    return {source_id: division[component] for source_id, component in components.items() if component in division}


def _plan_sample(candidate: Candidate, split: Split, item: WorkItem, models: dict[str, str], work: str) -> Planned:
    edit = candidate.edit
    assert edit is not None, "an accepted candidate has an edit"
    instruction = instruction_for(edit, candidate.key, split)
    meta = PairMeta(
        instruction=instruction.text,
        template=instruction.template,
        edit=edit,
        source=_state(candidate.source),
        target=_state(candidate.target),
        identity_similarity=round(candidate.scores["similarity"], 6),
        quality={name: round(float(value), 4) for name, value in candidate.scores.items()},
        crop=candidate.crops[0],
        split=split,
        provenance=Provenance(
            source_id=item.source_id,
            source_sha256=candidate.source["source_sha256"],
            kind=item.kind,
            identity=candidate.person,
            licence=item.licence,
            scope="same_track" if candidate.scope == "same_track" else "same_person",
            models=models,
        ),
    )

    def load() -> FacePair:
        ends = list(zip((candidate.source, candidate.target), candidate.crops, strict=True))
        jpgs = [read_bytes(join(work, "renders", crop_name(row, crop))) for row, crop in ends]
        landmarks = np.stack([crop_landmarks(row, crop) for row, crop in ends])
        return FacePair(candidate.key, jpgs[0], jpgs[1], landmarks, meta)

    columns = {
        "kind": item.kind,
        "source_id": item.source_id,
        "identity": candidate.person,
        "instruction": instruction.text,
        "edit_kind": edit.kind,
        "expression": edit.expression.value if edit.expression else None,
        "intensity": edit.intensity.value,
        "yaw": edit.yaw,
        "pitch": edit.pitch,
        "roll": edit.roll,
        "identity_similarity": meta.identity_similarity,
        "licence": item.licence,
    }
    return Planned(candidate.key, split, columns, load)


def _state(row: dict[str, Any]) -> FaceState:
    return FaceState(
        yaw=round(row["yaw"], 3),
        pitch=round(row["pitch"], 3),
        roll=round(row["roll"], 3),
        expression=Expression(row["expression"]),
        expression_intensity=round(row["expression_intensity"], 3),
        frame=row["frame"],
        pts=row["pts"],
    )


def _funnel(
    ledger: Ledger, rows: list[dict[str, Any]], candidates: list[Candidate], failed: dict[str, str], samples: Counter[str]
) -> list[dict[str, Any]]:
    steps: list[tuple[str, str, int]] = [("sources", "in", len(ledger.rows))]
    steps += [("sources", name, count) for name, count in ledger.counts().items()]
    steps += [("frames", "looked at", ledger.total("frames")), ("faces", "found", len(rows))]
    steps += [("faces", "representatives", sum(bool(row["representative"]) for row in rows)), ("candidate pairs", "in", len(candidates))]
    verdicts = Counter(candidate.verdict for candidate in candidates)
    steps += [("candidate pairs", f"rejected: {name}", count) for name, count in verdicts.most_common() if name != "accepted"]
    steps += [("candidate pairs", "accepted", verdicts["accepted"])]
    lost = sum(c.verdict == "accepted" and (c.source["source_id"] in failed or c.target["source_id"] in failed) for c in candidates)
    steps += [("crops", "failed", lost)] if lost else []
    steps += [("samples", split, samples[split]) for split in ("train", "val", "test")]
    return [{"step": step, "name": name, "count": count} for step, name, count in steps]


def _print_funnel(funnel: list[dict[str, Any]]) -> None:
    heading("Funnel")
    table("", ["step", "what", "count"], [(row["step"], row["name"], row["count"]) for row in funnel])
