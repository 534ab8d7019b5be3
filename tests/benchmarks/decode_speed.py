"""PyAV and decord beside each other: what chooses the decoder of each access pattern (`data_pipeline/decode.py`, `seek.py`). Part of `make bench-data`.

Seeking is the builder's own with either library, and what comes is compared with the frames that were looked at. Some clips are encoded anew: with one
keyframe, where every seek leads to the beginning, and as a transport stream, which has no table of keyframes.
"""

from __future__ import annotations

import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.decode import sample_frames
from data_pipeline.decoder import Frame
from data_pipeline.seek import SEEKERS, Seeker

FPS = 5.0
END = 60.0
"""Seconds of a clip, at most."""
CLIPS = ("franck", "single_face")
_ANEW = {"one keyframe": (".mp4", {"g": "100000", "sc_threshold": "0"}), "transport stream": (".ts", {"g": "25"})}
"""Name -> container, settings of the encoder."""
Row = tuple[str, str]


def decoders() -> list[Row]:
    """PyAV and decord, each in a process of its own, in order (five frames a second) and seeking (twelve frames, far from each other)."""
    from infra import assets

    rows = []
    clips = {name: str(assets.path(name)) for name in CLIPS}
    clips |= {f"{CLIPS[0]}, {kind}": _encode(clips[CLIPS[0]], *how) for kind, how in _ANEW.items()}
    for name, path in clips.items():
        for pattern in ("in order", "seeking"):
            times = _moments(path) if pattern == "seeking" else []
            ways = {way: functools.partial(_in_process, way, path, times) for way in ("pyav", "decord")}
            found: dict[str, list[tuple[float, float, int, int] | None]] = {way: [] for way in ways}
            for _ in range(3):
                for way, run in ways.items():
                    found[way].append(run())
            told = []
            for way, several in found.items():
                results = [result for result in several if result is not None]
                if not results:
                    told.append(f"{way} cannot decode it")
                    continue
                assert len({result[2:] for result in results}) == 1
                seconds, megabytes = (statistics.median(result[n] for result in results) for n in (0, 1))
                count, right = results[0][2:]
                told.append(
                    f"{way} {seconds:.2f} s, {megabytes:.0f} MB, {count} frames" + (f", {right} of them those asked for" if times else "")
                )
            rows.append((f"{name}, {pattern}: CPU, memory above the start", "; ".join(told)))
    return rows


def _in_process(way: str, path: str, times: list[float]) -> tuple[float, float, int, int] | None:
    """CPU seconds, megabytes above the start, frames, right ones; None where the decoder raised."""
    script = f"from tests.benchmarks.decode_speed import decode_one; decode_one({way!r}, {path!r}, {times!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        if "DECORDError" in done.stderr or "av.error" in done.stderr:
            return None
        raise RuntimeError(done.stderr)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def _encode(path: str, suffix: str, options: dict[str, str]) -> str:
    """The first minute of a clip in a file of its own."""
    import av

    target = tempfile.mkstemp(suffix=suffix)[1]
    with av.open(path) as given, av.open(target, "w") as made:
        read = given.streams.video[0]
        stream = made.add_stream("libx264", rate=read.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = read.width, read.height, "yuv420p"
        for frame in given.decode(read):
            if frame.time is not None and frame.time >= END:
                break
            frame.pict_type = av.video.frame.PictureType.NONE
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return target


class _Pipe:
    """Takes the place of the pipe to the builder: keeps a small picture of each frame."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def send(self, message: tuple[str, Frame]) -> None:
        """A frame."""
        self.frames.append(message[1].image[::8, ::8].astype(int))


def decode_one(way: Seeker, path: str, times: list[float]) -> None:
    """Prints CPU seconds, megabytes above the start, frames and how many of them are those asked for, as JSON; without times in order."""
    __import__(way.replace("pyav", "av"))
    pipe, count = _Pipe(), 0
    before, memory = _cpu(), _peak()
    if times:
        SEEKERS[way](pipe, path, times)  # type: ignore[arg-type]
    else:
        count = decode_with_decord(path) if way == "decord" else decode_with_pyav(path)
    used, megabytes = _cpu() - before, _peak() - memory
    seen = {frame.pts: frame.image[::8, ::8].astype(int) for frame in sample_frames(path, FPS, end=END)} if times else {}
    right = sum(bool(np.abs(seen[time] - given).mean() < 1.5) for time, given in zip(times, pipe.frames))  # colours are rounded otherwise
    print(json.dumps([used, megabytes, count or len(pipe.frames), right]))


def decode_with_decord(path: str) -> int:
    """Frames decoded to RGB."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    stamps = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    wanted, due = [], 0.0
    for index, stamp in enumerate(stamps.tolist()):
        if due <= stamp < END:
            wanted.append(index)
            due = stamp + 1 / FPS
    return sum(reader[index].asnumpy().ndim == 3 for index in wanted)


def decode_with_pyav(path: str) -> int:
    """Frames decoded to RGB."""
    import av

    count = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        due = 0.0
        for frame in container.decode(stream):
            assert frame.time is not None
            if frame.time >= END:
                break
            if frame.time >= due:
                count += frame.to_ndarray(format="rgb24").ndim == 3
                due = frame.time + 1 / FPS
    return count


def _moments(path: str) -> list[float]:
    """Times of twelve frames far from each other."""
    times = [frame.pts for frame in sample_frames(path, FPS, end=END)]
    return [times[number] for number in np.linspace(1, len(times) - 1, min(12, len(times) - 1)).astype(int)]


def _cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def _peak() -> float:
    return float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
