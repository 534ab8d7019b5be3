"""PyAV and decord beside each other: what chooses the decoder of each access pattern (`data_pipeline/decode.py`). Part of `make bench-data`."""

from __future__ import annotations

import functools
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

FPS = 5.0
END = 60.0
"""Seconds of a clip, at most."""
CLIPS = ("franck", "single_face")
Row = tuple[str, str]


def decoders() -> list[Row]:
    """PyAV and decord, each in a process of its own, in order (five frames a second) and seeking (twelve frames, far from each other)."""
    from infra import assets

    rows = []
    for name in CLIPS:
        for pattern in ("in order", "seeking"):
            ways = {way: functools.partial(_in_process, way, pattern, str(assets.path(name))) for way in ("pyav", "decord")}
            found: dict[str, list[tuple[float, float, int] | None]] = {way: [] for way in ways}
            for _ in range(3):
                for way, run in ways.items():
                    found[way].append(run())
            told = []
            for way, several in found.items():
                results = [result for result in several if result is not None]
                if not results:
                    told.append(f"{way} cannot decode it")
                    continue
                assert len({count for _, _, count in results}) == 1
                seconds, megabytes = (statistics.median(result[n] for result in results) for n in (0, 1))
                told.append(f"{way} {seconds:.2f} s, {megabytes:.0f} MB, {results[0][2]} frames")
            rows.append((f"{name}, {pattern}: CPU, memory above the start", "; ".join(told)))
    return rows


def _in_process(way: str, pattern: str, path: str) -> tuple[float, float, int] | None:
    """CPU seconds, megabytes above the start, frames; None where the decoder raised."""
    script = f"from tests.benchmarks.decode_speed import decode_one; decode_one({way!r}, {pattern!r}, {path!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        if "DECORDError" in done.stderr or "av.error" in done.stderr:
            return None
        raise RuntimeError(done.stderr)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def decode_one(way: str, pattern: str, path: str) -> None:
    """Prints CPU seconds, megabytes above the start and frames, as JSON."""
    decode = decode_with_decord if way == "decord" else decode_with_pyav
    __import__(way.replace("pyav", "av"))
    before, memory = _cpu(), _peak()
    count = decode(path, pattern)
    print(json.dumps([_cpu() - before, _peak() - memory, count]))


def decode_with_decord(path: str, pattern: str) -> int:
    """Frames decoded to RGB."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    stamps = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    if pattern == "seeking":
        wanted = [int(np.argmin(np.abs(stamps - moment))) for moment in _moments(float(stamps[-1]))]
    else:
        wanted, due = [], 0.0
        for index, stamp in enumerate(stamps.tolist()):
            if due <= stamp < END:
                wanted.append(index)
                due = stamp + 1 / FPS
    return sum(reader[index].asnumpy().ndim == 3 for index in wanted)


def decode_with_pyav(path: str, pattern: str) -> int:
    """Frames decoded to RGB."""
    import av

    count = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        assert stream.time_base is not None and container.duration is not None
        if pattern == "seeking":
            for moment in _moments(container.duration / 1e6 - 0.1):
                container.seek(int(moment / stream.time_base), stream=stream)
                frame = next(frame for frame in container.decode(stream) if frame.time is not None and frame.time >= moment - 0.02)
                count += frame.to_ndarray(format="rgb24").ndim == 3
            return count
        due = 0.0
        for frame in container.decode(stream):
            assert frame.time is not None
            if frame.time >= END:
                break
            if frame.time >= due:
                count += frame.to_ndarray(format="rgb24").ndim == 3
                due = frame.time + 1 / FPS
    return count


def _moments(length: float) -> list[float]:
    """Twelve moments far from each other, in no order."""
    return [float(time) for time in np.random.default_rng(0).permutation(np.linspace(0.1, min(length, END) - 0.2, 12))]


def _cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def _peak() -> float:
    return float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
