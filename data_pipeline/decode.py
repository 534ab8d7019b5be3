"""Video frames, sampled in order, with the cuts between them; decoded in a child process (`decoder`).

PyAV reads in order; that choice and the one of `seek` are measured: docs/benchmarks_data.md, Decoders.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.decoder import DecodeError, Decoder, Frame, run_decoder
from data_pipeline.patience import Alive
from data_pipeline.upright import Upright

_CUT = 27.0
"""PySceneDetect's own threshold for a cut."""
_LATE = 0.5
"""A stream may end this many seconds before its stated length."""
_MATROSKA = "matroska,webm"
_HEAD = 4096
"""Bytes that have a Matroska file's own header and the size of all that follows."""
_SEGMENT = b"\x18\x53\x80\x67"
_SAY_WHEN_THEY_END = (_MATROSKA, "asf")
"""Containers whose length is the time at which the pictures end, by the file's clock; in others it begins with the first picture."""
_FROM_THE_FIRST = "libmatroska"
"""mkvmerge's library: it counts a file's length from what is first in it, and not from the clock's zero."""
_MAY_BE_JOINED = ("mpegts", "mpeg", _MATROSKA)
"""Containers that are read on where another one follows in the same file: recordings that somebody wrote one behind the other, each with its own clock."""
_CLOCK_FALLS = 1.0
"""Seconds by which a keyframe is before what came before it, where another clock begins."""


class FrameCount(NamedTuple):
    """Frames of a video, or of a piece of it."""

    stated: int
    """By its container, of the whole; 0 where it says nothing."""
    decoded: int
    """Of the piece, sampled or not."""
    next_shot: int | None = None
    """That of the first frame after the piece, counted as those of its frames are; None where nothing comes after it."""


def sample_frames(
    path: str, fps: float, start: float = 0.0, end: float | None = None, decoder: Decoder | None = None, one_clock: bool = False
) -> Generator[Frame, None, FrameCount]:
    """Frames of a video at no more than `fps` a second, in order.

    Args:
        path: The file.
        fps: Most frames a second.
        start: Seconds from which on frames are given.
        end: Seconds up to which; None for all.
        decoder: The child to decode in; None for one of its own.
        one_clock: Whether the file is known to be no two recordings that were joined, as another piece of it was decoded. Else it may be read whole first.

    Returns:
        How many frames there are between start and end, when all were read.

    Raises:
        DecodeError: After the frames that could be read.
    """
    return (yield from run_decoder(decoder, _send_sampled, path, (fps, start, end, one_clock)))


class _Clock(NamedTuple):
    """How a stream tells the times of its frames."""

    first: int
    """Its start, in ticks."""
    tick: Fraction
    """Seconds."""
    rate: float
    """Frames a second, on average."""
    timed: bool
    """Where it is not, frames are counted from the first."""

    @classmethod
    def of(cls, stream: Any) -> _Clock:
        return cls(stream.start_time or 0, stream.time_base, float(stream.average_rate or 25), stream.start_time is not None)

    @property
    def start(self) -> float:
        """In seconds."""
        return float(self.first * self.tick)

    def time_of(self, frame: Any, index: int) -> tuple[int, float]:
        """A frame's number and its seconds from the start."""
        if frame.pts is None:
            return index, index / self.rate
        return frame.pts - self.first if self.timed else index, float(frame.pts * self.tick) - self.start

    def lasts(self, frame: Any) -> float:
        """Seconds for which a frame is shown."""
        return float(frame.duration * self.tick) if frame.duration else 1 / self.rate


def _send_sampled(sender: Connection, path: str, wanted: tuple[float, float, float | None, bool]) -> FrameCount:
    """Sends what `sample_frames` gives for (fps, start, end, one_clock), and returns what it returns; in the decoder's child."""
    import av

    fps, begin, end, one_clock = wanted
    with av.open(path) as container:
        if not container.streams.video:
            raise DecodeError("decode", "no video stream in it")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        clock, alive = _Clock.of(stream), Alive(sender)
        if clock.timed and not one_clock and container.format.name in _MAY_BE_JOINED:
            _check_clock(path, alive)
        if clock.timed and begin > 1.0:
            _go_before(path, int((begin + clock.start) / clock.tick), container, stream)
        due, index, last, inside = -1.0, -1, 0.0, 0
        stated, length = _stated_frames(stream), stated_length(container, stream, clock.start)
        shots, upright = _ShotCounter(clock.rate), Upright(stream)
        if begin > 1.0:
            upright.check_begin(path)
        torn: list[str] = []
        for index, frame in enumerate(_frames_until_torn(container, stream, torn)):
            alive.tell()
            shots.see(frame)
            upright.check(stream)
            if frame.pts is None and clock.timed:  # it cannot be told from others, nor found again
                continue
            number, pts = clock.time_of(frame, index)
            last = pts + clock.lasts(frame)
            if end is not None and pts >= end:
                return FrameCount(stated, inside, shots.shot)
            inside += pts + 1e-6 >= begin
            if pts + 1e-6 >= max(due, begin):
                due = pts + 1 / fps
                sender.send(("frame", Frame(number, pts, upright(frame), shots.shot)))
        if index < 0:
            raise DecodeError("decode", "not one frame could be decoded")
        if container.format.name == _MATROSKA and _is_cut_off(path):
            torn.append("the file is shorter than its header says")
    _check_end(last, length, torn)
    return FrameCount(stated, inside)


def _check_end(last: float, length: float | None, torn: list[str]) -> None:
    """Raises DecodeError where the pictures end before their stated length, or are torn."""
    if torn or (length is not None and last < length - _LATE):
        of = "" if length is None else f" of {length:.1f} s"
        raise DecodeError("truncated", f"ends at {last:.1f} s{of}" + "".join(f" ({why})" for why in torn))


def _is_cut_off(path: str) -> bool:
    """Whether a Matroska file lacks its end. mkvmerge writes how long the pictures last there: nothing else would tell, where there is sound too."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    with suppress(IndexError):  # not even its head is there
        size, at = _read_size(head, 4)  # of what comes before the segment, behind its name of four bytes
        segment = at + (size or 0)
        size, at = _read_size(head, segment + 4)
        return head[segment : segment + 4] == _SEGMENT and size is not None and at + size > os.path.getsize(path)
    return False


def _read_size(data: bytes, at: int) -> tuple[int | None, int]:
    """A size as Matroska writes it: as many bytes as its first bit that is set says; None where all others are set, in what is written live. And its end."""
    length = 9 - data[at].bit_length()
    others = (1 << 7 * length) - 1
    size = int.from_bytes(data[at : at + length]) & others
    return (None if size == others else size), at + length


def _go_before(path: str, wanted: int, container: Any, stream: Any) -> None:
    """Seeks a keyframe before a time, in ticks: a piece of a long video begins there. Some containers lead to one after it, and then farther ahead."""
    import av

    for earlier in (0, 1, 10):
        place = wanted - int(earlier / stream.time_base)
        if place <= stream.start_time:
            return
        with av.open(path) as probe:
            same = probe.streams.video[0]
            probe.seek(place, stream=same)
            before = itertools.takewhile(lambda packet: packet.dts is None or packet.dts <= wanted, probe.demux(same))
            if any(packet.is_keyframe and packet.pts is not None and packet.pts <= wanted for packet in before):
                container.seek(place, stream=stream)
                return


def _check_clock(path: str, alive: Alive) -> None:
    """Refuses a file in which a second recording has the times of the first: whoever seeks a frame by its time may get the other's.

    Raises:
        DecodeError: Its clock starts again.
    """
    import av

    with av.open(path) as probe, suppress(av.error.InvalidDataError):  # a tear is for who decodes it to tell
        stream = probe.streams.video[0]
        assert stream.time_base is not None and stream.start_time is not None, "a stream with times"
        last = stream.start_time
        for packet in probe.demux(stream):
            alive.tell()
            if packet.pts is None:
                continue
            falls = float((last - packet.pts) * stream.time_base)
            if packet.is_keyframe and falls > _CLOCK_FALLS:  # others may come before what they follow
                after = float((last - stream.start_time) * stream.time_base)
                raise DecodeError(
                    "decode",
                    f"its clock starts again after {after:.1f} s, so that one time is that of several frames. "
                    "Give what was joined as files of their own, or write it anew with one clock",
                )
            last = max(last, packet.pts)


def stated_length(container: Any, stream: Any, start: float) -> float | None:
    """Seconds of the pictures, from their start on, by the stream's header, or by the tag that Matroska's writers leave. By the container's only where
    nothing else is in it: sound may be longer."""
    if stream.duration and container.format.name != "asf":  # there it is the container's
        return float(stream.duration * stream.time_base)
    tags = sorted((name, value) for name, value in stream.metadata.items() if name.startswith("DURATION"))
    with suppress(IndexError, ValueError):  # no tag, or one that is no time
        name, value = tags[0]  # before those with a language: a cut file has them as its whole had
        hours, minutes, seconds = value.split(":")
        length = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        return length if _is_of_pictures(stream.metadata, name, length) else length - _before(container, start)
    return container_length(container, start) if container.duration and len(container.streams) == 1 else None


def container_length(container: Any, start: float) -> float:
    """Seconds from the pictures' start to the end of what lasts longest, by the container's header; 0 where it says nothing."""
    return max((container.duration or 0) / 1e6 - _before(container, start), 0.0)


def _is_of_pictures(tags: dict[str, str], name: str, seconds: float) -> bool:
    """Whether a Matroska stream's tag is one of mkvmerge's statistics, which count from the first picture on. Its bit rate is then that of its bytes in this
    time; where another program wrote only the length anew, it is not."""
    size, rate = (tags.get(name.replace("DURATION", other), "") for other in ("NUMBER_OF_BYTES", "BPS"))
    if not (size.isdigit() and rate.isdigit() and seconds > 0):
        return False
    return abs(int(size) * 8 / seconds - int(rate)) <= 1 + int(rate) * 0.001 / seconds  # both are rounded: to bits, and to milliseconds


def _before(container: Any, start: float) -> float:
    """Seconds of a container's stated length that are before its pictures."""
    if container.format.name not in _SAY_WHEN_THEY_END:
        return 0.0
    writer = next((value for name, value in container.metadata.items() if name.lower() == "encoder"), "")
    return start - (container.start_time or 0) / 1e6 if _FROM_THE_FIRST in writer else start


def _stated_frames(stream: Any) -> int:
    """By the stream's header, or by the tag that Matroska's writers leave; 0 where neither is there."""
    tags = [value for name, value in stream.metadata.items() if name.startswith("NUMBER_OF_FRAMES") and value.isdigit()]
    return stream.frames or int(tags[0] if tags else 0)


def _frames_until_torn(container: Any, stream: Any, torn: list[str]) -> Iterator[Any]:
    """Decoded frames; a packet that cannot be decoded after the first frame ends them, and is told in `torn`."""
    import av

    seen = False
    try:
        for frame in container.decode(stream):
            seen = True
            yield frame
    except av.error.InvalidDataError as error:
        if not seen:
            raise
        torn.append(f"a packet cannot be decoded; FFmpeg: {error.strerror}")


class _ShotCounter:
    """Counts cuts with PySceneDetect's content detector; it sees every decoded frame, small."""

    def __init__(self, rate: float) -> None:
        import scenedetect
        from av.video.reformatter import VideoReformatter

        self._detector = scenedetect.ContentDetector(threshold=_CUT, min_scene_len=1)
        self._rate, self._index, self.shot = rate, 0, 0
        self._timecode = scenedetect.FrameTimecode
        self._reformatter = VideoReformatter()  # a frame's own is set up anew each time, which takes longer than its work

    def see(self, frame: Any) -> None:
        small = self._reformatter.reformat(frame, width=64, height=36, format="bgr24").to_ndarray()
        self.shot += len(self._detector.process_frame(self._timecode(self._index, fps=self._rate), small))
        self._index += 1


def check_is_video(path: str) -> None:
    """Raises DecodeError for a file that is missing or empty, before a child is started for it."""
    file = Path(path)
    if not file.is_file():
        raise DecodeError("missing", f"there is no file at {path}")
    if file.stat().st_size == 0:
        raise DecodeError("decode", "the file is empty")
