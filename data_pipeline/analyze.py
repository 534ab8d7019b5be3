"""Analyze: sources to observations, on Ray, resumable. Ray only schedules: what became of a source stands in its committed part.

A round maps over what has no part yet; rounds repeat until nothing is pending or two in a row commit nothing. Attempts are counted on storage before
the work starts, so that a source that kills its worker three times is failed(crash), and an error of Ray's is never a verdict.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import observations
from data_pipeline.decode import DecodeError, Frame, check_is_video, sample_frames
from data_pipeline.image_set import content_sha256, read_image_set
from data_pipeline.ledger import Ledger
from data_pipeline.perceive import REPRESENTATIVES, describe, watch_images, watch_video
from data_pipeline.worklist import WorkItem
from infra.config import Config
from infra.console import Progress
from infra.errors import UserError
from infra.storage import commit, delete, exists, join, list_files, read_bytes, sha256_file, sha256_json
from lato.faces import MODEL_FILES, FaceReader
from lato.pairs import decode_image

VERSION = 2
"""Raise it when the meaning of an observation changes: all parts are then made anew."""
_NOT_READABLE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
_BUNDLE = 8
_MAX_ATTEMPTS = 3


class AnalyzeConfig(Config):
    """How sources are looked at."""

    fps: float = 5.0
    """Frames a second that are looked at."""
    workers: int = 2
    """Ray actors, one CPU each."""
    models: str | None = None
    """Folder of the perception models; None takes the fetched assets."""
    licences: tuple[str, ...] | None = None
    """Licences that may be used; others, `unknown` too, are rejected before a pixel is read. None allows all."""
    consents: tuple[str, ...] | None = None
    """Consents that may be used, likewise."""


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
    model_hashes = {role: sha256_file(str(models / name)) for role, name in MODEL_FILES.items()}
    fingerprints = {item.source_id: _fingerprint(item, config, model_hashes) for item in items}
    by_fingerprint = {fingerprint: item for item in items if (fingerprint := fingerprints[item.source_id])}
    missing = [item for item in items if fingerprints[item.source_id] is None]
    progress = Progress("analyze", len(items), "sources")
    idle_rounds = 0
    while idle_rounds < 2:
        done = observations.committed_fingerprints(work)
        pending = [fingerprint for fingerprint in by_fingerprint if fingerprint not in done]
        if not pending:
            break
        progress.done = len(items) - len(pending) - len(missing)
        _run_round([(f, by_fingerprint[f]) for f in pending], config, models, model_hashes, work, progress)
        idle_rounds = 0 if observations.committed_fingerprints(work) - done else idle_rounds + 1
    rows = [_missing_row(item) for item in missing]
    for fingerprint, item in by_fingerprint.items():
        if exists(observations.part_uri(work, fingerprint)):
            rows.append(observations.read_ledger_row(work, fingerprint) | {"fingerprint": fingerprint})
        else:
            rows.append({"source_id": item.source_id, "status": "pending", "reason": "interrupted", "fingerprint": fingerprint})
    return Ledger(sorted(rows, key=lambda row: row["source_id"]))


def _fingerprint(item: WorkItem, config: AnalyzeConfig, model_hashes: dict[str, str]) -> str | None:
    """What a part depends on; None where the source cannot be read at all."""
    try:
        content = content_sha256(item.uri)
    except ValueError:  # a set that is none
        return None
    except OSError as error:
        if error.errno not in _NOT_READABLE:
            raise  # the machine's fault, not the file's
        return None
    read: dict[str, Any] = {"fps": config.fps if item.kind == "video" else None, "representatives": REPRESENTATIVES}
    read |= {"licences": config.licences, "consents": config.consents}
    named = item.model_dump(include={"source_id", "kind", "licence", "consent", "identity", "start", "end", "box"})
    return sha256_json({"version": VERSION, "content": content, "config": read, "item": named, "models": model_hashes})


def _missing_row(item: WorkItem) -> dict[str, Any]:
    message = f"{item.uri} is missing or unreadable"
    return {"source_id": item.source_id, "status": "failed", "reason": "missing", "message": message, "fingerprint": None}


def _run_round(
    pending: list[tuple[str, WorkItem]],
    config: AnalyzeConfig,
    models: Path,
    model_hashes: dict[str, str],
    work: str,
    progress: Progress,
) -> None:
    import ray

    risky = [entry for entry in pending if _attempts(work, entry[0]) >= 2]  # in flight at two deaths: alone from now on
    calm = [entry for entry in pending if entry not in risky]
    # videos first and alone: they take longest; images in bundles, so that a task is worth its overhead
    bundles = [[entry] for entry in risky] + [[entry] for entry in calm if entry[1].kind == "video"]
    images = [entry for entry in calm if entry[1].kind != "video"]
    bundles += [images[start : start + _BUNDLE] for start in range(0, len(images), _BUNDLE)]
    # an actor that dies ends its task and is not restarted: the next round decides, by the attempts on storage
    worker_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker)
    workers = [worker_class.remote(str(models), config, model_hashes, work) for _ in range(min(config.workers, len(bundles)))]
    waiting = {workers[number].run.remote(bundles[number]): (workers[number], bundles[number]) for number in range(len(workers))}
    queue = bundles[len(workers) :]
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        worker, bundle = waiting.pop(ready[0])
        try:
            ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            message = f"a worker could not go on: {error.cause}. What was done stands; mend this and run the same command again."
            raise UserError(message) from error
        except ray.exceptions.RayActorError:
            continue  # its sources stay pending, and the next round counts the attempt
        progress.advance(len(bundle))
        if queue:
            bundle = queue.pop(0)
            waiting[worker.run.remote(bundle)] = (worker, bundle)
    for worker in workers:
        ray.kill(worker)


def _attempts(work: str, fingerprint: str) -> int:
    return len(list_files(join(work, "attempts", fingerprint)))


class _Worker:
    """A Ray actor that holds the models."""

    def __init__(self, models: str, config: AnalyzeConfig, model_hashes: dict[str, str], work: str) -> None:
        self._reader = FaceReader.from_folder(Path(models))
        self._config, self._model_hashes, self._work = config, model_hashes, work

    def run(self, bundle: list[tuple[str, WorkItem]]) -> None:
        for fingerprint, item in bundle:
            attempt = _attempts(self._work, fingerprint) + 1
            if attempt > _MAX_ATTEMPTS:
                self._commit(
                    fingerprint, item, [], {"status": "failed", "reason": "crash", "message": f"ended its worker {attempt - 1} times"}
                )
                continue
            mark = join(self._work, "attempts", fingerprint, str(attempt))
            commit(mark, b"", exclusive=True)
            try:
                rows, outcome = self._observe(item)
            except Exception:  # the machine's fault: told, and not counted against the source (a death is, as nothing can take it back)
                delete(mark)
                raise
            self._commit(fingerprint, item, rows, outcome)

    def _commit(self, fingerprint: str, item: WorkItem, rows: list[dict[str, Any]], outcome: dict[str, Any]) -> None:
        content = content_sha256(item.uri)
        for row in rows:
            row |= {"source_id": item.source_id, "source_sha256": content, "kind": item.kind, "identity": item.identity}
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
        observations.commit_part(self._work, fingerprint, rows, ledger)

    def _observe(self, item: WorkItem) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows and outcome. What is wrong with the content is an outcome; what is wrong with the machine is an exception."""
        for what, given, allowed in (("licence", item.licence, self._config.licences), ("consent", item.consent, self._config.consents)):
            if allowed is not None and given not in allowed:
                return [], {"status": "rejected", "reason": what, "message": f"{what} {given!r} is not among {', '.join(allowed)}"}
        torn: list[DecodeError] = []
        try:
            sightings, frames = self._watch(item, torn)
        except DecodeError as error:
            return [], {"status": "failed", "reason": error.kind, "message": str(error)}
        except ValueError as error:
            return [], {"status": "failed", "reason": "decode", "message": str(error)}
        if torn:  # failed, and said so; what came before the tear is as good as ever
            outcome = {"status": "failed", "reason": "truncated", "message": str(torn[0]), "frames": frames}
            return describe(sightings, self._reader), outcome
        if not sightings:
            return [], {"status": "rejected", "reason": "no face", "message": "no face in any frame that was looked at", "frames": frames}
        return describe(sightings, self._reader), {"status": "ok", "reason": None, "frames": frames}

    def _watch(self, item: WorkItem, torn: list[DecodeError]) -> tuple[list[Any], int]:
        if item.kind == "video":
            check_is_video(item.uri)
            return watch_video(
                until_torn(sample_frames(item.uri, self._config.fps, item.start or 0.0, item.end), torn), self._reader, item.box
            )
        images = read_image_set(item.uri).images
        return watch_images(
            (
                (
                    Frame(number, float(number), np.asarray(decode_image(read_bytes(image.uri), image.uri))),
                    image.uri,
                    image.declared.model_dump_json() if image.declared else None,
                )
                for number, image in enumerate(images)
            ),
            self._reader,
        )


def until_torn(frames: Iterable[Frame], torn: list[DecodeError]) -> Iterator[Frame]:
    """The frames up to where a stream ends too early; the error goes to `torn`."""
    try:
        yield from frames
    except DecodeError as error:
        if error.kind != "truncated":
            raise
        torn.append(error)


def write_ledger(ledger: Ledger, uri: str) -> None:
    """Writes the ledger as JSON lines."""
    commit(uri, "".join(json.dumps(row, sort_keys=True) + "\n" for row in ledger.rows).encode())
