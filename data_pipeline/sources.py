"""Sources as files: what their content is (hashed once), where they lie on this machine, and how long ones are cut into segments."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import av

from data_pipeline.image_set import content_sha256
from data_pipeline.worklist import WorkItem
from infra.addresses import filesystem_of, is_local, join
from infra.backoff import passes, retried
from infra.state import DERIVED, read_json, reading
from infra.storage import commit, exists, open_read, sha256_bytes

SEGMENT_SECONDS = 300.0
"""Longer videos are looked at in pieces of about this length, cut at keyframes."""
_SCRATCH_BYTES = 20 * 1024**3
_IN_USE = 3600.0
_NOT_READABLE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)


class ContentHashes:
    """sha256 of sources, computed once per state of a file (uri, size, time of change or object tag) and kept in the build's folder."""

    def __init__(self, work: str) -> None:
        self._uri = join(work, "contents.json")
        there = read_json(self._uri) if exists(self._uri) else {}
        with reading(self._uri, DERIVED):
            self._there: dict[str, str] = {str(state): str(digest) for state, digest in there.items()}
        self._known = dict(self._there)
        self._seen: dict[str, str] = {}

    def of(self, item: WorkItem) -> str | None:
        """The content's digest; None where the source cannot be read at all.

        Raises:
            OSError: The machine's fault (I/O error, no answer), not the file's.
        """
        try:
            states = [_state(item.uri)]
            if item.uri.endswith(".json"):
                return content_sha256(item.uri)  # a set names its images: small, and hashed with them
            key = sha256_bytes(states[0].encode())
            if key not in self._known:
                with staged(item.uri) as path:
                    self._known[key] = content_sha256(str(path))
            self._seen[key] = self._known[key]
            return self._known[key]
        except ValueError:  # a set that is none
            return None
        except OSError as error:
            if (isinstance(error, FileNotFoundError) or error.errno in _NOT_READABLE) and not passes(
                error
            ):  # fsspec calls a busy server's file missing
                return None
            raise

    def save(self) -> None:
        """Keeps what was asked for."""
        if self._seen and self._seen != self._there:
            commit(self._uri, json.dumps(self._seen, sort_keys=True).encode())


def _state(uri: str) -> str:
    """What changes when a file does."""
    if is_local(uri):
        status = os.stat(uri.removeprefix("file://"))
        return f"{uri}|{status.st_size}|{status.st_mtime_ns}"
    filesystem, path = filesystem_of(uri)
    found = retried(lambda: filesystem.info(path))
    return f"{uri}|{found.get('size')}|{found.get('ETag') or found.get('etag') or found.get('LastModified') or found.get('mtime')}"


@contextmanager
def staged(uri: str) -> Iterator[Path]:
    """A local path of a source: its own, or of its copy in scratch (`$LATO_SCRATCH` or the temporary folder; over 20 GB those unused for an hour go)."""
    if is_local(uri):
        yield Path(uri.removeprefix("file://"))
        return
    target = _staged_at(uri)
    scratch = target.parent
    scratch.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        handle, part = tempfile.mkstemp(dir=scratch, suffix=".part")
        try:
            os.close(handle)
            retried(lambda: _copy_to(uri, part))
            os.replace(part, target)
        finally:
            Path(part).unlink(missing_ok=True)
        _evict(scratch)
    else:
        os.utime(target)
    yield target


def _copy_to(uri: str, part: str) -> None:
    with open(part, "wb") as out, open_read(uri) as given:
        shutil.copyfileobj(given, out, 1 << 20)


def _staged_at(uri: str) -> Path:
    scratch = Path(os.environ.get("LATO_SCRATCH") or tempfile.gettempdir()) / "lato_scratch"
    return scratch / f"{sha256_bytes(_state(uri).encode())[:32]}{Path(uri.rsplit('/', 1)[-1]).suffix}"


def drop_staged(uri: str) -> None:
    """Deletes this machine's scratch copy of a remote source."""
    if not is_local(uri):
        with suppress(FileNotFoundError):  # gone from the store, or never staged here; what is not used goes by itself
            _staged_at(uri).unlink()


def _evict(scratch: Path) -> None:
    """Deletes the oldest copies over the limit; never one of the last hour, which another worker may be reading."""
    found = []
    for file in scratch.iterdir():
        with suppress(FileNotFoundError):  # another worker evicts too
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in found)
    for used, size, file in sorted(found):
        if total <= _SCRATCH_BYTES or used > time.time() - _IN_USE:
            break
        total -= size
        file.unlink(missing_ok=True)


class Piece(NamedTuple):
    """A part of a source: from `start` to `end` (None: to its end), and how many seconds of video it has (0 where that is not known)."""

    start: float
    end: float | None
    seconds: float


def plan_segments(item: WorkItem) -> list[Piece]:
    """The pieces of a source, from the container alone; one piece from 0 where it is short, no video or not readable."""
    whole = Piece(item.start or 0.0, item.end, 0.0)
    if item.kind != "video":
        return [whole]
    try:
        with _open_header(item.uri) as file, av.open(file) as container:
            return _cut(container, item) or [whole]
    except (OSError, ValueError, av.error.FFmpegError):
        return [whole]  # what is wrong with it is the analysis' to find and to say


@contextmanager
def _open_header(uri: str) -> Iterator[str | IO[bytes]]:
    if is_local(uri):
        yield uri.removeprefix("file://")
        return
    with open_read(uri) as file:
        yield file


def _cut(container: Any, item: WorkItem) -> list[Piece]:
    if not container.streams.video:
        return []
    stream = container.streams.video[0]
    length = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    begin, end = item.start or 0.0, min(item.end or length, length)
    whole = [Piece(begin, item.end, max(end - begin, 0.0))]
    if end - begin <= 1.2 * SEGMENT_SECONDS:
        return whole
    first = float((stream.start_time or 0) * stream.time_base)
    cuts = [begin]
    while end - cuts[-1] > 1.2 * SEGMENT_SECONDS:
        container.seek(int((cuts[-1] + SEGMENT_SECONDS + first) / stream.time_base), stream=stream)  # the keyframe before
        packet = next(container.demux(stream))
        at = float(packet.pts * stream.time_base) - first if packet.pts is not None else 0.0
        if at <= cuts[-1] + SEGMENT_SECONDS / 10:
            return whole  # no keyframe to cut at
        cuts.append(at)
    ends = [*cuts[1:], end]
    return [Piece(a, b if b != end else item.end, b - a) for a, b in zip(cuts, ends, strict=True)]
