"""What the engine costs over a bare DeepSpeed loop, DeepSpeed over DDP, a checkpoint, and a start; rows for docs/benchmarks_training.md.

Run: `python -m tests.benchmarks.engine_speed`. Two ranks on gloo, one thread each; the ways take turns in one process group.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.training import ranks
from training.config import EngineConfig
from training.mixture import Mixture, Sample, sample_generator
from training.stage import Batch, StepLoss, device_of

WIDTH, LAYERS, ROWS, STEPS, WARM, ROUNDS = 1024, 8, 448, 8, 2, 3
"""About 8 million parameters, and rows a sample such that a step takes half a second or more."""
Row = tuple[str, str]


class Wide:
    """A stage of known cost: an MLP on rows that are drawn."""

    name, floors, sources = "wide", dict[str, tuple[float, str]](), ["rows"]

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
    return EngineConfig(
        **{
            "steps": STEPS,
            "global_batch": 2,
            "zero_stage": stage,
            "log_every": 1,
            "eval_every": STEPS + 1,
            "checkpoint_every": STEPS + 1,
            "warmup": 1,
        }
        | changes
    )


def _engine(folder: Path, config: EngineConfig) -> list[float]:
    """Seconds of each step after the first two, the engine's own checkpoint at the end left out."""
    from training import engine

    engine.run(Wide(), config, folder)
    times = [
        (line["step"], line["time"]) for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    return [after - before for (step, before), (_, after) in itertools.pairwise(times) if step >= WARM]


def _bare(stage: int) -> list[float]:
    """The same model, batch and ZeRO stage in the loop that DeepSpeed's own page shows."""
    from training.zero import initialise

    engine, wide = initialise(Wide().build(), None, _config(stage)), Wide()
    return _loop(wide, lambda batch: engine(batch), lambda loss: engine.backward(loss), lambda: engine.step())


def _ddp() -> list[float]:
    """The same without DeepSpeed."""
    wide = Wide()
    model = nn.parallel.DistributedDataParallel(wide.build())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99))

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _loop(wide, model, lambda loss: loss.backward(), step)


def _loop(wide: Wide, forward: Any, backward: Any, step: Any) -> list[float]:
    seconds = []
    for number in range(STEPS):
        batch = wide.read([wide.data.batch(number, 2)[dist.get_rank()]])
        started = time.monotonic()
        loss = forward(batch["rows"]).square().mean()
        backward(loss)
        step()
        float(loss.detach())
        seconds.append(time.monotonic() - started)
    return seconds[WARM:]


def _measure(rank: int, world: int, folder: str) -> None:
    from training.zero import start_process_group

    start_process_group(5)
    seconds: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        for stage in (0, 1, 2, 3):
            own = [Path(folder)]
            dist.broadcast_object_list(own, 0)
            seconds.setdefault(f"bare {stage}", []).extend(_bare(stage))
            seconds.setdefault(f"engine {stage}", []).extend(_engine(own[0] / f"{number}-{stage}", _config(stage)))
        seconds.setdefault("ddp", []).extend(_ddp())
        saved = _engine(own[0] / f"saved-{number}", _config(2, steps=STEPS + 2, checkpoint_every=4))
        seconds.setdefault("saving", []).append(saved[4 - WARM])  # between the lines of steps 4 and 5 lies the checkpoint of step 4
        seconds.setdefault("not saving", []).extend([*saved[: 4 - WARM], saved[5 - WARM]])
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
    ranks.leave()


def engine_rows() -> list[Row]:
    """The engine (finite votes, averaged losses, meter, metrics file, loader) over a bare loop; DeepSpeed over DDP; what a checkpoint adds to a step."""
    with tempfile.TemporaryDirectory() as folder:
        ranks.run(_measure, 2, folder, patience=1800)
        seconds = {name: statistics.median(own) for name, own in json.loads((Path(folder) / "seconds.json").read_text()).items()}
    rows = [("a step of the bare loop, ZeRO-2", f"{seconds['bare 2']:.2f} s")]
    rows += [
        (f"engine / bare DeepSpeed loop, ZeRO-{stage} (at most 1.05)", f"{seconds[f'engine {stage}'] / seconds[f'bare {stage}']:.3f}")
        for stage in range(4)
    ]
    rows += [(f"bare DeepSpeed ZeRO-{stage} / DDP", f"{seconds[f'bare {stage}'] / seconds['ddp']:.3f}") for stage in range(4)]
    stall = (seconds["saving"] - seconds["not saving"]) / seconds["not saving"]
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
