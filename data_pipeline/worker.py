"""The worker: holds the models, looks at segments, and commits what it saw of each with its verdict."""

from __future__ import annotations

import faulthandler
import functools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from data_pipeline import observations
from data_pipeline.attempts import in_flight
from data_pipeline.decode import FrameCount, check_is_video, sample_frames
from data_pipeline.decoder import PERHAPS_THE_MACHINE, DecodeError, Decoder, Frame
from data_pipeline.image_set import content_sha256, read_image_set, with_reason
from data_pipeline.perceive import watch_images, watch_video
from data_pipeline.segments import AnalyzeConfig, Segment, Try, made_of
from data_pipeline.sources import naming
from data_pipeline.staging import staged
from data_pipeline.tracks import why_not_chosen
from infra.addresses import is_local
from infra.environment import describe_machine
from infra.storage import read_bytes, sha256_file
from lato.faces import FaceReader
from lato.pairs import decode_image

LIBRARIES = ("av", "mediapipe", "numpy", "onnxruntime", "opencv-contrib-python-headless", "scenedetect")
"""Those whose other versions may give other observations; a part says which it was made with."""
STALLED_SECONDS = 300.0
"""What the networks may take for one frame, or a library to open one photo: some 10,000 times what they do. Then the worker ends itself, and its source is
looked at again, like after any death of a worker. Where there is none (`workers=0`) there is no limit."""
_MAX_ATTEMPTS = 3
_BEYOND = "nothing of it lies between start and end"
T = TypeVar("T")


class Worker:
    """Holds the models."""

    def __init__(self, models: Path, config: AnalyzeConfig, model_hashes: dict[str, str], work: str, run: str) -> None:
        cv2.setNumThreads(1)
        self._reader = FaceReader.from_folder(models)
        self._config, self._model_hashes, self._work, self._run = config, model_hashes, work, run
        self._decoder = Decoder()
        self._hashes: dict[tuple[str, int, int, int], str] = {}
        """Of files that are looked at in pieces: a film is not read whole for each of its five minutes."""
        self._one_clock: set[str] = set()
        """Contents of those of which a piece was decoded: they were read whole for that too."""

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
            "not_chosen": Counter(reason for reason in why_not_chosen(rows) if reason),
            **outcome,
        }
        of = made_of(item, segment.start, segment.end, segment.content, self._config, self._model_hashes)
        observations.commit_part(self._work, segment.fingerprint, rows, ledger, {"of": of, "with": describe_machine(LIBRARIES)})

    def _observe(self, segment: Segment) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Rows and outcome. What is wrong with the content is an outcome; what is wrong with the machine is an exception."""
        item = segment.item
        torn: list[DecodeError] = []
        counts: list[FrameCount] = []
        try:
            with naming(item.uri):
                rows, frames, content = self._watch(segment, torn, counts)
        except DecodeError as error:
            return [], {"status": "failed", "reason": error.kind, "message": str(error)}
        except OSError as error:  # it is gone
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
            beyond = segment.item.kind == "video" and not frames
            why = ("empty span", _BEYOND) if beyond else ("no face", "no face in any frame that was looked at")
            return [], {"status": "rejected", "reason": why[0], "message": why[1], **counted}
        return rows, {"status": "ok", "reason": None, **counted}

    def _watch(self, segment: Segment, torn: list[DecodeError], counts: list[FrameCount]) -> tuple[list[dict[str, Any]], int, str]:
        item, limit = segment.item, STALLED_SECONDS if self._config.workers else None
        if item.kind == "video":
            with staged(item.uri) as path:
                check_is_video(str(path))
                before = _state(path, is_local(item.uri))
                content = self._hashes.get(before) or sha256_file(str(path))
                in_pieces = segment.start > 0 or segment.end is not None
                if in_pieces:
                    self._hashes[before] = content
                frames = sample_frames(str(path), self._config.fps, segment.start, segment.end, self._decoder, content in self._one_clock)
                passed: list[tuple[int, int]] = []
                rows, count = watch_video(limited(_noted(until_torn(frames, torn, counts), passed), limit), self._reader, item.box)
                mark_borders(rows, passed, counts[0].next_shot if counts else None)
                after = content if _state(path, is_local(item.uri)) == before else sha256_file(str(path))
                if in_pieces and after == content:
                    self._one_clock.add(content)
                return rows, count, after
        return *watch_images(limited(_read_images(item.uri, limit), limit), self._reader, item.box), content_sha256(item.uri)


def _state(path: Path, local: bool) -> tuple[str, int, int, int]:
    """What changes when a file does. A copy in scratch has its content's state in its name; its time is that of its last use, and another worker that
    fetched it at the same moment may put its own in its place."""
    status = path.stat()
    return str(path), status.st_size, *((status.st_ino, status.st_mtime_ns) if local else (0, 0))


def _read_images(uri: str, limit: float | None) -> Iterator[tuple[Frame, str, str | None]]:
    """The pictures of an image or a set, with their uri and what is declared of them."""
    for number, image in enumerate(read_image_set(uri).images):
        data = with_reason(image.uri, functools.partial(read_bytes, image.uri))
        with at_most(limit):
            picture = np.asarray(decode_image(data, image.uri))
        yield Frame(number, float(number), picture), image.uri, image.declared.model_dump_json() if image.declared else None


@contextmanager
def at_most(seconds: float | None) -> Iterator[None]:
    """Ends this process, and says where it was, when the block takes longer; None is no limit. A thread outside Python watches: native code that hangs too
    is ended. Reading over a network and decoding video have limits of their own."""
    if seconds is None:  # a timer that the process may have of its own stays
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def limited(given: Iterable[T], seconds: float | None) -> Iterator[T]:
    """The same, with a limit on what is done with each by whoever asks for them."""
    for one in given:
        with at_most(seconds):
            yield one


def _noted(frames: Iterable[Frame], passed: list[tuple[int, int]]) -> Iterator[Frame]:
    """The same; number and shot of each go to `passed`."""
    for frame in frames:
        passed.append((frame.number, frame.shot))
        yield frame


def mark_borders(rows: list[dict[str, Any]], passed: list[tuple[int, int]], next_shot: int | None) -> None:
    """Says of each face whether its track may go on over a border of its piece (`at_start`, `goes_on`).

    Args:
        rows: What was seen.
        passed: Number and shot of every frame that was looked at, in order.
        next_shot: That of the next piece's first frame; None where there is none, or it is not known.
    """
    for row in rows:
        row |= {"at_start": row["frame"] == passed[0][0], "goes_on": (row["frame"], next_shot) == passed[-1]}


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
