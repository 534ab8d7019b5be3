"""What the builder's workers take of a node: `python -m tests.benchmarks.worker_memory`. Needs the franck clip (`lato assets fetch franck`).

Builds of franck, of a 4K clip, an 8K one and large photos, with one real Ray worker at a time; its memory and that of its decoder are added up (resident; pages that
two of them share count twice) and the most is told by stage, beside what `data_pipeline/places.py` asks for.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
import psutil
from PIL import Image

from data_pipeline import groups, places, render, score
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.decode import sample_frames
from data_pipeline.rules import PairingConfig
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.synthetic.warp import WarpConfig
from infra import assets, pool
from infra.runtime import RuntimeConfig, start_ray, stop_ray
from tests.data_pipeline.videos import write

_EVERY = 0.05
_FAST = {"preset": "ultrafast", "x265-params": "log-level=none"}
_MB = 1024**2


class Meter:
    """The most memory of a Ray worker and its children, by stage."""

    def __init__(self) -> None:
        self.stage, self.most = "", dict[str, list[float]]()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.wait(_EVERY):
            for process in psutil.Process().children(recursive=True):
                try:
                    stage = self.stage
                    if process.name().startswith("ray::_Actor") and stage:
                        own, children = _taken(process), sum(map(_taken, process.children(recursive=True)))
                        most = self.most.setdefault(stage, [0.0, 0.0, 0.0])
                        self.most[stage] = [max(pair) for pair in zip(most, (own + children, own, children), strict=True)]
                except psutil.NoSuchProcess:
                    continue


def _taken(process: psutil.Process) -> float:
    return process.memory_info().rss / _MB


def enlarged(frames: list[np.ndarray], path: Path, size: tuple[int, int]) -> str:
    """The frames in a video of another size."""
    make = lambda number, height, width: cv2.resize(frames[number], (width, height), interpolation=cv2.INTER_CUBIC)  # noqa: E731
    return write(path, len(frames), size, codec="libx265", pixels="yuv420p10le", options=_FAST, make=make)


def main() -> None:
    """Measures, and prints a table."""
    frames = [frame.image for frame in sample_frames(str(assets.path("single_face")), 15.0)]
    cases = {
        "franck": lambda folder: shutil.copy(assets.path("franck"), folder),
        "4K, 10 bits": lambda folder: enlarged(frames, folder / "uhd.mp4", (2160, 3840)),
        "8K, 10 bits": lambda folder: enlarged(frames[:12], folder / "uhd8k.mp4", (4320, 7680)),
        "photos, 12 MP": lambda folder: photos(frames, folder, (3000, 4000)),
        "photos, 100 MP": lambda folder: photos(frames, folder, (8660, 11550)),
    }
    groups._BUNDLE = render._BUNDLE = score._BUNDLE = score._FEW = 1  # every stage has jobs for a worker
    asked = {place.stage: place.memory / _MB for place in places.places_of(config_of("."))}
    start_ray(RuntimeConfig(num_cpus=2))
    with Meter() as meter:
        real = pool._run_on_ray

        def told(make, jobs, workers, place):
            meter.stage = place.stage
            yield from real(make, jobs, workers, place)
            meter.stage = ""

        pool._run_on_ray = told
        for name, write_sources in cases.items():
            meter.most = {}
            with tempfile.TemporaryDirectory() as folder:
                sources = Path(folder, "src")
                sources.mkdir()
                write_sources(sources)
                build_dataset(config_of(str(sources)), str(Path(folder, "work")), assets.folder())
            for stage, (both, own, children) in meter.most.items():
                print(
                    f"{name:16}{stage:22}{both:6,.0f} MB (worker {own:,.0f}, decoder {children:,.0f}); asks for {asked[stage]:,.0f}",
                    flush=True,
                )
    stop_ray()


def photos(frames: list[np.ndarray], folder: Path, size: tuple[int, int]) -> None:
    """Two photos of that height and width."""
    for number in range(2):
        Image.fromarray(cv2.resize(frames[9 * number], size[::-1])).save(folder / f"photo{number}.jpg")


def config_of(folder: str) -> DataConfig:
    """A build in which every stage has one worker."""
    return DataConfig(
        folder=folder,
        synthetic=SyntheticConfig(anny=AnnyConfig(people=20, images=3, workers=1), warp=WarpConfig(workers=1)),
        analyze={"workers": 1},
        pairing=PairingConfig(max_upscale=9.0, max_padding=0.5),
        split=SplitConfig(max_component=1.0),
    )


if __name__ == "__main__":
    main()
