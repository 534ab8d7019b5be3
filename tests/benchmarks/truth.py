"""What is read of drawn people against what they show: a section of docs/benchmarks_data.md."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.observations import read_part
from data_pipeline.observe import observe
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from lato.landmarks import interocular_distance
from tests.benchmarks.page import Row

PEOPLE = 100


def truth(models: Path) -> Iterator[Row]:
    """Errors of pose and landmarks, and which expression was read for which."""
    work = tempfile.mkdtemp()
    config = DataConfig(synthetic=SyntheticConfig(anny=AnnyConfig(people=PEOPLE, workers=0)), analyze=AnalyzeConfig(workers=0))
    ledger = observe(config, work, models).ledger
    rows = [row for part in ledger.usable() for name in part["parts"] for row in read_part(work, name).to_pylist()]
    shutil.rmtree(work)
    pairs = [(row, json.loads(row["declared"])) for row in rows]
    yield f"pictures of {PEOPLE} people, faces found", f"{ledger.total('frames')}, {len(pairs)}"
    for axis in ("yaw", "pitch", "roll"):
        off = np.abs([row[axis] - shown[axis] for row, shown in pairs])
        yield f"{axis}: mean error, 95th percentile", f"{off.mean():.1f}, {np.percentile(off, 95):.1f} degrees"
    apart = []
    for row, shown in pairs:
        known = np.array(shown["landmarks"])
        apart.append(np.linalg.norm(np.array(row["landmarks"]).reshape(68, 2) - known, axis=1).mean() / interocular_distance(known))
    yield (
        "landmarks: mean distance a face, median and 95th percentile",
        f"{np.median(apart):.3f}, {np.percentile(apart, 95):.3f} interocular distances",
    )
    for label in sorted({shown["expression"] for _, shown in pairs}):
        read = Counter(row["expression"] for row, shown in pairs if shown["expression"] == label)
        yield f"{label}, read as", ", ".join(f"{name} {count}" for name, count in read.most_common())
