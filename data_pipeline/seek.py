"""Single frames of a video, by their times: those of the crops that are rendered.

PyAV gives the frame that was looked at, bit for bit. decord can be asked instead; in open groups, transport streams and streams without times it gives
another frame. What each takes: docs/benchmarks_data.md, Decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np

from data_pipeline.decoder import DecodeError, Decoder, Frame, run_decoder
from data_pipeline.patience import Alive
from data_pipeline.upright import Upright

Seeker = Literal["pyav", "decord"]
_SAME = 0.0005
"""Seconds by which a time may differ from a frame's."""


def frames_at(path: str, pts: list[float], decoder: Decoder | None, seeker: Seeker) -> Iterator[Frame]:
    """The frames shown at the given times (as `sample_frames` gave them), each time once and in ascending order, as they are read.

    Args:
        path: The file.
        pts: Seconds, in any order.
        decoder: The child to decode in; None for one of its own.
        seeker: The library that does it.

    Raises:
        DecodeError: One of them could not be read.
    """
    yield from run_decoder(decoder, SEEKERS[seeker], path, sorted(set(pts)))


def read_frames_at(path: str, pts: list[float], decoder: Decoder | None = None, seeker: Seeker = "pyav") -> list[Frame]:
    """The same all at once, in the order of `pts`."""
    by_time = {frame.pts: frame for frame in frames_at(path, pts, decoder, seeker)}
    return [by_time[time] for time in pts]


def _send_at(sender: Connection, path: str, times: list[float]) -> None:
    with _Seeker(path, Alive(sender)) as seeker:
        upright = Upright(seeker.stream)
        for number, wanted in enumerate(times):
            sender.send(("frame", Frame(number, wanted, upright(seeker.frame_at(wanted)))))


class _Seeker:
    """Frames of a video at ascending times: decodes on where a time is no farther than keyframes were found to lie apart, else from the keyframe before it."""

    def __init__(self, path: str, alive: Alive) -> None:
        self._path, self._alive = path, alive
        self._frame: Any = None
        self._open()
        self._start = float((self.stream.start_time or 0) * self.stream.time_base)
        self._rate = float(self.stream.average_rate or 25)
        self._timed = self.stream.start_time is not None
        self._apart = 0.0 if self._timed else np.inf  # a stream without times cannot be sought in: frames are counted

    def __enter__(self) -> _Seeker:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> None:
        import av

        self._container: Any = av.open(self._path)
        self.stream: Any = self._container.streams.video[0]
        self.stream.thread_type = "NONE"
        self._frames = enumerate(self._container.decode(self.stream))
        self._pts = -np.inf

    def frame_at(self, wanted: float) -> Any:
        """The frame that `sample_frames` gave that time.

        Raises:
            DecodeError: There is none.
        """
        if wanted - self._pts > self._apart:
            self._seek(wanted)
            self._apart = max(self._apart, wanted - self._pts)
        for earlier in (0.0, 1.0, 10.0, np.inf):  # some containers lead to a keyframe after the time, or its first frames cannot be decoded
            if earlier >= wanted:
                self.__exit__()
                self._open()
            elif earlier:
                self._seek(wanted - earlier)
            while self._pts < wanted - _SAME:
                self._next()
            if self._pts <= wanted + _SAME:
                return self._frame
        raise DecodeError("decode", f"no frame at {wanted:.3f} s, the next is at {self._pts:.3f} s")

    def _seek(self, seconds: float) -> None:
        self._container.seek(int((seconds + self._start) / self.stream.time_base), stream=self.stream)
        self._frames = enumerate(self._container.decode(self.stream))
        self._next()

    def _next(self) -> None:
        for number, frame in self._frames:
            self._alive.tell()
            if frame.pts is not None or not self._timed:
                self._frame = frame
                self._pts = number / self._rate if frame.pts is None else float(frame.pts * self.stream.time_base) - self._start
                return
        self._pts = np.inf


def _send_at_by_decord(sender: Connection, path: str, times: list[float]) -> None:
    import av
    import decord

    with av.open(path) as container:
        upright, first = Upright(container.streams.video[0]), next(container.decode(video=0))
    reader = decord.VideoReader(path, num_threads=1)
    stamps = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    stamps -= stamps[0]
    for number, wanted in enumerate(times):
        index = int(np.argmin(np.abs(stamps - wanted)))
        if abs(stamps[index] - wanted) > 0.01:
            raise DecodeError("decode", f"no frame at {wanted:.3f} s, the nearest is at {stamps[index]:.3f} s")
        sender.send(("frame", Frame(number, wanted, upright.again(reader[index].asnumpy(), first))))


SEEKERS: dict[Seeker, Callable[[Connection, str, list[float]], None]] = {"pyav": _send_at, "decord": _send_at_by_decord}
"""What runs in the decoder's child."""
