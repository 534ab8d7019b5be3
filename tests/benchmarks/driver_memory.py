"""Memory of the process that runs a build: what many sources take of it, and what many samples do."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.analyze import analyze
from data_pipeline.build import build_dataset
from data_pipeline.publish import publish
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import WorkItem
from infra.jobs.common import perception_models
from tests.benchmarks.page import Row
from tests.data_pipeline.multiplied import multiply
from tests.data_pipeline.small import config

_PEOPLE = 12


def peak_megabytes() -> float:
    """Of this process; `ru_maxrss` would count what its parent held when it forked."""
    return float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def driver_memory(models: Path) -> Iterator[Row]:
    """Peaks of analysis, and of what comes after it."""
    for count in (100, 10_000):
        (peak,) = _measure(f"look_at_many({count})")
        yield f"driver's peak memory of analyzing {count:,} sources that show nothing", f"{peak:,.0f} MB"
    with tempfile.TemporaryDirectory() as work:
        build_dataset(config(_PEOPLE), work, models)
        (few, some), (many, most) = (_measure(f"publish_many({work!r}, {times})") for times in (20, 200))
    yield f"driver's peak memory of the stages after it, {some:,.0f} samples", f"{few:,.0f} MB"
    yield f"the same, {most:,.0f} samples", f"{many:,.0f} MB: {1024 * (many - few) / (most - some):.1f} KB more a sample"


def _measure(call: str) -> list[float]:
    """The figures that a call prints in a process of its own."""
    script = f"from tests.benchmarks.driver_memory import look_at_many, publish_many; {call}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def publish_many(work: str, times: int) -> None:
    """Scores to shards of so many times a build's people; prints this process' peak memory and the samples."""
    with tempfile.TemporaryDirectory() as folder:
        made = publish(multiply(config(_PEOPLE), work, perception_models(), times, Path(folder) / "many"), None)
    print(peak_megabytes(), sum(made.samples.values()))


def look_at_many(count: int) -> None:
    """Analyzes that many images that show nothing, on Ray; prints this process' peak memory."""
    import cv2

    folder, models = Path(tempfile.mkdtemp()), perception_models()
    items = []
    for number in range(count):
        path = folder / f"{number:05d}.png"
        picture = np.full((16, 16, 3), number % 251, np.uint8)
        picture[0, :, 0] = [(number >> bit) & 1 for bit in range(16)]
        path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        items.append(WorkItem(source_id=f"n{number}", uri=str(path), kind="image"))
    analyze(items, AnalyzeConfig(), models, str(folder / "work"))
    print(peak_megabytes())
