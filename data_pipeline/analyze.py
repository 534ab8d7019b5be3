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
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pydantic import Field

from data_pipeline import observations
from data_pipeline.attempts import clear_attempts, in_flight, take_marked
from data_pipeline.decode import FrameCount, check_is_video, sample_frames
from data_pipeline.decoder import PERHAPS_THE_MACHINE, DecodeError, Decoder, Frame
from data_pipeline.groups import GroupsConfig
from data_pipeline.image_set import content_sha256, read_image_set
from data_pipeline.ledger import Ledger, warn_of_count
from data_pipeline.perceive import DETECT_EVERY, REPRESENTATIVES, watch_images, watch_video
from data_pipeline.sources import SEGMENT_SECONDS, ContentHashes, plan_segments, staged
from data_pipeline.worklist import WorkItem
from infra.backoff import wait
from infra.config import Config
from infra.console import Progress
from infra.environment import describe_machine
from infra.pool import Died, run_jobs
from infra.storage import commit_changed, exists, read_bytes, sha256_file, sha256_json
from lato.faces import MODEL_FILES, FaceReader
from lato.pairs import decode_image

VERSION = 5
"""Raise it when the meaning of an observation changes: all parts are then made anew."""
LIBRARIES = ("av", "mediapipe", "numpy", "onnxruntime", "opencv-contrib-python-headless", "scenedetect")
"""Those whose other versions may give other observations; a part says which it was made with."""
_MAX_ATTEMPTS = 3
_BUNDLES_A_WORKER = 16
"""At least so many where there is work for them: the last ones even out what workers are apart, and a death leaves less for the next round."""


class AnalyzeConfig(Config):
    """How sources are looked at."""

    fps: float = Field(default=5.0, gt=0)
    """Frames a second that are looked at."""
    workers: int = Field(default=2, ge=0)
    """Ray actors, one CPU each; 0 works in this process, without Ray."""
    licences: tuple[str, ...] | None = None
    """Licences that may be used; others, `unknown` too, are rejected before a pixel is read. None allows all."""
    consents: tuple[str, ...] | None = None
    """Consents that may be used, likewise."""
    groups: GroupsConfig = GroupsConfig()
    """Scores computed from face chips."""


class Segment(NamedTuple):
    """A piece of a source: the unit of work."""

    item: WorkItem
    start: float
    end: float | None
    content: str
    fingerprint: str
    seconds: float = 0.0
    """Of video, by its header; for bundling alone."""


class Try(NamedTuple):
    """A segment that is to be looked at, and how often in this run that ended its worker, or its decoder."""

    segment: Segment
    attempts: int


def analyze(items: list[WorkItem], config: AnalyzeConfig, models: Path, work: str) -> Ledger:
    """Observes every source that has no part yet.

    Args:
        items: The work list.
        config: How.
        models: Folder with the perception models under their own names.
        work: The build's folder.

    Returns:
        The ledger of all items.
    """
    model_hashes = {role: sha256_file(str(models / name)) for role, name in MODEL_FILES.items() if role != "embedder"}
    planned = plan(items, config, model_hashes, work)
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
    rows = [_ledger_row(item, planned[item.source_id], work) for item in items]
    return Ledger(sorted(rows, key=lambda row: row["source_id"]))


def plan(items: list[WorkItem], config: AnalyzeConfig, model_hashes: dict[str, str], work: str) -> dict[str, list[Segment]]:
    """Source id -> its segments with their fingerprints; none where a source cannot be read at all."""
    hashes = ContentHashes(work)
    planned: dict[str, list[Segment]] = {}
    for item in items:
        content = hashes.of(item)
        pieces = plan_segments(item) if content else []
        planned[item.source_id] = [
            Segment(item, start, end, str(content), _fingerprint(item, start, end, str(content), config, model_hashes), seconds)
            for start, end, seconds in pieces
        ]
    hashes.save()
    return planned


def _fingerprint(item: WorkItem, start: float, end: float | None, content: str, config: AnalyzeConfig, models: dict[str, str]) -> str:
    return sha256_json(_made_of(item, start, end, content, config, models))


def _made_of(
    item: WorkItem, start: float, end: float | None, content: str, config: AnalyzeConfig, models: dict[str, str]
) -> dict[str, Any]:
    """What a part depends on: its name is the digest of it, and it is kept in the part."""
    read: dict[str, Any] = {"fps": config.fps if item.kind == "video" else None, "representatives": REPRESENTATIVES, "detect": DETECT_EVERY}
    read |= {"licences": config.licences, "consents": config.consents}
    named = item.model_dump(include={"source_id", "kind", "licence", "consent", "identity", "box"}) | {"start": start, "end": end}
    return {"version": VERSION, "content": content, "config": read, "item": named, "models": models}


def _ledger_row(item: WorkItem, pieces: list[Segment], work: str) -> dict[str, Any]:
    """What became of a source: done when all its segments are; failed where one is, and what the others saw goes on."""
    if not pieces:
        message = f"{item.uri} is missing or unreadable"
        return {"source_id": item.source_id, "status": "failed", "reason": "missing", "message": message, "parts": []}
    names = [piece.fingerprint for piece in pieces]
    there = [name for name in names if exists(observations.part_uri(work, name))]
    if len(there) < len(names):
        return {"source_id": item.source_id, "status": "pending", "reason": "interrupted", "parts": names}
    rows = [observations.read_ledger_row(work, name) for name in names]
    worst = next((row for status in ("failed", "ok", "rejected") for row in rows if row["status"] == status), rows[0])
    summed = ["frames", "faces", "tracks", "representatives", *(["decoded_frames"] if "decoded_frames" in worst else [])]
    sums = {name: sum(row.get(name) or 0 for row in rows) for name in summed}
    warnings = warn_of_count(rows) if item.start is None and item.end is None else []
    return {**worst, **sums, "parts": names} | ({"warnings": warnings} if warnings else {})


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
    for done in run_jobs(lambda: _Worker(models, config, model_hashes, work, run), bundles, config.workers):
        if isinstance(done.result, Died):  # seen by a living driver: only now is it an attempt
            attempts.update(take_marked(work, run, {one.segment.fingerprint for one in done.job}))
        else:
            attempts.update(done.result)
            progress.advance(len(done.job) - len(done.result))


def bundle(tries: list[Try], workers: int) -> list[list[Try]]:
    """Segments in jobs of about `SEGMENT_SECONDS`, fewer where there is not enough for all workers; what was in flight at two deaths goes alone.

    Args:
        tries: In the order of the work list.
        workers: Among how many they are shared.

    Returns:
        Jobs, those that take longest first.
    """
    alone = [[one] for one in tries if one.attempts >= 2]
    shared = sorted((one for one in tries if one.attempts < 2), key=lambda one: -one.segment.seconds)
    size = min(SEGMENT_SECONDS, sum(_cost(one) for one in shared) / (_BUNDLES_A_WORKER * max(1, workers)))
    bundles: list[list[Try]] = []
    room = 0.0
    for one in shared:
        if room <= 0:
            bundles.append([])
            room = size
        bundles[-1].append(one)
        room -= _cost(one)
    return alone + bundles


def _cost(one: Try) -> float:
    """Seconds of video that take as long; a source of no known length counts as one second."""
    return one.segment.seconds or 1.0


class _Worker:
    """Holds the models."""

    def __init__(self, models: Path, config: AnalyzeConfig, model_hashes: dict[str, str], work: str, run: str) -> None:
        cv2.setNumThreads(1)
        self._reader = FaceReader.from_folder(models)
        self._config, self._model_hashes, self._work, self._run = config, model_hashes, work, run
        self._decoder = Decoder()

    def run(self, tries: list[Try]) -> list[str]:
        """Observes some segments, and commits each; returns fingerprints of those whose failure may be the machine's doing, to be looked at again."""
        calm = [one.segment.fingerprint for one in tries if not one.attempts]
        with self._decoder, in_flight(self._work, self._run, calm) if calm else nullcontext():
            return [one.segment.fingerprint for one in tries if not self._look_at(one)]

    def _look_at(self, one: Try) -> bool:
        """Whether the segment has its verdict now."""
        segment = one.segment
        if one.attempts >= _MAX_ATTEMPTS:
            self._commit(segment, [], {"status": "failed", "reason": "crash", "message": f"ended its worker {one.attempts} times"})
            return True
        if one.attempts:
            self._decoder.close()  # what may end a decoder gets one of its own
        with in_flight(self._work, self._run, [segment.fingerprint]) if one.attempts else nullcontext():
            rows, outcome = self._observe(segment)
            if outcome["reason"] in PERHAPS_THE_MACHINE and not one.attempts:
                return False  # once may be the machine's doing (a kill, no memory left): a second time is a verdict
            self._commit(segment, rows, outcome)
        return True

    def _commit(self, segment: Segment, rows: list[dict[str, Any]], outcome: dict[str, Any]) -> None:
        item = segment.item
        for row in rows:
            row |= {"source_id": item.source_id, "source_sha256": segment.content, "kind": item.kind, "identity": item.identity}
        ledger = {
            "source_id": item.source_id,
            "kind": item.kind,
            "licence": item.licence,
            "models": self._model_hashes,
            "faces": len(rows),
            "tracks": len({row["track"] for row in rows}),
            "representatives": sum(row["representative"] for row in rows),
            **outcome,
        }
        made_of = _made_of(item, segment.start, segment.end, segment.content, self._config, self._model_hashes)
        observations.commit_part(self._work, segment.fingerprint, rows, ledger, {"of": made_of, "with": describe_machine(LIBRARIES)})

    def _observe(self, segment: Segment) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows and outcome. What is wrong with the content is an outcome; what is wrong with the machine is an exception."""
        item = segment.item
        for what, given, allowed in (("licence", item.licence, self._config.licences), ("consent", item.consent, self._config.consents)):
            if allowed is not None and given not in allowed:
                return [], {"status": "rejected", "reason": what, "message": f"{what} {given!r} is not among {', '.join(allowed)}"}
        torn: list[DecodeError] = []
        counts: list[FrameCount] = []
        try:
            rows, frames, content = self._watch(segment, torn, counts)
        except DecodeError as error:
            return [], {"status": "failed", "reason": error.kind, "message": str(error)}
        except FileNotFoundError as error:
            return [], {"status": "failed", "reason": "missing", "message": str(error)}
        except ValueError as error:
            return [], {"status": "failed", "reason": "decode", "message": str(error)}
        if content != segment.content:
            changed = "its content changed while it was read; what was seen is not used. Run the build again."
            return [], {"status": "failed", "reason": "changed", "message": changed}
        if torn:  # failed, and said so; what came before the tear is as good as ever
            return rows, {"status": "failed", "reason": "truncated", "message": str(torn[0]), "frames": frames}
        counted = {"frames": frames} | ({"stated_frames": counts[0].stated, "decoded_frames": counts[0].decoded} if counts else {})
        if not rows:
            return [], {"status": "rejected", "reason": "no face", "message": "no face in any frame that was looked at", **counted}
        return rows, {"status": "ok", "reason": None, **counted}

    def _watch(self, segment: Segment, torn: list[DecodeError], counts: list[FrameCount]) -> tuple[list[dict[str, Any]], int, str]:
        item = segment.item
        if item.kind == "video":
            with staged(item.uri) as path:
                check_is_video(str(path))
                content = sha256_file(str(path))
                frames = sample_frames(str(path), self._config.fps, segment.start, segment.end, self._decoder)
                return *watch_video(until_torn(frames, torn, counts), self._reader, item.box), content
        images = read_image_set(item.uri).images
        return *watch_images(
            (
                (
                    Frame(number, float(number), np.asarray(decode_image(read_bytes(image.uri), image.uri))),
                    image.uri,
                    image.declared.model_dump_json() if image.declared else None,
                )
                for number, image in enumerate(images)
            ),
            self._reader,
        ), content_sha256(item.uri)


def until_torn(
    frames: Generator[Frame, None, FrameCount], torn: list[DecodeError], counts: list[FrameCount]
) -> Generator[Frame, None, None]:
    """The frames up to where a stream ends too early: the error goes to `torn`. Of one that does not, how many there are goes to `counts`."""
    try:
        counts.append((yield from frames))
    except DecodeError as error:
        if error.kind != "truncated":
            raise
        torn.append(error)


def write_ledger(ledger: Ledger, uri: str) -> None:
    """Writes the ledger as JSON lines."""
    commit_changed(uri, "".join(json.dumps(row, sort_keys=True) + "\n" for row in ledger.rows).encode())
