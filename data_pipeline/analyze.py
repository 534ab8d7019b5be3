"""Analyze: sources to observations, resumable. Workers only schedule: what became of a segment stands in its committed part.

A round maps over what has no part yet; rounds repeat until nothing is pending or two in a row commit nothing. Short sources go to a worker in bundles,
which share its models, its decoder and their first mark of an attempt; each source has a part, a ledger row and a verdict of its own, and in which bundle it
was is in no fingerprint. What is in flight is marked on storage before the work starts, so that a source that kills its worker three times in a run is
failed(crash); a driver that is stopped or killed, and an error of Ray's, are never a verdict.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from data_pipeline import observations
from data_pipeline.attempts import clear_attempts, take_marked
from data_pipeline.duplicates import duplicate_row, find_duplicates
from data_pipeline.ledger import Ledger, merge_failures, unread_row, warn_of_count
from data_pipeline.places import looking
from data_pipeline.segments import AnalyzeConfig, Segment, Try, bundle, fingerprint, refusal
from data_pipeline.sources import ContentHashes, Pieces
from data_pipeline.worker import Worker
from data_pipeline.worklist import WorkItem
from infra.backoff import wait
from infra.console import Progress, each
from infra.pool import Died, run_jobs
from infra.storage import commit_changed, sha256_model
from lato.faces import MODEL_FILES


def analyze(items: list[WorkItem], config: AnalyzeConfig, models: Path, work: str, published: Collection[str] = frozenset()) -> Ledger:
    """Observes every source that has no part yet.

    Args:
        items: The work list.
        config: How.
        models: Folder with the perception models under their own names.
        work: The build's folder.
        published: Sources with samples in a version that is extended: they are used, also where others have their content.

    Returns:
        The ledger of all items.

    Raises:
        UserError: Of sources with equal content different things are declared.
    """
    model_hashes = {role: sha256_model(models / name) for role, name in MODEL_FILES.items() if role != "embedder"}
    refused = {item.source_id: why for item in items if (why := refusal(item, config))}
    allowed = [item for item in items if item.source_id not in refused]
    planned, duplicates, unreadable = plan(allowed, config, model_hashes, work, published)
    segments = {segment.fingerprint: segment for pieces in planned.values() for segment in pieces}
    progress = Progress("analyze", len(segments), "segments")
    clear_attempts(work)
    run, attempts = os.urandom(8).hex(), Counter[str]()
    idle_rounds = failed_rounds = 0
    while idle_rounds < 2:
        done = observations.committed_fingerprints(work)
        pending = [segment for fingerprint, segment in segments.items() if fingerprint not in done]
        if not pending:
            break
        progress.done = len(segments) - len(pending)
        blamed = attempts.total()
        _run_round(pending, attempts, run, config, models, model_hashes, work, progress)
        failed_rounds = failed_rounds + 1 if attempts.total() > blamed else 0
        if failed_rounds:
            wait(failed_rounds, 0.5)  # no memory, a node on its way out: what may have been the machine's doing needs a moment to pass
        idle_rounds = 0 if observations.committed_fingerprints(work) - done or attempts.total() > blamed else idle_rounds + 1
    done = observations.committed_fingerprints(work)
    rows = [
        unread_row(item.source_id, refused[item.source_id].what, refused[item.source_id].message, "rejected")
        if item.source_id in refused
        else duplicate_row(item.source_id, duplicates[item.source_id])
        if item.source_id in duplicates
        else unread_row(item.source_id, *unreadable[item.source_id])
        if item.source_id in unreadable
        else _ledger_row(item, planned[item.source_id], done, work)
        for item in each("ledger", items, "sources")
    ]
    return Ledger(sorted(rows, key=lambda row: row["source_id"]))


def plan(
    items: list[WorkItem], config: AnalyzeConfig, model_hashes: dict[str, str], work: str, published: Collection[str]
) -> tuple[dict[str, list[Segment]], dict[str, str], dict[str, tuple[str, str]]]:
    """Source id -> its segments with their fingerprints; duplicates -> the sources used in their place; sources that cannot be read at all, which have no
    segments -> reason and message."""
    hashes, cuts = ContentHashes(work), Pieces(work)
    contents = hashes.of_all(items)
    hashes.save()
    duplicates = find_duplicates(items, contents, published)
    planned: dict[str, list[Segment]] = {}
    for item in each("pieces", items, "sources"):
        content = contents[item.source_id]
        pieces = cuts.of(item, content) if content and item.source_id not in duplicates else []
        planned[item.source_id] = [
            Segment(item, start, end, str(content), fingerprint(item, start, end, str(content), config, model_hashes), seconds)
            for start, end, seconds in pieces
        ]
    cuts.save()
    return planned, duplicates, hashes.unreadable


def _ledger_row(item: WorkItem, pieces: list[Segment], done: Collection[str], work: str) -> dict[str, Any]:
    """What became of a source: done when all its segments are; failed where one is, and what the others saw goes on."""
    names = [piece.fingerprint for piece in pieces]
    if not all(name in done for name in names):
        return {"source_id": item.source_id, "status": "pending", "reason": "interrupted", "parts": names}
    rows = [observations.read_ledger_row(work, name) for name in names]
    worst = next((row for status in ("failed", "ok", "rejected") for row in rows if row["status"] == status), rows[0])
    summed = ["frames", "faces", "tracks", "representatives", *(["decoded_frames"] if "decoded_frames" in worst else [])]
    sums = {name: sum(row.get(name) or 0 for row in rows) for name in summed}
    not_chosen: Counter[str] = Counter()
    for row in rows:
        not_chosen.update(row.get("not_chosen", {}))
    warnings = warn_of_count(rows) if item.start is None and item.end is None else []
    told = {"not_chosen": dict(not_chosen), "parts": names, "content": pieces[0].content}
    return {**worst, **merge_failures(rows), **sums, **told} | ({"warnings": warnings} if warnings else {})


def _run_round(
    pending: list[Segment],
    attempts: Counter[str],
    run: str,
    config: AnalyzeConfig,
    models: Path,
    model_hashes: dict[str, str],
    work: str,
    progress: Progress,
) -> None:
    """Looks at what is pending, and counts in `attempts` what is to be looked at again."""
    bundles = bundle([Try(segment, attempts[segment.fingerprint]) for segment in pending], config.workers)
    for done in run_jobs(lambda: Worker(models, config, model_hashes, work, run), bundles, config.workers, looking(config)):
        if isinstance(done.result, Died):  # seen by a living driver: only now is it an attempt
            attempts.update(take_marked(work, run, {one.segment.fingerprint for one in done.job}))
        else:
            attempts.update(done.result)
            progress.advance(len(done.job) - len(done.result))


def write_ledger(ledger: Ledger, uri: str) -> None:
    """Writes the ledger as JSON lines."""
    commit_changed(uri, "".join(json.dumps(row, sort_keys=True) + "\n" for row in ledger.rows).encode())
