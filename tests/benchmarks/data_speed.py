"""The data builder against a plain loop (`look_speed`) and against its own parts; writes docs/benchmarks_data.md. About twenty minutes on two cores.

`python -m tests.benchmarks.data_speed Videos Decoders` measures some sections anew; the others of the page stay.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import webdataset

from data_pipeline.build import build_dataset
from data_pipeline.candidates import find_candidates
from data_pipeline.config import DataConfig
from data_pipeline.judge import count_verdicts, judge
from data_pipeline.pack import PackConfig, Planned, pack
from data_pipeline.pairing import SCORE_SCHEMA, Person, score_person
from data_pipeline.people import find_people
from data_pipeline.rules import PairingConfig, Rules
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from infra import storage
from infra.jobs.common import perception_models
from infra.runtime import quieten
from infra.storage import read_bytes
from lato.pairs import FacePair
from tests.benchmarks.decode_speed import decoders
from tests.benchmarks.driver_memory import driver_memory, peak_megabytes
from tests.benchmarks.look_speed import against_the_plain_loop, interleaved, two_workers
from tests.benchmarks.page import Row, measure
from tests.benchmarks.recognizer_speed import recognizer
from tests.benchmarks.truth import truth

PAIRS = 10_000_000
PAGE = Path("docs/benchmarks_data.md")


NOTES = {
    "Videos": (
        "The plain loop runs every model on every sampled frame. The ceiling is the plain loop over decoding, shots and one look of the\n"
        "mesh at each of the plain loop's faces. The decoders' seconds are in all of them (they are children of the fork server).\n"
        "What the platform adds is measured on further copies of a clip in one build. Pairing is in neither way. `pairing.max_upscale` is 6 here: at the\n"
        "default of 1.5 no face of franck and carphone is large enough, and the builder would ask for no identity at all. A pair needs the identity of\n"
        "two faces, and a look of the text detector at each: where that is more than what 85 % allows above the ceiling, a clip misses the aim with its first\n"
        "pair. Cells are (track, source bin, target bin); `all filters` judges both ways' faces by the same pairing rule without quotas, and computes for that,\n"
        "outside the times, the identity that quotas spared. `identity and sharpness alone` compares the recognizer's two ways to a face: the plain loop\n"
        "aligns by the detector's points in the whole picture, the builder by those on the level chip. On carphone's three faces that lean by 30 degrees the\n"
        "detector places them so badly that the plain loop does not know the man again."
    ),
    "Recognizer": "SFace's file as onnxruntime opens it, and with its graph put into the form that runs fast (`lato/faces/onnx_session.py`).",
    "Decoders": (
        "In order: five frames a second of the first minute. Seeking: twelve frames far from each other, by the builder's own code with either library,\n"
        "compared with the frames that were looked at. Each in a process of its own; importing decord, about 400 MB and 0.4 s, is not in it."
    ),
    "Building": (
        "`pack` and the bare loop are given the same: descriptions and landmarks, which each encodes, and the crops' files, which each reads. `pack` writes the\n"
        "manifest and the card too. In a build it reads its samples of columns, one at a time: the second figure has that too, the bare loop's side has not."
    ),
    "Driver": (
        "Of the process that runs the build, the rest is Ray's. Analysis: pictures that show nothing, so that what sources take is seen alone. The stages after it\n"
        "(scoring, judging, splitting, naming crops, packing; the crops stand, nothing is rendered): a finished build of 12 drawn people, multiplied, in this\n"
        "process; what each sample more takes at the peak. Memory grows with the samples, by that much."
    ),
    "Truth": "Drawn people say what they show. The reader was fitted to other people of the same kind (`make fit`): on real faces it will do less well.",
    "Workers": "Wall time, on Ray. The ratio means little where the load is above the cores: both runs then share them with others.",
}
"""Section -> what its figures mean."""


def rerun_and_packing(models: Path) -> list[Row]:
    """A finished build again; and packing beside a bare TarWriter."""
    work = tempfile.mkdtemp()
    config = DataConfig(synthetic=SyntheticConfig(anny=AnnyConfig(people=40, workers=0)), analyze=AnalyzeConfig(workers=0))
    started = time.monotonic()
    packed: list[tuple[list[Planned], str]] = []

    def keep(samples: list[Planned], *given: Any) -> str:
        packed.append((samples, given[1]))
        return pack(samples, *given)

    with patch("data_pipeline.publish.pack", keep):
        build_dataset(config, work, models)
    first = time.monotonic() - started
    storage._sha256_of.cache_clear()  # a rerun is another process, which hashes the models anew
    started = time.monotonic()
    build_dataset(config, work, models)
    again = time.monotonic() - started
    ((samples, folder),) = packed
    found = find_candidates(folder, ["verdict"], lambda piece: pc.equal(piece["verdict"], "accepted"))
    crops = {row["key"]: [f"{work}/renders/{name}" for name in row["rendered"]] for row in found}
    made = [(sample, *sample.read()) for sample in samples]
    given = [Planned(sample.key, sample.split, partial(with_crops, row, pair, crops[sample.key])) for sample, row, pair in made]
    finished = [(pair.key, pair.meta.model_dump(mode="json"), pair.landmarks, crops[pair.key]) for _, _, pair in made]
    took = interleaved(
        {
            "ours": lambda: pack(given, PackConfig(), tempfile.mkdtemp(), "v", "x"),
            "build": lambda: pack(samples, PackConfig(), tempfile.mkdtemp(), "v", "x"),
            "bare": lambda: write_bare(finished),
        }
    )
    shutil.rmtree(work)
    return [
        ("a finished build again / its first time", f"{100 * again / first:.1f} %"),
        ("packing / a bare webdataset.TarWriter loop (samples a CPU second)", f"{took['bare'] / took['ours']:.2f}"),
        ("the same, with what a build makes its descriptions and landmarks from", f"{took['bare'] / took['build']:.2f}"),
    ]


def with_crops(row: dict[str, Any], pair: FacePair, crops: list[str]) -> tuple[dict[str, Any], FacePair]:
    """A sample that is finished but for its crops, which are read."""
    source, target = map(read_bytes, crops)
    return row, FacePair(pair.key, source, target, pair.landmarks, pair.meta)


def write_bare(samples: list[tuple[str, dict[str, Any], npt.NDArray[np.float32], list[str]]]) -> None:
    """Key, description, landmarks, and the files of the two crops, which are read: samples into tars of 200."""
    folder = Path(tempfile.mkdtemp())
    for start in range(0, len(samples), 200):
        with webdataset.TarWriter(str(folder / f"{start}.tar")) as writer:
            for key, meta, landmarks, crops in samples[start : start + 200]:
                source, target = map(read_bytes, crops)
                writer.write({"__key__": key, "json": meta, "landmarks.npy": landmarks, "source.jpg": source, "target.jpg": target})


def rethreshold() -> list[Row]:
    """Ten million stored candidates judged anew, in a process of its own."""
    script = "import sys; from tests.benchmarks.data_speed import judge_many; judge_many(sys.argv[1])"
    with tempfile.TemporaryDirectory() as folder:
        write_many(Path(folder))
        done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        (
            f"{found['pairs']:,} stored candidates judged anew",
            f"{found['seconds']:.0f} s, peak {found['megabytes']:,.0f} MB, {found['accepted']:,} accepted",
        ),
    ]


def judge_many(scores: str) -> None:
    """Judges the tables of a folder; prints figures as JSON."""
    folder = Path(scores)
    tables = [str(path) for path in sorted(folder.glob("*.parquet"))]
    started = time.monotonic()
    judged = judge(tables, Rules(PairingConfig(max_upscale=3.0)), StoredVectors(folder))
    seconds = time.monotonic() - started
    counts = count_verdicts(judged)
    peak = peak_megabytes()
    print(json.dumps({"pairs": sum(counts.values()), "seconds": seconds, "megabytes": peak, "accepted": counts["accepted"]}))


class StoredVectors:
    """Identity of all faces, read from a column file a part as in a build."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, part: str) -> Mapping[int, Any]:
        """Row -> vector."""
        table = pq.read_table(self._folder / "identity" / f"{part}.parquet")
        flat = np.asarray(table["embedding"].combine_chunks().flatten(), np.float32)
        return dict(zip(table["row"].to_pylist(), flat.reshape(len(table), -1), strict=True))

    def compute(self, wanted: Mapping[str, set[int]]) -> None:
        """Never called: nothing is lacking."""
        raise AssertionError(wanted)


def write_vectors(folder: Path, part: str, rng: np.random.Generator) -> None:
    """Forty faces around one direction, most of them alike, some not."""
    vectors = rng.normal(size=128) + rng.normal(size=(40, 128)) * rng.uniform(0.5, 1.3, (40, 1))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = pa.table(
        {"row": pa.array(range(40), pa.int32()), "embedding": pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32()))}
    )
    pq.write_table(table, folder / "identity" / f"{part}.parquet")


def write_many(folder: Path) -> None:
    """Score tables: one scored person, multiplied; names and scores differ, 50 pairs of each bin stay."""
    (folder / "identity").mkdir()
    rng = np.random.default_rng(0)
    rows = [random_face(rng, number) for number in range(40)]
    base = score_person(Person("p", "same_track", rows), 2.1)
    assert base is not None
    table = pa.table({field.name: pa.array(base[field.name], field.type) for field in SCORE_SCHEMA})
    people, size = PAIRS // len(table) + 1, len(table)
    for person in range(people):
        write_vectors(folder, f"p{person}", rng)
    with pq.ParquetWriter(folder / "0.parquet", SCORE_SCHEMA, compression="zstd") as writer:
        for start in range(0, people, 32):
            many = range(start, min(start + 32, people))
            piece = pa.concat_tables([table] * len(many))
            names = pa.array([f"p{person}" for person in many for _ in range(size)])
            for column in ("person", "source_id", "target_id", "from_part", "to_part"):
                piece = piece.set_column(piece.schema.get_field_index(column), column, names)
            keys = pa.array([f"p_{start * size + number:020d}" for number in range(len(piece))])
            piece = piece.set_column(piece.schema.get_field_index("key"), "key", keys)
            for column, low, high in (("sharpness", 5, 300), ("upscale", 0.5, 6.0)):
                values = pa.array(rng.uniform(low, high, len(piece)).astype(np.float32))
                piece = piece.set_column(piece.schema.get_field_index(column), column, values)
            writer.write_table(piece, row_group_size=len(piece))


def random_face(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """A representative as pairing reads it."""
    scores = {
        name: float(rng.uniform(0, 1)) for name in ("noise", "clipped", "blockiness", "letterbox", "occlusion", "writing", "skin_ita")
    }
    return {
        "source_id": "s", "source_sha256": "x", "kind": "video", "identity": None, "track": 0, "own_track": 0, "frame": number, "pts": number / 5,
        "width": 640, "height": 480, "landmarks": (rng.uniform(200, 300, (68, 2))).reshape(-1).tolist(), "yaw": float(rng.choice([-30, 0, 30])) + float(rng.normal()),
        "pitch": float(rng.normal()), "roll": float(rng.normal()), "expression": str(rng.choice(["neutral", "happy", "surprised"])),
        "expression_intensity": 0.7, "declared": None, "held_out": False, "sharpness": 50.0, "face_px": 100.0, "phash": rng.bytes(32), "row": number, "part": "s",
        **scores, "writing": 0.0, "occlusion": 0.05, "letterbox": 0.0, "clipped": 0.0,
    }  # fmt: skip


def clustering() -> list[Row]:
    """Links among tracks of as many people, and how their time grows; and of people of five tracks, with one who has 2 % of all."""
    rows, last = [], 0.0
    for count in (1_000, 10_000, 100_000):
        took = _time_links(np.random.default_rng(0).normal(size=(count, 128)))
        rows.append((f"links among {count:,} tracks", f"{took:.1f} s" + (f" ({took / last:.0f} x the time of a tenth)" if last else "")))
        last = took
    rng = np.random.default_rng(0)
    people = rng.normal(size=(20_000, 128))[np.sort(rng.integers(0, 20_000, 100_000))]
    people[:2_000] = people[0]
    took = _time_links(people + 0.8 * rng.normal(size=people.shape))
    return [*rows, ("links among 100,000 tracks of 20,000 people", f"{took:.1f} s ({took / last:.1f} x the time where nobody has two)")]


def _time_links(vectors: npt.NDArray[np.float64]) -> float:
    """Seconds."""
    faces = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    names = {f"s{number}/0": vector for number, vector in enumerate(faces)}
    started = time.monotonic()
    find_people(names, SplitConfig().link_similarity, SplitConfig().link_nearest)
    return time.monotonic() - started


def main() -> None:
    """Runs all sections, or those that are named by their first word, and writes the page."""
    quieten()
    models = perception_models()
    sections: dict[str, Callable[[], Iterable[Row]]] = {
        "Videos": lambda: against_the_plain_loop(models),
        "Recognizer": lambda: recognizer(models),
        "Decoders": decoders,
        "Workers": lambda: two_workers(models),
        "Building": lambda: rerun_and_packing(models),
        "Judging": rethreshold,
        "Splitting": clustering,
        "Driver": lambda: driver_memory(models),
        "Truth": lambda: truth(models),
    }
    head = (
        "# Benchmarks of the data builder\n\n`make bench-data` writes this page; `python -m tests.benchmarks.data_speed Videos` one section. "
        "CPU seconds, one thread a process, interleaved,\nmedian of three; ratios of one run. Between runs the first digits hold.\n"
    )
    measure(PAGE, head, {title: (NOTES.get(title, ""), work) for title, work in sections.items()}, sys.argv[1:])


if __name__ == "__main__":
    main()
