"""Looking at videos: the builder against a plain loop, and what each saving buys. Part of `make bench-data`.

CPU seconds of this process and its decoders, one thread each, interleaved, median of three. Every ratio comes from one run. Pairing and judging are in
neither way: both would pair, and both would judge.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import observations, perceive
from data_pipeline.analyze import analyze
from data_pipeline.chips import Chip, cut_chip
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import Frame
from data_pipeline.groups import GROUPS, Face, GroupsConfig, Scorer, backfill, group_digests
from data_pipeline.holdout import Holdout, HoldoutConfig
from data_pipeline.identities import NAME, WRITING, AskedGroup
from data_pipeline.judge import judge
from data_pipeline.pairing import OBSERVED
from data_pipeline.rules import PairingConfig, Rules
from data_pipeline.score import ScoreInput, score_pairs
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.tracks import face_row
from data_pipeline.worklist import item_for
from infra import assets
from infra.runtime import start_ray
from lato.faces import FaceReader
from lato.faces.detect import Detection
from lato.faces.expression import classify, estimate_neutral
from lato.faces.points68 import FacePoints68
from lato.faces.quality import measure
from tests.benchmarks.accepted_cells import cells, loose_cells, plain_cells
from tests.benchmarks.page import Row
from tests.benchmarks.short_sources import cpu
from tests.data_pipeline.soak import tell_apart

CLIPS = {"single_face": None, "face_noface": None, "carphone": None, "franck": 120.0}
"""Clip -> seconds of it that are looked at."""
FPS = 5.0
_MORE = {name: 3 if name == "franck" else 12 for name in CLIPS}
"""A build of one clip and so many copies, less a build of the clip alone, is what they cost once models are loaded and hashed. The other ways look at a short
clip as often, as the decoders' seconds are counted in hundredths."""
PAIRING = PairingConfig(max_upscale=6.0)
"""At the default limit of 1.5 nothing of franck and carphone is large enough, and no face of theirs would be asked for at all."""
OPEN = PAIRING.model_copy(update={"per_cell": 10**9, "per_identity": 10**9, "per_source": 10**9, "near_duplicate_bits": -1})
"""The same filters without quotas: what may be accepted at all."""


def interleaved(works: dict[str, Callable[[], Any]], rounds: int = 3, often: Mapping[str, int] | None = None) -> dict[str, float]:
    """Median CPU seconds of each, taken in turn; of what is done `often` at a turn, those of one time."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times = (often or {}).get(name, 1)
            before = cpu()
            for _ in range(times):
                work()
            taken[name].append((cpu() - before) / times)
    return {name: statistics.median(values) for name, values in taken.items()}


class Bench:
    """The models, and the ways to look at a clip."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.reader = FaceReader.from_folder(models)
        self.points = FacePoints68.from_file(models / "fr_landmark.onnx")
        self.scorers: dict[str, Scorer] = {name: GROUPS[name].make(models, GroupsConfig()) for name in GroupsConfig().names}

    def frames(self, name: str) -> Iterator[Frame]:
        """Of a clip, decoded anew."""
        return sample_frames(str(assets.path(name)), FPS, 0.0, CLIPS[name])

    def plain(self, name: str, networks: bool = True) -> list[dict[str, Any]]:
        """What one would write first: every model on every sampled frame. Without `networks`: those that read chips, and identity, are left out."""
        seen: list[dict[str, Any]] = []
        for frame in self.frames(name):
            for detection in self.reader.detector.detect(frame.image)[:1]:
                mesh = self.reader.mesh.settle(frame.image, detection)
                if mesh is None:
                    continue
                chip = cut_chip(frame.image, mesh.landmarks68)
                face = Face(chip, chip.place(mesh.landmarks68))
                if networks:
                    embedding = self.reader.embedder.embed(frame.image, detection.points5)
                    self.points.find(face.image, face.landmarks)
                    for group in ("writing", "fer"):
                        self.scorers[group]([face])
                quality = measure(frame.image, mesh.landmarks68)
                row = face_row(frame.shot, frame, detection, mesh, None, None) | quality.__dict__
                seen.append(row | {"face": face, "embedding": embedding if networks else None})
        for shot in {row["track"] for row in seen}:
            mine = [row for row in seen if row["track"] == shot]
            rest = estimate_neutral(np.array([row["blendshapes"] for row in mine]))
            for row in mine:
                reading = classify(np.array(row["blendshapes"]), rest)
                row |= {"expression": reading.label.value, "expression_intensity": reading.intensity}
        return seen

    def ceiling(self, name: str, faces: Mapping[int, Detection]) -> None:
        """Decoding, shots and one look of the mesh at each of the plain loop's faces (frame -> its place): what no way can leave out."""
        for frame in self.frames(name):
            if frame.number in faces:
                self.reader.mesh.observe(frame.image, faces[frame.number])

    def ours(self, name: str, asked: set[int] | None) -> list[dict[str, Any]]:
        """The builder's own decoding and model calls; identity and writing of the rows that are `asked` for, None: of all representatives."""
        rows, _ = perceive.watch_video(self.frames(name), self.reader)
        chosen = [(number, row, _face(row)) for number, row in enumerate(rows) if row["representative"]]
        for group, score in self.scorers.items():
            score([face for number, _, face in chosen if group not in (NAME, WRITING) or asked is None or number in asked])
        return rows

    def savings(self, name: str, representatives: int) -> dict[str, Callable[[], Any]]:
        """What lies between the plain loop and ours, a saving at a time."""

        def few_networks() -> None:
            faces = [row["face"] for row in self.plain(name, networks=False)[:representatives]]
            for score in self.scorers.values():
                score(faces)

        def few_chips() -> None:
            with detector_on_every_frame():
                self.ours(name, None)

        seldom = f"and the detector on every {perceive.DETECT_EVERY}th frame, two of three times at half size, every {perceive.EMPTY_EVERY}th of nobody"
        return {
            f"identity, 68 points, text, fer on {representatives} representatives only": few_networks,
            "and chips, image quality only of those, when a track has ended": few_chips,
            seldom: lambda: self.ours(name, None),
        }


def _face(row: dict[str, Any]) -> Face:
    chip = Chip(row["chip"], np.array(row["chip_transform"]).reshape(2, 3))
    return Face(chip, chip.place(np.array(row["landmarks"]).reshape(68, 2)))


@contextlib.contextmanager
def detector_on_every_frame() -> Iterator[None]:
    """As long as it lasts, and no glances."""
    usual = perceive.DETECT_EVERY, perceive.GLANCES, perceive.EMPTY_EVERY
    perceive.DETECT_EVERY, perceive.GLANCES, perceive.EMPTY_EVERY = 1, 0, 1
    try:
        yield
    finally:
        perceive.DETECT_EVERY, perceive.GLANCES, perceive.EMPTY_EVERY = usual


def places_of(rows: list[dict[str, Any]]) -> dict[int, Detection]:
    """Frame -> where the plain loop found its face."""
    return {row["frame"]: Detection(np.array(row["box"], np.float32), row["detection_score"], np.zeros((5, 2), np.float32)) for row in rows}


class Built:
    """A clip looked at by the builder in a folder of its own; or as many clips, copies of it that differ in a box that is not read."""

    def __init__(self, name: str, models: Path, copies: int = 1) -> None:
        self.work = tempfile.mkdtemp()
        self._models, self._config = models, AnalyzeConfig(workers=0)
        self._digests = group_digests(models, self._config.groups)
        items = []
        for number in range(copies):
            path = f"{self.work}/{name}{number}{assets.path(name).suffix}"
            shutil.copyfile(assets.path(name), path)
            tell_apart(path)
            items.append(item_for(path, source_id=f"{name}{number}", end=CLIPS[name]))
        self.ledger = analyze(items, self._config, models, self.work).rows
        self.parts = [row["parts"][0] for row in self.ledger]
        self.part = self.parts[0]
        others = {group: digest for group, digest in self._digests.items() if group not in (NAME, WRITING)}
        backfill(self.parts, others, self._config.groups, models, self.work, 0)

    def asked(self, rows: set[int]) -> None:
        """Computes identity and writing of rows, as a build does."""
        for name in (NAME, WRITING):
            self._group(name).compute(dict.fromkeys(self.parts, rows))

    def known(self) -> list[dict[str, Any]]:
        """All representatives, with their identity."""
        rows = observations.read_representatives(self.work, self.part, OBSERVED)
        identities = self._group(NAME)
        identities.compute({self.part: {row["row"] for row in rows}})
        vectors = identities.read(self.part)
        return [row | {"embedding": vectors[row["row"]]} for row in rows]

    def judge(self, config: PairingConfig) -> tuple[list[str], list[Any], set[int]]:
        """Score tables, what is decided, and the rows that were asked for by now."""
        identities, writing = self._group(NAME), self._group(WRITING)
        given = ScoreInput(self._digests, identities, config.margin, False, Holdout.read(HoldoutConfig(), self._models))
        tables = score_pairs(self.ledger, given, {}, self.work, 0)
        return tables, judge(tables, Rules(config), identities, writing=writing), set(identities.read(self.part))

    def _group(self, name: str) -> AskedGroup:
        return AskedGroup.open(name, self.work, self._digests, self._config.groups, self._models, 0)


def against_the_plain_loop(models: Path) -> Iterator[Row]:
    """Ratios on each clip, and what the platform adds to its own decoding and model calls."""
    bench = Bench(models)
    for name in CLIPS:
        built = Built(name, models)
        asked = built.judge(PAIRING)[2]
        made: dict[str, Any] = {}

        def platform(copies: int, name: str = name, asked: set[int] = asked) -> None:
            mine = Built(name, models, copies)
            mine.asked(asked)
            shutil.rmtree(mine.work)

        works: dict[str, Callable[[], Any]] = {
            "plain": lambda name=name, made=made: made.update(plain=bench.plain(name)),
            "ours": lambda name=name, asked=asked, made=made: made.update(ours=bench.ours(name, asked)),
            "without identity": lambda name=name: bench.ours(name, set()),
            "ceiling": lambda name=name, made=made: bench.ceiling(name, places_of(made["plain"])),
        }
        built_with: dict[str, Callable[[], Any]] = {
            "platform": lambda platform=platform: platform(1),
            "platform with more": lambda platform=platform, name=name: platform(1 + _MORE[name]),
        }
        chosen = built.ledger[0]["representatives"]
        often = 1 if name == "franck" else _MORE[name]
        took = interleaved(works | built_with, often=dict.fromkeys(works, often))
        if name == "franck":
            took |= interleaved(bench.savings(name, chosen), rounds=1)
        added = (took["platform with more"] - took["platform"]) / _MORE[name] / took["ours"] - 1
        read = {row["frame"]: row["landmarks"] for row in made["ours"]}
        same = sum(read.get(row["frame"]) == row["landmarks"] for row in made["plain"])
        rows = [
            (f"{name}: faces by the plain loop, by ours", f"{len(made['plain'])}, {len(made['ours'])}"),
            (f"{name}: of the plain loop's faces, read in the same bits by ours", str(same)),
            (f"{name}: representatives, of them asked for identity and writing", f"{chosen}, {len(asked)}"),
            (f"{name}: plain loop / ours", f"{took['plain'] / took['ours']:.2f}"),
            (f"{name}: ceiling, plain / (decode + shots + mesh)", f"{took['plain'] / took['ceiling']:.2f}"),
            (f"{name}: ours of the ceiling", f"{100 * took['ceiling'] / took['ours']:.0f} %"),
            (f"{name}: the same before a pair asks for them", f"{100 * took['ceiling'] / took['without identity']:.0f} %"),
            (f"{name}: CPU ms: ceiling, what 85 % allows above it, what is above it, identity and writing of it", _rest(took)),
            (f"{name}: what the platform adds to its own decoding and model calls, after start-up", f"{100 * added:.0f} %"),
        ]
        if name == "franck":
            steps = {"every model on every sampled frame": "plain", **{step: step for step in bench.savings(name, chosen)}}
            steps |= {
                f"and identity and writing only of the {len(asked)} faces that a pair needs (ours)": "ours",
                "decode + shots + mesh": "ceiling",
            }
            rows += [
                (f"{name}, a saving at a time: {step}", f"{1000 * took[key] / len(made['plain']):.1f} ms a face")
                for step, key in steps.items()
            ]
        shots = {row["frame"]: row["track"] for row in made["plain"]}
        both_ways = {
            "all filters, no quotas": (plain_cells(made["plain"], bench.scorers, OPEN), cells(*built.judge(OPEN)[:2], shots)),
            "identity and sharpness alone, the plain loop's every face": (
                loose_cells(made["plain"], shots, PAIRING),
                loose_cells(built.known(), shots, PAIRING),
            ),
        }
        for title, (first, second) in both_ways.items():
            alone = {"the plain loop": first - second, "ours": second - first}
            told = "".join(
                f"; only {who} has {len(more)}: {', '.join(sorted(str(cell[1:]) for cell in more)[:6])}"
                for who, more in alone.items()
                if more
            )
            title = f"{name}: cells accepted by both, of those by either ({title})"
            rows.append((title, f"{len(first & second)} of {len(first | second)}{told}"))
        shutil.rmtree(built.work)
        yield from rows


def _rest(took: dict[str, float]) -> str:
    ceiling, ours, before = (1000 * took[name] for name in ("ceiling", "ours", "without identity"))
    return f"{ceiling:.0f}, {ceiling / 0.85 - ceiling:.0f}, {ours - ceiling:.0f}, {ours - before:.0f}"


def two_workers(models: Path) -> list[Row]:
    """Wall time of one and of two workers on the same eight pieces of franck."""
    start_ray()
    uri = str(assets.path("franck"))
    items = [item_for(uri, start=20.0 * n, end=20.0 * (n + 1)).model_copy(update={"source_id": f"piece{n}"}) for n in range(8)]
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for workers, times in taken.items():
            work = tempfile.mkdtemp()
            started = time.monotonic()
            analyze(items, AnalyzeConfig(workers=workers), models, work)
            times.append(time.monotonic() - started)
            shutil.rmtree(work)
    one, two = (statistics.median(times) for times in taken.values())
    return [
        ("eight pieces of 20 s, one worker / two workers (wall time, with their start)", f"{one:.1f} s / {two:.1f} s = {one / two:.2f}"),
    ]
