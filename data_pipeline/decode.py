"""Video frames: a decoder in a child process that can be killed, so that a hang or a crash costs one source and not a worker.

PyAV reads in order (analysis): twice decord's rate and a twelfth of its memory. decord seeks (rendering a few frames); it keeps decoding ahead into
memory when nobody reads, so it lives only as long as its child (measurements in docs/decisions.md).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

NO_PROGRESS_SECONDS = 60.0
_LATE = 0.5
"""A stream may end this many seconds before its stated length."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame: its number in decoding order, presentation time in seconds, RGB `(H, W, 3)` uint8 upright."""

    index: int
    pts: float
    image: npt.NDArray[np.uint8]


class DecodeError(Exception):
    """A source that cannot be decoded: `kind` is decode, truncated, crash or hang."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def sample_frames(path: str, fps: float) -> Iterator[Frame]:
    """Frames of a video at no more than `fps` a second, in order.

    Raises:
        DecodeError: After the frames that could be read.
    """
    yield from _in_child(_send_sampled, path, fps)


def read_frames_at(path: str, pts: list[float]) -> list[Frame]:
    """The frames shown at the given times (as `sample_frames` gave them).

    Raises:
        DecodeError: One of them could not be read.
    """
    frames = list(_in_child(_send_at, path, sorted(set(pts))))
    by_time = {round(frame.pts, 6): frame for frame in frames}
    missing = [time for time in pts if round(time, 6) not in by_time]
    if missing:
        raise DecodeError("decode", f"no frame at {missing[0]:.3f} s")
    return [by_time[round(time, 6)] for time in pts]


def _in_child(work: object, path: str, argument: object) -> Iterator[Frame]:
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(sender, work, path, argument), daemon=True)
    child.start()
    sender.close()
    try:
        while True:
            if not receiver.poll(NO_PROGRESS_SECONDS):
                raise DecodeError("hang", f"no frame for {NO_PROGRESS_SECONDS:.0f} s")
            try:
                kind, value = receiver.recv()
            except EOFError:
                child.join()
                raise DecodeError("crash", f"the decoder died (exit code {child.exitcode})") from None
            if kind == "frame":
                yield value
            elif kind == "end":
                return
            else:
                raise DecodeError(kind, value)
    finally:
        child.kill()
        child.join()
        receiver.close()


def _run(sender: Connection, work: object, path: str, argument: object) -> None:
    try:
        work(sender, path, argument)  # type: ignore[operator]
        sender.send(("end", None))
    except DecodeError as error:
        sender.send((error.kind, str(error)))
    except Exception as error:  # whatever the decoder raises is this source's verdict, told to the parent
        sender.send(("decode", f"{type(error).__name__}: {error}"))


def _send_sampled(sender: Connection, path: str, fps: float) -> None:
    import av

    with av.open(path) as container:
        if not container.streams.video:
            raise DecodeError("decode", "no video stream in it")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        assert stream.time_base is not None, "an opened stream has a time base"
        tick = stream.time_base
        length = float(stream.duration * tick) if stream.duration else None
        start = float((stream.start_time or 0) * tick)
        due, index, last = -1.0, -1, 0.0
        for index, frame in enumerate(container.decode(stream)):
            pts = float(frame.pts * tick) - start if frame.pts is not None else index / float(stream.average_rate or 25)
            last = pts
            if pts + 1e-6 >= due:
                due = pts + 1 / fps
                sender.send(("frame", Frame(index, pts, _upright(frame))))
    if index < 0:
        raise DecodeError("decode", "not one frame could be decoded")
    if length is not None and last < length - _LATE:
        raise DecodeError("truncated", f"ends at {last:.1f} s of {length:.1f} s")


def _upright(frame: object) -> npt.NDArray[np.uint8]:
    image = frame.to_ndarray(format="rgb24")  # type: ignore[attr-defined]
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _send_at(sender: Connection, path: str, times: list[float]) -> None:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    stamps = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    stamps -= stamps[0]
    for time in times:
        index = int(np.argmin(np.abs(stamps - time)))
        if abs(stamps[index] - time) > 0.01:
            raise DecodeError("decode", f"the nearest frame to {time:.3f} s is at {stamps[index]:.3f} s")
        sender.send(("frame", Frame(index, time, reader[index].asnumpy())))


def check_is_video(path: str) -> None:
    """Raises DecodeError for a file that is missing or empty, before a child is started for it."""
    file = Path(path)
    if not file.is_file():
        raise DecodeError("missing", f"there is no file at {path}")
    if file.stat().st_size == 0:
        raise DecodeError("decode", "the file is empty")
