"""The data builder against a plain loop and against its own parts; writes docs/benchmarks_data.md. About fifteen minutes on two cores.

CPU seconds of this process and its decoders, one thread each, interleaved, median of three. Every ratio comes from one run.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from data_pipeline.analyze import AnalyzeConfig, analyze
from data_pipeline.build import DataConfig, build_dataset
from data_pipeline.chips import Chip, cut_chip
from data_pipeline.decode import sample_frames
from data_pipeline.groups import GROUPS, Face, GroupsConfig, backfill, group_digests
from data_pipeline.judge import PairingConfig, Rules, count_verdicts, judge
from data_pipeline.pack import PackConfig, Planned, pack, read_manifest, read_members
from data_pipeline.pairing import SCORE_SCHEMA, Person, score_person
from data_pipeline.perceive import bin_of, watch_video
from data_pipeline.split import SplitConfig, find_links
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.worklist import WorkItem, item_for
from infra import assets
from infra.jobs.common import perception_models
from infra.runtime import quieten
from lato.faces import FaceReader
from lato.faces.expression import classify, estimate_neutral
from lato.faces.points68 import FacePoints68
from lato.faces.quality import measure
from lato.pairs import MEMBERS, decode_pair

CLIPS = {"franck": 120.0, "carphone": None, "single_face": None, "face_noface": None}
"""Clip -> seconds of it that are looked at."""
FPS = 5.0
PAIRS = 10_000_000
Row = tuple[str, str]


def cpu() -> float:
    """CPU seconds of this process and of its children that ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in both)


def peak_megabytes() -> float:
    """Of this process; `ru_maxrss` would count what its parent held when it forked."""
    return float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def spent(work: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    before = cpu()
    work()
    return cpu() - before


def interleaved(works: dict[str, Callable[[], Any]], rounds: int = 3) -> dict[str, float]:
    """Median CPU seconds of each, taken in turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(spent(work))
    return {name: statistics.median(values) for name, values in taken.items()}


def plain_loop(uri: str, end: float | None, reader: FaceReader, points: FacePoints68) -> list[dict[str, Any]]:
    """What one would write first: every model on every sampled frame."""
    seen, blend = [], []
    for frame in sample_frames(uri, FPS, 0.0, end):
        for detection in reader.detector.detect(frame.image)[:1]:
            mesh = reader.mesh.observe(frame.image, detection)
            if mesh is None:
                continue
            embedding = reader.embedder.embed(frame.image, detection.points5)
            chip = cut_chip(frame.image, mesh.landmarks68)
            points.find(chip.image(), chip.place(mesh.landmarks68))
            quality = measure(frame.image, detection, mesh.landmarks68)
            row = {
                "pts": frame.pts,
                "yaw": mesh.yaw,
                "pitch": mesh.pitch,
                "roll": mesh.roll,
                "embedding": embedding,
                "shot": frame.shot,
                "declared": None,
            }
            seen.append(row | quality.__dict__)
            blend.append(mesh.blendshapes)
    rest = estimate_neutral(np.array(blend)) if blend else None
    for row, shapes in zip(seen, blend, strict=True):
        row["expression"] = classify(shapes, rest).label.value
    return seen


def ceiling(uri: str, end: float | None, reader: FaceReader) -> None:
    """Decoding, shots and the mesh: what no way can leave out."""
    where = None
    for frame in sample_frames(uri, FPS, 0.0, end):
        where = where or next(iter(reader.detector.detect(frame.image)), None)
        if where is not None:
            reader.mesh.observe(frame.image, where)


def against_the_plain_loop(models: Path) -> list[Row]:
    """Ratios on each clip, what each saving buys, and what the platform adds to its own decoding and model calls."""
    reader, points = FaceReader.from_folder(models), FacePoints68.from_file(models / "fr_landmark.onnx")
    config = AnalyzeConfig(workers=0)
    digests = group_digests(models, config.groups)
    scorers = {name: GROUPS[name].make(models, config.groups) for name in config.groups.names}
    rows = []
    for name, end in CLIPS.items():
        uri = str(assets.path(name))
        made: dict[str, Any] = {}

        def bare(uri: str = uri, end: float | None = end, made: dict[str, Any] = made) -> None:
            seen, _ = watch_video(sample_frames(uri, FPS, 0.0, end), reader)
            chosen = [row for row in seen if row["representative"]]
            chips = [Chip(row["chip"], np.array(row["chip_transform"]).reshape(2, 3)) for row in chosen]
            faces = [Face(chip, chip.place(np.array(row["landmarks"]).reshape(68, 2))) for chip, row in zip(chips, chosen, strict=True)]
            for score in scorers.values():
                chosen = [row | extra for row, extra in zip(chosen, score(faces), strict=True)]
            made.update(ours=chosen, frames=len(seen))

        def platform(uri: str = uri, end: float | None = end) -> None:
            work = tempfile.mkdtemp()
            parts = analyze([item_for(uri, end=end)], config, models, work).rows[0]["parts"]
            backfill(parts, digests, config.groups, models, work, 0)
            shutil.rmtree(work)

        took = interleaved(
            {
                "plain": lambda uri=uri, end=end, made=made: made.update(plain=plain_loop(uri, end, reader, points)),
                "bare": bare,
                "ceiling": lambda uri=uri, end=end: ceiling(uri, end, reader),
                "platform": platform,
                "loading": lambda: (FaceReader.from_folder(models), [GROUPS[group].make(models, GroupsConfig()) for group in GROUPS]),
            }
        )
        both, either, lost = compare_cells(made["plain"], made["ours"])
        frames, chosen = made["frames"], len(made["ours"])
        added = (took["platform"] - took["loading"]) / took["bare"] - 1
        rows += [
            (f"{name}: faces looked at, representatives", f"{frames}, {chosen}"),
            (f"{name}: plain loop / ours", f"{took['plain'] / took['bare']:.2f}"),
            (f"{name}: ceiling, plain / (decode + shots + mesh)", f"{took['plain'] / took['ceiling']:.2f}"),
            (f"{name}: ours of the ceiling", f"{100 * took['ceiling'] / took['bare']:.0f} %"),
            (f"{name}: what the platform adds to its own decoding and model calls", f"{100 * added:.0f} %"),
            (f"{name}: cells accepted by both, of those by either", f"{both} of {either}" + (f"; only one has {lost}" if lost else "")),
        ]
    return rows


def compare_cells(plain: list[dict[str, Any]], ours: list[dict[str, Any]]) -> tuple[int, int, str]:
    """(source bin, target bin) cells whose best pair passes identity and sharpness, in both ways; and those of one only."""

    def cells(faces: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
        config, found = PairingConfig(), set()
        for a in faces:
            for b in faces:
                good = min(a["sharpness"], b["sharpness"]) >= config.min_sharpness
                if (
                    a is not b
                    and bin_of(a) != bin_of(b)
                    and good
                    and float(np.dot(a["embedding"], b["embedding"])) >= config.min_similarity
                ):
                    found.add((bin_of(a)[:4], bin_of(b)[:4]))
        return found

    first, second = cells(plain), cells(ours)
    different = sorted(str(cell) for cell in first ^ second)
    return len(first & second), len(first | second), ", ".join(different[:4]) + (" ..." if len(different) > 4 else "")


def rerun_and_packing(models: Path) -> list[Row]:
    """A finished build again; and packing beside a bare TarWriter."""
    work = tempfile.mkdtemp()
    config = DataConfig(synthetic=SyntheticConfig(anny=AnnyConfig(people=40, workers=0)), analyze=AnalyzeConfig(workers=0))
    started = time.monotonic()
    version = build_dataset(config, work, models)
    first = time.monotonic() - started
    started = time.monotonic()
    build_dataset(config, work, models)
    again = time.monotonic() - started
    rows = read_manifest(version.uri)
    pairs = [decode_pair(row["key"], read_members(version.uri, row)) for row in rows]
    samples = [Planned(pair.key, "train", {}, lambda pair=pair: pair) for pair in pairs]
    took = interleaved(
        {
            "ours": lambda: pack(samples, PackConfig(), tempfile.mkdtemp(), "v", "x"),
            "bare": lambda: write_bare([(row["key"], read_members(version.uri, row)) for row in rows]),
        }
    )
    shutil.rmtree(work)
    return [
        ("a finished build again / its first time", f"{100 * again / first:.1f} %"),
        ("packing / a bare webdataset.TarWriter loop (samples a CPU second)", f"{took['bare'] / took['ours']:.2f}"),
    ]


def write_bare(samples: list[tuple[str, dict[str, bytes]]]) -> None:
    """Samples into tars of 200."""
    folder = Path(tempfile.mkdtemp())
    for start in range(0, len(samples), 200):
        with webdataset.TarWriter(str(folder / f"{start}.tar")) as writer:
            for key, members in samples[start : start + 200]:
                writer.write({"__key__": key, **{name: members[name] for name in MEMBERS}})


def rethreshold() -> list[Row]:
    """Ten million stored candidates judged anew, in a process of its own."""
    script = "from tests.benchmarks.data_speed import judge_many; judge_many()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        (
            f"{found['pairs']:,} stored candidates judged anew",
            f"{found['seconds']:.0f} s, peak {found['megabytes']:,.0f} MB, {found['accepted']:,} accepted",
        ),
    ]


def judge_many() -> None:
    """Writes score tables of people with random scores, once, and judges them; prints figures as JSON."""
    folder = Path(tempfile.gettempdir()) / "lato_bench_scores"
    if not folder.exists():
        write_many(folder)
    tables = [str(path) for path in sorted(folder.glob("*.parquet"))]
    started = time.monotonic()
    verdicts = judge(tables, Rules(PairingConfig(max_upscale=3.0)))
    seconds = time.monotonic() - started
    counts = count_verdicts(verdicts)
    peak = peak_megabytes()
    print(json.dumps({"pairs": sum(counts.values()), "seconds": seconds, "megabytes": peak, "accepted": counts["accepted"]}))


def write_many(folder: Path) -> None:
    """One scored person, multiplied: names and scores differ, 50 pairs of each bin stay."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = [random_face(rng, number) for number in range(40)]
    base = score_person(Person("p", "same_track", rows), 2.1)
    assert base is not None
    table = pa.table({field.name: pa.array(base[field.name], field.type) for field in SCORE_SCHEMA})
    people, size = PAIRS // len(table) + 1, len(table)
    with pq.ParquetWriter(folder / "0.parquet", SCORE_SCHEMA, compression="zstd") as writer:
        for start in range(0, people, 32):
            many = range(start, min(start + 32, people))
            piece = pa.concat_tables([table] * len(many))
            names = pa.array([f"p{person}" for person in many for _ in range(size)])
            for column in ("person", "source_id", "target_id", "from_part", "to_part"):
                piece = piece.set_column(piece.schema.get_field_index(column), column, names)
            keys = pa.array([f"p_{start * size + number:020d}" for number in range(len(piece))])
            piece = piece.set_column(piece.schema.get_field_index("key"), "key", keys)
            for column, low, high in (("sharpness", 5, 300), ("similarity", 0.3, 1.0), ("upscale", 0.5, 6.0)):
                values = pa.array(rng.uniform(low, high, len(piece)).astype(np.float32))
                piece = piece.set_column(piece.schema.get_field_index(column), column, values)
            writer.write_table(piece, row_group_size=len(piece))


def random_face(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """A representative as pairing reads it."""
    vector = rng.normal(size=128)
    scores = {
        name: float(rng.uniform(0, 1)) for name in ("noise", "clipped", "blockiness", "letterbox", "occlusion", "writing", "skin_ita")
    }
    return {
        "source_id": "s", "source_sha256": "x", "kind": "video", "identity": None, "track": 0, "frame": number, "pts": number / 5, "width": 640,
        "height": 480, "landmarks": (rng.uniform(200, 300, (68, 2))).reshape(-1).tolist(), "yaw": float(rng.choice([-30, 0, 30])) + float(rng.normal()),
        "pitch": float(rng.normal()), "roll": float(rng.normal()), "expression": str(rng.choice(["neutral", "happy", "surprised"])),
        "expression_intensity": 0.7, "declared": None, "sharpness": 50.0, "face_px": 100.0, "phash": rng.bytes(32), "row": number, "part": "s",
        "embedding": (vector / np.linalg.norm(vector)).tolist(), **scores, "writing": 0.0, "occlusion": 0.05, "letterbox": 0.0, "clipped": 0.0,
    }  # fmt: skip


def clustering() -> list[Row]:
    """Links among tracks, and how their time grows."""
    rows, last = [], 0.0
    for count in (1_000, 10_000, 100_000):
        vectors = np.random.default_rng(0).normal(size=(count, 128)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = {f"s{number}/0": vector for number, vector in enumerate(vectors)}
        started = time.monotonic()
        find_links(names, SplitConfig().link_similarity, SplitConfig().link_nearest)
        took = time.monotonic() - started
        rows.append((f"links among {count:,} tracks", f"{took:.1f} s" + (f" ({took / last:.0f} x the time of a tenth)" if last else "")))
        last = took
    return rows


def driver_memory() -> list[Row]:
    """Peak memory of the process that runs a build of many small sources."""
    rows = []
    for count in (100, 10_000):
        script = f"from tests.benchmarks.data_speed import look_at_many; look_at_many({count})"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        rows.append((f"driver's peak memory at {count:,} sources", f"{float(done.stdout.splitlines()[-1]):,.0f} MB"))
    return rows


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


def main() -> None:
    """Runs all and writes the page."""
    quieten()
    models = perception_models()
    sections = {
        "Looking at videos": lambda: against_the_plain_loop(models),
        "Building": lambda: rerun_and_packing(models),
        "Judging": rethreshold,
        "Splitting": clustering,
        "Driver": driver_memory,
    }
    page = io.StringIO()
    page.write(
        "# Benchmarks of the data builder\n\n`make bench-data` writes this page. CPU seconds, one thread a process, interleaved, median of three; "
    )
    page.write("ratios of one run. Between runs the first digits hold.\n")
    for title, work in sections.items():
        page.write(f"\n## {title}\n\n| what | result |\n|---|---|\n")
        for name, value in work():
            print(f"{name}: {value}", flush=True)
            page.write(f"| {name} | {value} |\n")
    Path("docs/benchmarks_data.md").write_text(page.getvalue())


if __name__ == "__main__":
    main()
