"""How much work a build does: exact counts of model calls and frames, which unlike times are the same on a busy machine.

`python -m tests.data_pipeline.work_counts` prints them beside the committed ones (`work_counts.yaml`); with `--write` it renews those.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mediapipe
import onnxruntime
import pytest
import yaml

from data_pipeline import tracks
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.observations import read_ledger_row
from data_pipeline.publish import Stopped
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for
from lato.faces.detect import FaceDetector
from tests.benchmarks.look_speed import Bench

TABLE = Path(__file__).with_name("work_counts.yaml")
CLIPS = ("single_face", "carphone")
MILLISECONDS = {"identity": 38.0, "mesh": 13.0, "detector": 7.0, "points68": 2.0, "text detector": 17.0, "decoded frames": 2.0}
"""CPU time of the plain loop, a sampled frame (of a talking clip), when the gate was set: what the counts are weighed by. It stays when a network gets faster, as
the recognizer did: only counts may move the gate. What is saved in time is docs/benchmarks_data.md."""
_SIDES = {112: "identity", 64: "points68", 256: "text detector"}
"""Side of what a network is given -> what is counted."""


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts every run of a network, faces that are measured, and chips, in this process."""
    counts: Counter[str] = Counter()

    def counted(owner: Any, attribute: str, name: Any) -> None:
        real = getattr(owner, attribute)

        def call(*given: Any, **named: Any) -> Any:
            what, times = name(*given) if callable(name) else (name, 1)
            counts[what] += times
            return real(*given, **named)

        patch.setattr(owner, attribute, call)

    def of_session(session: Any, names: Any, feed: dict[str, Any]) -> tuple[str, int]:
        pictures = next(iter(feed.values()))
        return _SIDES[pictures.shape[-1]], len(pictures)

    with pytest.MonkeyPatch.context() as patch:
        counted(FaceDetector, "detect", lambda _, image: ("detector on chips" if image.shape[:2] == (256, 256) else "detector", 1))
        counted(FaceDetector, "glance", "glances")
        counted(mediapipe.tasks.vision.FaceLandmarker, "detect", "mesh")
        counted(onnxruntime.InferenceSession, "run", of_session)
        counted(tracks, "measure", "measured faces")
        counted(tracks, "chip_of", "chips")
        yield counts


def count_ours(clip: str, models: Path) -> dict[str, int]:
    """Of a build of one clip up to its verdicts, at settings at which some of its pairs are accepted."""
    config = DataConfig(analyze=AnalyzeConfig(workers=0), pairing=PairingConfig(max_upscale=6.0))
    with tempfile.TemporaryDirectory() as work, counting() as counts:
        with suppress(Stopped):
            build_dataset(config, work, models, [item_for(clip)], until="pair")
        rows = [read_ledger_row(work, path.stem) for path in (Path(work) / "parts").iterdir()]
        frames = {
            "sampled frames": sum(row["frames"] for row in rows),
            "decoded frames": sum(row["decoded_frames"] for row in rows),
            "representatives": sum(row["representatives"] for row in rows),
        }
    return dict(sorted((counts + Counter(frames)).items()))


def count_plain(name: str, bench: Bench) -> dict[str, int]:
    """Of the benchmark's plain loop: every model on every sampled frame."""
    with counting() as counts:
        bench.plain(name)
    return dict(counts)


def weigh(ours: dict[str, float], plain: dict[str, float]) -> float:
    """How many times less our calls cost than the plain loop's, both weighed by `MILLISECONDS`; both decode every frame once. A glance is half a look."""
    plain = plain | {"decoded frames": ours["decoded frames"]}
    ours = ours | {"detector": ours["detector"] + ours.get("detector on chips", 0) + ours.get("glances", 0) / 2}
    spent = sum(cost * ours.get(name, 0) / plain[name] for name, cost in MILLISECONDS.items())
    return sum(MILLISECONDS.values()) / spent


def count_all(models: Path, clip: Any) -> dict[str, Any]:
    """The whole table."""
    bench = Bench(models)
    counts = {name: (count_ours(clip(name), models), count_plain(name, bench)) for name in CLIPS}
    return {name: {"ours": ours, "plain over ours": round(weigh(ours, plain), 2)} for name, (ours, plain) in counts.items()}


def main() -> None:
    """Prints the table; writes it where asked to."""
    from infra import assets
    from infra.jobs.common import perception_models

    found = count_all(perception_models(), lambda name: str(assets.path(name)))
    text = "# Written by python -m tests.data_pipeline.work_counts --write\n" + yaml.safe_dump(found, sort_keys=False)
    print("--- committed\n" + (TABLE.read_text() if TABLE.exists() else "") + "--- now\n" + text)
    if "--write" in sys.argv[1:]:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
