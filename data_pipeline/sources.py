"""Sources as files: what their content is (hashed once), whose fault it is where one cannot be read, and how long ones are cut into segments."""

from __future__ import annotations

import errno
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, NamedTuple, TypeVar

import av

from data_pipeline.decode import container_length, stated_length
from data_pipeline.decoder import MachineError
from data_pipeline.image_set import content_sha256, with_reason
from data_pipeline.worklist import WorkItem
from infra.addresses import filesystem_of, is_local, join
from infra.backoff import passes, retried
from infra.console import Progress
from infra.errors import UserError
from infra.state import DERIVED, read_json, reading
from infra.storage import commit, exists, open_read, sha256_bytes, sha256_json
from infra.threads import in_threads

V = TypeVar("V")
SEGMENT_SECONDS = 300.0
"""Longer videos are looked at in pieces of about this length, cut at keyframes."""
_MISSED = 12
"""So many times in a row one looks farther on for a keyframe to cut at: an hour."""
_NOT_READABLE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
_SENT_NOWHERE = (errno.EINVAL, errno.EOVERFLOW)
"""A seek to before a file's start or far beyond its end, where an empty file or a torn header sends its reader: the content's fault."""
_NOT_GIVEN = ("AccessDenied", "AllAccessDisabled", "InvalidObjectState")
"""What an S3 API says of an object that it does not give. Of who asks (keys that are wrong or have expired) it says something else: no object's fault."""
_NOT_GIVEN_BY_GOOGLE = "storage.objects.get"
"""The right that one lacks is named in the words of its answer, of which gcsfs makes an error without a number."""
PIECES = "pieces.json"
_CUTS = 1
"""Raise it when a video is cut into other pieces."""
_AT_ONCE, _AHEAD = 4, 256
"""Files that are hashed at a time: s3fs alone holds some 100 MB of each; and beside one that takes long, before it is waited for."""
_KEEP_SECONDS = 60.0
"""Hashes and pieces that are computed for longer than this are kept before the last: a run that is killed costs no more of them."""


def is_gone(error: OSError) -> bool:
    """Whether a source is not there, or is no file that may be read: its own fault. All else is the machine's, a server that stays busy too, of which
    fsspec says that its file is not found."""
    return (isinstance(error, FileNotFoundError) or error.errno in _NOT_READABLE or _is_forbidden(error)) and not passes(error)


def _is_forbidden(error: OSError) -> bool:
    """Whether a store does not give this object, to somebody whom it knows."""
    answer: Any = getattr(error.__cause__, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return code in _NOT_GIVEN or (error.errno is None and _NOT_GIVEN_BY_GOOGLE in str(error))


class UnreadableNowError(UserError):
    """A source cannot be read, and it is not its own fault: nothing is said of it. Raised from what keeps it from being read."""


@contextmanager
def naming(uri: str) -> Iterator[None]:
    """What keeps a source from being read, where it is not its own fault, becomes a message that names it (`UnreadableNowError`), which ends a build."""
    try:
        yield
    except Exception as error:
        machines = isinstance(error, MachineError) or (isinstance(error, OSError) and not is_gone(error))
        if not machines and not passes(error):
            raise
        said = f"{type(error).__name__}: {error}".rstrip(".: ")
        raise UnreadableNowError(
            f"{uri} cannot be read now, which is not taken for its own fault: {said}. Mend what is wrong with the disk, the network, the store's "
            "credentials or this machine, or leave this source out; then run the same command again: what was done stands."
        ) from error


class _Kept(Generic[V]):
    """What is found out once and kept in a file of the build's folder."""

    def __init__(self, uri: str, read: Callable[[Any], V]) -> None:
        there = read_json(uri) if exists(uri) else {}
        with reading(uri, DERIVED):
            self._there = {str(key): read(value) for key, value in there.items()}
        self._uri, self._known, self._written = uri, dict(self._there), time.monotonic()
        self._asked: dict[str, V] = {}

    def get(self, key: str) -> V | None:
        """What is known of a key."""
        return self.put(key, self._known[key]) if key in self._known else None

    def put(self, key: str, value: V) -> V:
        """Takes in what was found of a key, and gives it back."""
        self._known[key] = self._asked[key] = value
        return value

    def is_due(self) -> bool:
        """Whether what was found since is worth writing."""
        return time.monotonic() - self._written > _KEEP_SECONDS

    def keep(self) -> None:
        """Writes all that is known: there are sources that were not asked for yet."""
        self._write(dict(self._known))

    def save(self) -> None:
        """Writes what was asked for, and nothing else any more: to be called when all sources were."""
        self._write(dict(self._asked))

    def _write(self, values: dict[str, V]) -> None:
        if values and values != self._there:
            commit(self._uri, json.dumps(values, sort_keys=True).encode())
            self._there = values
        self._written = time.monotonic()


class ContentHashes:
    """sha256 of sources, computed once per state of a file (uri, size, time of change or object tag) and kept in the build's folder.

    A remote file is read for it as a stream: a copy on this machine is for whoever decodes it, and the driver, which hashes all, would fill its disk.
    """

    def __init__(self, work: str) -> None:
        self._kept = _Kept(join(work, "contents.json"), str)
        self.unreadable: dict[str, tuple[str, str]] = {}
        """Source id -> reason and message, of those that were asked for and cannot be read at all."""

    def of(self, item: WorkItem) -> str | None:
        """The content's digest; None where the source cannot be read at all: `unreadable` says why.

        Raises:
            UnreadableNowError: The machine's fault (I/O error, no answer), not the file's.
        """
        found = self._of_one(item)
        self._keep_if_due()
        return found

    def of_all(self, items: Sequence[WorkItem]) -> dict[str, str | None]:
        """Source id -> what `of` says of it. Several files are hashed at a time; what `of` raises of the first of them is raised."""
        files: dict[str, list[WorkItem]] = defaultdict(list)
        for item in items:
            files[item.uri].append(item)  # spans of one film: it is hashed once
        progress, found = Progress("hash", len(items), "sources", quiet=True), dict[str, str | None]()
        for digests in in_threads(lambda same: {item.source_id: self._of_one(item) for item in same}, files.values(), _AT_ONCE, _AHEAD):
            found |= digests
            progress.advance(len(digests))
            self._keep_if_due()
        return found

    def _of_one(self, item: WorkItem) -> str | None:
        """Called in threads: what they share are dicts, to which they add key by key."""
        is_set = item.uri.endswith(".json")  # it names its images: small, and hashed with them
        try:
            with naming(item.uri):
                return content_sha256(item.uri) if is_set else self._digest(item.uri)
        except ValueError as error:  # a set that is none
            self.unreadable[item.source_id] = "decode", str(error)
        except OSError as error:
            what = f"{item.uri}, or a picture that it names," if is_set else item.uri
            self.unreadable[item.source_id] = "missing", f"{what} is missing or unreadable ({error})"
        return None

    def _digest(self, uri: str) -> str:
        key = sha256_bytes(state_of(uri).encode())
        return self._kept.get(key) or self._kept.put(key, content_sha256(uri))

    def _keep_if_due(self) -> None:
        if self._kept.is_due():
            self.keep()

    def keep(self) -> None:
        """Writes all that is known: there are sources that were not asked for yet."""
        self._kept.keep()

    def save(self) -> None:
        """Writes what was asked for, and nothing else any more: to be called when all sources were."""
        self._kept.save()


def state_of(uri: str) -> str:
    """What changes when a file does."""
    if is_local(uri):
        status = os.stat(uri.removeprefix("file://"))
        return f"{uri}|{status.st_size}|{status.st_mtime_ns}"
    filesystem, path = filesystem_of(uri)
    found = retried(lambda: with_reason(uri, lambda: filesystem.info(path)))
    return f"{uri}|{found.get('size')}|{found.get('ETag') or found.get('etag') or found.get('LastModified') or found.get('mtime')}"


class Piece(NamedTuple):
    """A part of a source: from `start` to `end` (None: to its end), and how many seconds of video it has (0 where that is not known)."""

    start: float
    end: float | None
    seconds: float


class Pieces:
    """The pieces of videos, found once per content and kept in the build's folder: one whose header states no length is read to its end for them."""

    def __init__(self, work: str) -> None:
        self._kept = _Kept(join(work, PIECES), _pieces_of)

    def of(self, item: WorkItem, content: str) -> list[Piece]:
        """`plan_segments`, and raises what that raises. Of a video of which no length is found nothing is kept: it may be away now."""
        if item.kind != "video":
            return plan_segments(item)
        key = sha256_json([_CUTS, SEGMENT_SECONDS, content, item.start, item.end])
        found = self._kept.get(key)
        if found is None:
            found = plan_segments(item)
            if found[0].seconds:
                self._kept.put(key, found)
            if self._kept.is_due():
                self._kept.keep()
        return found

    def save(self) -> None:
        """Writes those that were asked for, and no others any more."""
        self._kept.save()


def _pieces_of(kept: Any) -> list[Piece]:
    return [Piece(float(start), None if end is None else float(end), float(seconds)) for start, end, seconds in kept]


def plan_segments(item: WorkItem) -> list[Piece]:
    """The pieces of a source, from the container alone; one piece from 0 where it is short, no video or not readable.

    Raises:
        UnreadableNowError: The machine's fault, or a server's that stays busy: pieces are in fingerprints, which must not depend on that.
    """
    whole = Piece(item.start or 0.0, item.end, 0.0)
    if item.kind != "video":
        return [whole]
    with naming(item.uri):
        try:
            return retried(lambda: _read_pieces(item)) or [whole]
        except (ValueError, av.error.FFmpegError):
            pass  # what is wrong with it is the analysis' to find and to say
        except OSError as error:
            if not (is_gone(error) or error.errno in _SENT_NOWHERE):
                raise
    return [whole]


def _read_pieces(item: WorkItem) -> list[Piece]:
    with open_read(item.uri) as file, av.open(file) as container:  # read by Python: FFmpeg's own errors are then the content's
        return _cut(container, item)


def _cut(container: Any, item: WorkItem) -> list[Piece]:
    if not container.streams.video:
        return []
    stream = container.streams.video[0]
    length = video_seconds(container)
    begin, end = item.start or 0.0, min(item.end or length, length)
    cuts, wanted, missed = [begin], begin + SEGMENT_SECONDS, 0
    while end - wanted > SEGMENT_SECONDS / 5 and missed < _MISSED:
        at = _keyframe_before(container, stream, wanted)
        if at is None:
            break  # it ends before its header says: what is there is cut as ever
        found = at > cuts[-1] + SEGMENT_SECONDS / 10
        cuts += [at] if found else []
        missed = 0 if found else missed + 1
        wanted = (at if found else wanted) + SEGMENT_SECONDS
    ends = [*cuts[1:], end]
    return [Piece(a, b if b != end else item.end, max(b - a, 0.0)) for a, b in zip(cuts, ends, strict=True)]


def video_seconds(container: Any) -> float:
    """Seconds of a video's pictures by its header; where that says nothing (a recording that was written live, or never ended), by reading it to its end."""
    stream = container.streams.video[0]
    first = float((stream.start_time or 0) * stream.time_base)
    length = stated_length(container, stream, first) or container_length(container, first)
    if length:
        return length
    last = first
    with suppress(av.error.FFmpegError):  # a tear is for who decodes it to tell
        for packet in container.demux(stream):
            if packet.pts is not None:
                last = max(last, float((packet.pts + (packet.duration or 0)) * stream.time_base))
    return last - first


def _keyframe_before(container: Any, stream: Any, seconds: float) -> float | None:
    """Time of the keyframe to which a seek leads; None where nothing is there."""
    first = float((stream.start_time or 0) * stream.time_base)
    try:
        container.seek(int((seconds + first) / stream.time_base), stream=stream)
        packet = next(container.demux(stream))
    except av.error.FFmpegError:
        return None
    except OSError as error:
        if error.errno not in _SENT_NOWHERE:
            raise
        return None
    return float(packet.pts * stream.time_base) - first if packet.pts is not None else None
