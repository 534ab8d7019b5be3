"""A decoder in a child process that can be killed, so that a hang or a crash costs one source and not a worker. Sources that are looked at one after
another share a child while all goes well. What a child does of a video is `decode` (sampled frames) and `seek` (single ones).
"""

from __future__ import annotations

import errno
import multiprocessing
import resource
import sys
import time
import types
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from data_pipeline.patience import LOOK_SECONDS, Patience, cpu_seconds

MEMORY_BYTES = 2 * 1024**3
"""What a child may hold. An 8K frame in 10 bits is 100 MB, and no standard lets a decoder keep more than 16; more than this the kernel refuses."""
PERHAPS_THE_MACHINE = ("crash", "hang", "memory")
"""Ends of a child that may be the machine's doing: the source is looked at again, and the second time is a verdict."""
_PRELOADED = ["av", "scenedetect", "data_pipeline.decode", "data_pipeline.seek"]
"""Imported once, by the server that the children are forked from. decord is not among them: it takes 400 MB."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame: its number, presentation time in seconds, RGB `(H, W, 3)` uint8 upright, shot."""

    number: int
    """What tells it from all others of its source, in whichever piece it is seen: its time in the stream's own ticks, from the stream's start; in a stream
    without times, and in an image set, its place. Of sought ones: among those that were asked for."""
    pts: float
    image: npt.NDArray[np.uint8]
    shot: int = 0


class DecodeError(Exception):
    """A source that cannot be decoded: `kind` is decode, truncated (what came before is good), crash, hang or memory."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class MachineError(RuntimeError):
    """The machine, not the source, kept a video from being decoded (a missing library, a disk that cannot be read): never a verdict on the source."""


_MACHINE = (
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENODEV,
    errno.ENXIO,
)
_NOT_READABLE = (errno.ENOENT, errno.EACCES)
_FFMPEG_MEANS = {
    "InvalidDataError": "what is in it is no video, or is damaged",
    "EOFError": "it ends before a picture is whole",
    "DecoderNotFoundError": "there is no decoder here for the codec of its pictures",
    "DemuxerNotFoundError": "its kind of file is not known here",
    "PatchWelcomeError": "it uses a part of its format that FFmpeg does not read",
    "NotImplementedError": "it uses a part of its format that FFmpeg does not read",
    "ExperimentalError": "its codec has an experimental decoder only, which is not used",
    "InputChangedError": "its format changes in the middle",
    "OutputChangedError": "its format changes in the middle",
    "BugError": "FFmpeg found a mistake of its own",
    "ExternalError": "a library that FFmpeg uses failed",
    "UnknownError": "FFmpeg does not say why",
    "ArgumentError": "what it says of its pictures cannot be",
    "OverflowError": "what it says of its pictures cannot be",
    "FileNotFoundError": "there is no such file any more",
    "PermissionError": "it may not be read",
    "IsADirectoryError": "it is a folder",
}
"""Class of `av.error` -> what it means to who sees the source in the ledger."""
_LONGEST = 200
"""Of a library's words: decord's go on with the call stack."""


def run_decoder(decoder: Decoder | None, work: object, path: str, argument: object) -> Generator[Frame, None, Any]:
    """What `work(pipe, path, argument)` sends from that child, or from one of its own; returns what it returns."""
    if decoder is not None:
        return (yield from decoder.frames(work, path, argument))
    with Decoder() as own:
        return (yield from own.frames(work, path, argument))


class Decoder:
    """A child process that decodes one video after another, as long as all goes well: one in which a video failed, died or hung, or was not read to its
    end, is killed, and the next video gets a new one. Starting it takes longer than decoding half a second of video."""

    def __init__(self) -> None:
        self._child: Any = None
        self._pipe: Connection | None = None
        self._busy = False
        self.cpu_seconds = 0.0
        """Of its closed children, which are the fork server's and in no count of this process's own."""

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the child; the next video starts a new one."""
        if self._child is not None:
            with suppress(psutil.NoSuchProcess):  # it died of itself
                self.cpu_seconds += cpu_seconds(self._child.pid)
            self._child.kill()
            self._child.join()
            self._child = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def frames(self, work: object, path: str, argument: object) -> Generator[Frame, None, Any]:
        """What `work(pipe, path, argument)` sends from the child; returns what it returns.

        Raises:
            DecodeError: The video's fault.
            MachineError: The machine's.
        """
        pipe = self._ask((work, path, argument))
        well = False
        try:
            while True:
                kind, value = self._hear(pipe)
                if kind == "frame":
                    yield value
                elif kind == "alive":
                    continue
                elif kind == "end":
                    well = True
                    return value
                elif kind == "machine":
                    raise MachineError(value)
                else:
                    raise DecodeError(kind, value)
        finally:
            if self._pipe is pipe:  # not where somebody else has asked for another video since
                self._busy = False
                if not well:
                    self.close()

    def _hear(self, pipe: Connection) -> tuple[str, Any]:
        """What the child says next, or in its place that it died, hangs, or is kept from its work by the machine."""
        patience = Patience(self._child.pid)
        while not pipe.poll(LOOK_SECONDS):
            if end := patience.look():
                return end
        try:
            return pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            self._child.join()
            return "crash", f"the decoder died (exit code {self._child.exitcode})"

    def _ask(self, request: tuple[object, str, object]) -> Connection:
        """Gives the request to the child: to a new one where there is none, it was killed while it had nothing to do, or is still at another video."""
        if self._pipe is not None and self._child.is_alive() and not self._busy:
            with suppress(ConnectionError):
                self._pipe.send(request)
                self._busy = True
                return self._pipe
        self.close()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._pipe, theirs = context.Pipe()
        self._child = _start(context, theirs)
        theirs.close()
        try:
            self._pipe.send(request)
        except ConnectionError:
            self.close()
            raise DecodeError("crash", "the decoder died before it was given the video") from None
        self._busy = True
        return self._pipe


def _start(context: Any, pipe: Connection) -> Any:
    """A child of the fork server; where the server itself was killed, the next start makes a new one."""
    for last in (False, False, True):
        child = context.Process(target=_serve, args=(pipe, MEMORY_BYTES), daemon=True)
        try:
            with _without_main():
                child.start()
            return child
        except (EOFError, OSError):
            if last:
                raise
            time.sleep(0.2)  # its end must be noticed first
    raise AssertionError("the last try returns or raises")


@contextmanager
def _without_main() -> Iterator[None]:
    """Hides the program's main module while a child starts: the child needs nothing of it, and a script without a main guard would run twice."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(pipe: Connection, memory: int) -> None:
    """The child's life, in so many bytes of memory: until its parent is gone, or a video fails."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            return
        if not _run(pipe, *request):
            return


def _run(pipe: Connection, work: object, path: str, argument: object) -> bool:
    try:
        pipe.send(("end", work(pipe, path, argument)))  # type: ignore[operator]
        return True
    except DecodeError as error:
        pipe.send((error.kind, str(error)))
    except ImportError as error:
        pipe.send(("machine", f"{type(error).__name__}: {error}"))
    except MemoryError:
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        pipe.send(("memory", f"decoding it takes more memory than the {limit / 1024**2:,.0f} MB that a decoder may have"))
    except ConnectionError:  # nobody reads any more
        return False
    except OSError as error:
        kind = _kind_of(error, path)
        pipe.send((kind, f"{path}: {explain(error)}" if kind == "machine" else explain(error)))  # the ledger has the source's name
    except Exception as error:  # whatever the decoder raises is this source's verdict, told to the parent
        pipe.send(("decode", explain(error)))
    return False


def explain(error: Exception) -> str:
    """What a library's error means, and in brackets how it says so itself: one line, without the path."""
    import av

    said = str(getattr(error, "strerror", None) or error).strip()
    words = (said.splitlines() or [""])[0][:_LONGEST] or type(error).__name__
    if isinstance(error, av.error.FFmpegError):
        means = next((text for name, text in _FFMPEG_MEANS.items() if isinstance(error, getattr(av.error, name))), "FFmpeg cannot read it")
        return f"{means} (FFmpeg: {words})"
    if isinstance(error, OSError):
        return f"it cannot be read ({type(error).__name__}: {words})"
    return f"it cannot be decoded ({type(error).__name__}: {words})"


def _kind_of(error: OSError, path: str) -> str:
    """Whose fault an error of the system is. FFmpeg says EIO of contents too: then the file itself can be read."""
    import av

    if error.errno in _NOT_READABLE:
        return "missing"
    if error.errno == errno.ENOMEM:
        return "memory"
    if error.errno not in _MACHINE:
        return "decode"
    if error.errno == errno.EIO and isinstance(error, av.error.FFmpegError):
        return "machine" if _cannot_be_read(path) else "decode"
    return "machine"


def _cannot_be_read(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            while file.read(1 << 20):
                pass
    except OSError:
        return True
    return False
