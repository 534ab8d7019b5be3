"""Speed of training and of what feeds it; writes docs/benchmarks_training.md.

Run: `make bench-training`. Every part is a function that returns rows (what, result); ways that are compared take turns, so that a busy machine slows
all of them alike.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from infra.runtime import quieten
from lato.pairs import decode_image, decode_pair
from lato.text_encoder import TextEncoder, TextEncoderSettings
from lato.tiny_vlm import build_tiny_vlm
from tests.benchmarks import engine_speed, plan_error, tracking_speed
from tests.benchmarks.page import Row, measure
from tests.training.versions import publish
from training.config import DataSource
from training.data import Dataset, mixture, open_sources
from training.loader import Loader
from training.mixture import Sample

OUT = Path(__file__).parents[2] / "docs/benchmarks_training.md"
SAMPLES, BATCH, ROUNDS = 768, 8, 5
Ran = tuple[float, float]
"""Wall seconds and CPU seconds."""


def reading() -> list[Row]:
    """Reading and decoding pairs of 512 px: the loader, in shuffled order, against a plain loop over the tars in their order."""
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder) / "v1", {"train": SAMPLES}, per_shard=32, side=512)
        uri = str(Path(folder) / "v1")
        one = _turns({"bare": lambda: _alone(_read_bare, uri, 0, 1), "loader": lambda: _alone(_read_loader, uri, 0, 1)})
        two = _turns(
            {
                "bare": lambda: _side_by_side(_read_bare, uri),
                "loader": lambda: _side_by_side(_read_loader, uri),
                "threads": lambda: _alone(_read_loader, uri, 0, 1, 2),
            }
        )
    return [
        ("one process, one thread: samples/s of the bare loop", f"{SAMPLES / one['bare'][0]:.0f}"),
        ("... loader / bare", f"{one['bare'][0] / one['loader'][0]:.2f}"),
        ("... loader / bare, by CPU seconds", f"{one['bare'][1] / one['loader'][1]:.2f}"),
        ("two processes: samples/s of the bare loop", f"{SAMPLES / two['bare'][0]:.0f}"),
        ("... loader in two processes / bare", f"{two['bare'][0] / two['loader'][0]:.2f}"),
        ("... loader with two threads in one process / bare in two processes", f"{two['bare'][0] / two['threads'][0]:.2f}"),
        ("... the same by CPU seconds", f"{two['bare'][1] / two['threads'][1]:.2f}"),
    ]


def waiting() -> list[Row]:
    """A step of a model that takes about three times as long as reading its batch, one thread for each of the two."""
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder) / "v1", {"train": SAMPLES}, per_shard=32, side=512)
        dataset, plan, read = _reader(str(Path(folder) / "v1"))
        started = time.thread_time()
        batch = read(plan(0)[0])
        once = time.thread_time() - started
        step = _model_step(3 * once)
        steps = SAMPLES // BATCH
        kept = statistics.median(_timed(lambda: step(batch))[0] for _ in range(steps))
        loader, waits, times = Loader(read, plan, 0, steps, 2), [], []
        began = time.perf_counter()
        for number, [(_, batch)] in enumerate(loader):
            step(batch)
            if number:  # the first has nothing ahead of it
                waits.append(loader.waited)
                times.append(time.perf_counter() - began)
            began = time.perf_counter()
    return [
        ("reading a batch of 8 pairs", f"{once * 1000:.0f} ms of CPU"),
        ("a step with its batch in memory", f"{kept * 1000:.0f} ms"),
        ("a step that is fed by the loader", f"{statistics.median(times) * 1000:.0f} ms"),
        ("data wait, of step time (the first step left out)", f"{100 * sum(waits) / sum(times):.1f} %"),
    ]


def encoding() -> list[Row]:
    """Text states with and without the instruction: one prefix and two suffixes against two full passes; a small VLM, 324 picture tokens."""
    model, processor = build_tiny_vlm(hidden_size=256, num_layers=4, image_size=504)
    encoder = TextEncoder(model.eval(), processor, TextEncoderSettings())
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (512, 512, 3), dtype=np.uint8) for _ in range(4)]
    text = "Turn the head 30 degrees to the left, and also make the person look very happy"
    ran = _turns(
        {
            "full": lambda: _timed(lambda: (encoder.encode(pictures, [text] * 4), encoder.encode(pictures, [""] * 4))),
            "shared": lambda: _timed(lambda: encoder.encode_shared(pictures, [[text, ""]] * 4)),
        }
    )
    shared = encoder.encode_shared(pictures[:1], [[text, ""]])[0]
    kept, twice = len(shared.prefix) + sum(map(len, shared.suffixes)), len(shared.states(0)) + len(shared.states(1))
    return [
        ("two full passes / one prefix and two suffixes, by CPU seconds", f"{ran['full'][1] / ran['shared'][1]:.2f}"),
        ("tokens stored of a sample, against storing both whole", f"{kept} of {twice}"),
    ]


def tracking() -> list[Row]:
    """What MLflow costs the loop (`python -m tests.benchmarks.tracking_speed`)."""
    return tracking_speed.rows()


def planning() -> list[Row]:
    """`lato train plan` against real DeepSpeed ranks of a DiT of 42 million parameters: resident memory between steps and at the peak."""
    return [
        (
            f"{made['ranks']} ranks, ZeRO-{made['zero']}, {made['settings']}: between steps, peak",
            f"plan {made['resting_plan']:.0f}, {made['peak_plan']:.0f} MB; measured {made['resting']:.0f}, {made['peak']:.0f} "
            f"({made['resting_error']:+.0f} %, {made['peak_error']:+.0f} %)",
        )
        for made in plan_error.rows()
    ]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "Reading": reading, "Waiting": waiting, "Encoding": encoding, "Tracking": tracking, "Engine": engine_speed.engine_rows,
    "Start": engine_speed.start_rows, "Memory": planning,
}  # fmt: skip


def _reader(uri: str) -> tuple[Dataset, Callable[[int], list[list[Sample]]], Callable[[list[Sample]], Any]]:
    sources = [DataSource(uri=uri)]
    datasets = open_sources(sources)
    mixed = mixture(datasets, sources, 0)

    def read(samples: list[Sample]) -> Any:
        pairs = [datasets[sample.source].read(datasets[sample.source].row(sample.key)) for sample in samples]
        return [(pair.source_image(), pair.target_image(), pair.landmarks, pair.meta) for pair in pairs]

    return datasets[0], lambda step: [mixed.batch(step, BATCH)], read


def _read_bare(uri: str, part: int, parts: int) -> Callable[[], None]:
    """Every `parts`-th sample of the tars, in their order, decoded."""

    def run() -> None:
        number = 0
        for shard in sorted((Path(uri) / "shards").glob("*.tar")):
            with tarfile.open(shard) as archive:
                members: dict[str, bytes] = {}
                for entry in archive:
                    key, _, name = entry.name.partition(".")
                    if number % parts == part:
                        content = archive.extractfile(entry)
                        assert content is not None
                        members[name] = content.read()
                    if name == "target.jpg":
                        if number % parts == part:
                            pair = decode_pair(key, members)
                            pair.source_image(), pair.target_image()
                        number += 1

    return run


def _read_loader(uri: str, part: int, parts: int, threads: int = 1) -> Callable[[], None]:
    _, plan, read = _reader(uri)
    steps = SAMPLES // BATCH

    def run() -> None:
        for _ in Loader(read, lambda step: plan(step * parts + part), 0, steps // parts, 2, threads):
            pass

    return run


def _alone(make: Callable[..., Callable[[], None]], *arguments: Any) -> Ran:
    return _timed(make(*arguments))


def _side_by_side(make: Callable[..., Callable[[], None]], uri: str) -> Ran:
    """Two processes with half of the samples each; timed from when both are ready until both are done."""
    context = multiprocessing.get_context("fork")  # nothing else runs here, and what is imported need not be imported again
    ready, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_half, args=(make, uri, part, ready, results)) for part in (0, 1)]
    for worker in workers:
        worker.start()
    ran = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return max(wall for wall, _ in ran), sum(cpu for _, cpu in ran)


def _half(make: Callable[..., Callable[[], None]], uri: str, part: int, ready: Any, results: Any) -> None:
    cv2.setNumThreads(1)
    run = make(uri, part, 2)
    ready.wait()
    results.put(_timed(run))


def _model_step(seconds: float) -> Callable[[Any], None]:
    """A training step on a batch's pictures that takes about that long."""
    model = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.GELU(), *[nn.Conv2d(32, 32, 3, padding=1) for _ in range(4)])
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: Any, times: int = 1) -> None:
        pictures = torch.from_numpy(np.stack([picture for picture, *_ in batch])).permute(0, 3, 1, 2).float() / 255
        for _ in range(times):
            optimizer.zero_grad()
            model(pictures).square().mean().backward()
            optimizer.step()

    sample = [(decode_image(cv2.imencode(".jpg", np.zeros((512, 512, 3), np.uint8))[1].tobytes(), "black"),)] * BATCH
    step(sample)
    one = statistics.median(_timed(lambda: step(sample))[1] for _ in range(5))
    times = max(1, round(seconds / one))
    return lambda batch: step(batch, times)


def _timed(run: Callable[[], object]) -> Ran:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def _turns(ways: dict[str, Callable[[], Ran]]) -> dict[str, Ran]:
    """Medians of wall and CPU seconds of each way; the first round is left out."""
    ran: dict[str, list[Ran]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            result = way()
            if number:
                ran[name].append(result)
    return {name: (statistics.median(wall for wall, _ in own), statistics.median(cpu for _, cpu in own)) for name, own in ran.items()}


def main() -> None:
    """Runs all sections, or those that are named, and writes the page."""
    quieten()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    head = (
        "# Benchmarks of training\n\n`make bench-training` writes this page; `python -m tests.benchmarks.training_speed Reading` one section. Ways that are\n"
        "compared take turns, medians of five, one thread a process unless told; ratios of one run (of the engine: medians of twenty steps, the ways in turns\n"
        "step by step). Two cores, no GPU.\n"
    )
    measure(OUT, head, {title: (work.__doc__ or "", work) for title, work in PARTS.items()}, sys.argv[1:])


if __name__ == "__main__":
    main()
