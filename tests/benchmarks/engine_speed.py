"""What the engine costs over a bare DeepSpeed loop, DeepSpeed over DDP, a checkpoint, and a start; rows for docs/benchmarks_training.md.

Run: `python -m tests.benchmarks.engine_speed`. Two ranks on gloo, one thread each; the ways take turns step by step in one process group.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.benchmarks.page import Row
from tests.training import ranks
from training.config import EngineConfig
from training.mixture import Mixture, Sample, sample_generator
from training.stage import Batch, StepLoss, device_of

WIDTH, LAYERS, ROWS, STEPS, WARM, ROUNDS = 1024, 8, 640, 24, 4, 3
"""About 8 million parameters, and rows a sample such that a step takes half a second or more."""


class Wide:
    """A stage of known cost: an MLP on rows that are drawn."""

    name, floors, notes, sources = "wide", dict[str, tuple[float, str]](), list[str](), ["rows"]

    def __init__(self) -> None:
        self.data = Mixture([[f"k{number}" for number in range(64)]], [1.0], 0)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())))

    def weights(self) -> None:
        return

    def length(self, sample: Sample) -> int:
        return 0

    def read(self, samples: list[Sample]) -> Batch:
        return {"rows": torch.stack([torch.randn(ROWS, WIDTH, generator=sample_generator(0, sample)) for sample in samples])}

    def loss(self, module: nn.Module, batch: Batch) -> StepLoss:
        return StepLoss(module(batch["rows"]).square().mean((1, 2)), batch["rows"].shape[0] * ROWS)

    def after_step(self, module: nn.Module, step: int, steps: int) -> dict[str, float]:
        return {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        return {"held_out": float(module(torch.ones(1, WIDTH, device=device_of(module))).square().mean())}

    def pictures(self, module: nn.Module) -> dict[str, Any]:
        return {}

    def export(self, module: nn.Module, folder: Path) -> None:
        return


def _config(stage: int, **changes: Any) -> EngineConfig:
    chosen = {
        "steps": STEPS,
        "global_batch": 2,
        "zero_stage": stage,
        "log_every": 1,
        "eval_every": STEPS + 1,
        "checkpoint_every": STEPS + 1,
    }
    return EngineConfig(**chosen | {"warmup": 1} | changes)


class _Beside(Wide):
    """After each step of the engine, one of a bare DeepSpeed loop and one of DDP: what else the machine does meets all three alike."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = {"reading": [], "bare": [], "ddp": []}
        self._steps = {"bare": self._bare(stage), "ddp": self._ddp()}

    def after_step(self, module: nn.Module, step: int, steps: int) -> dict[str, float]:
        started = time.monotonic()
        rows = self.read([self.data.batch(step, 2)[dist.get_rank()]])["rows"]
        self.seconds["reading"].append(time.monotonic() - started)
        for name, own in self._steps.items():
            started = time.monotonic()
            float(own(rows))
            self.seconds[name].append(time.monotonic() - started)
        return {}

    def _bare(self, stage: int) -> Callable[[Tensor], Tensor]:
        """The same model, batch and ZeRO stage in the loop that DeepSpeed's own page shows."""
        from training.zero import initialise

        engine = initialise(self.build(), None, _config(stage))

        def step(rows: Tensor) -> Tensor:
            loss: Tensor = engine(rows).square().mean()
            engine.backward(loss)
            engine.step()
            return loss.detach()

        return step

    def _ddp(self) -> Callable[[Tensor], Tensor]:
        """The same without DeepSpeed."""
        model = nn.parallel.DistributedDataParallel(self.build())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))

        def step(rows: Tensor) -> Tensor:
            loss = model(rows).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step


def _run(stage: Wide, folder: Path, config: EngineConfig) -> list[float]:
    """Seconds between the lines of steps, from the line of step `WARM` on; the engine's own checkpoint at the end left out."""
    from training import engine

    engine.run(stage, config, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines if "loss" in line][WARM - 1 :]
    return [after - before for before, after in itertools.pairwise(times)]


def _measure(rank: int, world: int, folder: str) -> None:
    from training.zero import start_process_group

    start_process_group(5)
    own: list[Any] = [Path(folder)]
    dist.broadcast_object_list(own, 0)
    seconds: dict[str, list[float]] = {}
    for stage in range(4):
        beside = _Beside(stage)
        passed = _run(beside, own[0] / str(stage), _config(stage))
        others = {name: times[WARM:] for name, times in beside.seconds.items()}
        seconds[f"engine {stage}"] = [whole - sum(own) for whole, *own in zip(passed, *others.values(), strict=True)]
        seconds |= {f"{name} {stage}": times for name, times in others.items()}
    for number in range(ROUNDS):
        saved = _run(Wide(), own[0] / f"saved-{number}", _config(2, steps=10, checkpoint_every=6))
        at = 6 - WARM  # between the lines of steps 6 and 7 lies the checkpoint of step 6
        seconds.setdefault("saving", []).append(saved[at])
        seconds.setdefault("not saving", []).extend([*saved[:at], *saved[at + 1 :]])
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
    ranks.leave()


def engine_rows() -> list[Row]:
    """The engine (finite votes, averaged losses, meter, metrics file, loader) over a bare loop; DeepSpeed over DDP; what a checkpoint adds to a step."""
    with tempfile.TemporaryDirectory() as folder:
        ranks.run(_measure, 2, folder, patience=1800)
        seconds = json.loads((Path(folder) / "seconds.json").read_text())

    def ratio(one: str, other: str) -> str:
        """Of the medians, and the quartiles of the steps' own ratios."""
        low, _, high = statistics.quantiles((a / b for a, b in zip(seconds[one], seconds[other], strict=True)), n=4)
        return f"{statistics.median(seconds[one]) / statistics.median(seconds[other]):.3f} (steps {low:.2f} to {high:.2f})"

    rows = [("a step of the bare loop, ZeRO-2", f"{statistics.median(seconds['bare 2']):.2f} s")]
    rows += [
        (f"engine / bare DeepSpeed loop, ZeRO-{stage} (at most 1.05)", ratio(f"engine {stage}", f"bare {stage}")) for stage in range(4)
    ]
    rows += [(f"bare DeepSpeed ZeRO-{stage} / DDP", ratio(f"bare {stage}", f"ddp {stage}")) for stage in range(4)]
    usual = statistics.median(seconds["not saving"])
    stall = (statistics.median(seconds["saving"]) - usual) / usual
    return [*rows, ("stall of a checkpoint, in steps (at most 1)", f"{max(stall, 0.0):.2f}")]


def start_rows() -> list[Row]:
    """Seconds from the command to the first step's line, of the tiny tokenizer on two ranks: plain processes, and Ray Train on a running head."""
    from infra.runtime import RuntimeConfig, start_ray, stop_ray
    from infra.tracking import default_uri
    from tests.training.versions import publish
    from training.config import DataSource
    from training.data import Dataset
    from training.launch import train
    from training.stage_factory import Job
    from training.stages.tokenizer import TokenizerConfig

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "v1")
        publish(uri, {"train": 32, "val": 8})
        config = TokenizerConfig(widths=(32, 64), code_dim=32, num_codes=256, engine=EngineConfig(steps=2, global_batch=8, log_every=1))
        for launcher, limit in (("plain", 20), ("ray", 45)):
            if launcher == "ray":
                start_ray(RuntimeConfig(num_cpus=2))
            run = Path(folder) / launcher
            job = Job(stage="tokenizer", config=config, data=(DataSource(uri=uri),), folder=str(run))
            started = time.time()
            train(job, {uri: Dataset.open(uri).digest}, default_uri(folder), "bench", launcher=launcher)  # type: ignore[arg-type]
            first = next(line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["step"] == 1)
            rows.append((f"start to first step, {launcher} (at most {limit} s on a quiet machine)", f"{first['time'] - started:.1f} s"))
        stop_ray()
    return rows


if __name__ == "__main__":
    for what, figure in [*engine_rows(), *start_rows()]:
        print(f"{figure:>8}  {what}", flush=True)
