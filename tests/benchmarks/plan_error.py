"""`lato train plan`'s memory against the measured memory of real DeepSpeed ranks; `rows` is part of docs/benchmarks_training.md.

Run alone: `python -m tests.benchmarks.plan_error`. Each case is ranks in fresh processes on gloo: a DiT of 42 million parameters takes three steps. What a
rank holds is its resident memory above what it held before the model was built (after a warm-up of all code paths on a small model), with every large block
of memory returned to the system as soon as it is free. A CPU touches DeepSpeed's gradient buffer only as it fills, after activations went, so that buffer is
left out of the plan here but for ZeRO-3, where it stays filled; on a GPU it is there from the start.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lato.lora import add_adapter
from lato.transformer import LaToTransformer
from training import meta
from training.config import EngineConfig
from training.plan import Memory, Sizes, memory_of
from training.zero import BUCKET

WIDTH, GRID, TEXT, MICRO = 512, 16, 64, 2
"""644 tokens a sample, two samples a rank."""


@dataclass(frozen=True)
class Case:
    """One run."""

    ranks: int
    zero: int
    precision: str = "fp32"
    lora: bool = False
    checkpointing: bool = False

    @property
    def engine(self) -> EngineConfig:
        """Its settings."""
        return EngineConfig.model_validate(
            {
                "global_batch": MICRO * self.ranks, "zero_stage": self.zero, "precision": self.precision, "ema": 0.999,
                "checkpoint_activations": self.checkpointing, "workers": self.ranks,
            }
        )  # fmt: skip

    @property
    def words(self) -> str:
        """Beside ranks and ZeRO stage."""
        return ", ".join(filter(None, [self.precision, "LoRA" if self.lora else "", "checkpointing" if self.checkpointing else ""]))


CASES = [
    *(Case(ranks, zero) for ranks in (1, 2, 4) for zero in (0, 1, 2, 3)),
    *(Case(2, zero, "bf16") for zero in (1, 2, 3)),
    Case(2, 2, lora=True),
    Case(2, 2, checkpointing=True),
    Case(2, 3, lora=True, checkpointing=True),
]


def rows() -> Iterator[dict[str, Any]]:
    """Of each case: ranks, ZeRO stage, settings; MB planned and measured between steps and at the peak, and the error in per cent of what was measured."""
    for case in CASES:
        plan, measured = planned(case), measure(case)
        yield {
            "ranks": case.ranks, "zero": case.zero, "settings": case.words,
            "resting_plan": plan.resting / 1e6, "resting": measured["resting"] / 1e6, "resting_error": _error(plan.resting, measured["resting"]),
            "peak_plan": plan.peak / 1e6, "peak": measured["peak"] / 1e6, "peak_error": _error(plan.peak, measured["peak"]),
        }  # fmt: skip


HEAD = "| ranks | ZeRO | | between steps: plan, measured (MB) | error | peak: plan, measured (MB) | error |\n|---|---|---|---|---|---|---|"


def line(row: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    return (
        f"| {row['ranks']} | {row['zero']} | {row['settings']} | {row['resting_plan']:.0f}, {row['resting']:.0f} | {row['resting_error']:+.0f} % "
        f"| {row['peak_plan']:.0f}, {row['peak']:.0f} | {row['peak_error']:+.0f} % |"
    )


def planned(case: Case) -> Memory:
    """What the plan says of a rank of the case."""
    with torch.device("meta"):
        module = _transformer(WIDTH, 4, 2, 4, case.lora)
    if case.precision == "bf16":
        module.to(torch.bfloat16)
    model = meta.StageModel(module, lambda batch: _loss(module, _batch(WIDTH, batch, "meta")), 0, 0)
    cost = meta.measure(model, MICRO, case.checkpointing, keep_gradients=case.zero == 0)
    parameters = list(module.parameters())
    sizes = Sizes(
        sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad), 0, max(p.numel() for p in parameters)
    )
    return memory_of(sizes, case.engine, case.ranks, cost.peak, bucket=BUCKET if case.zero == 3 else 0)


def measure(case: Case, seconds: float = 1200.0) -> dict[str, float]:
    """What the rank that holds most holds, in fresh processes.

    Raises:
        RuntimeError: A rank failed; with what it wrote.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    quiet = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(case.ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "tests.benchmarks.plan_error", json.dumps(asdict(case))]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ranks.append(subprocess.Popen(command, env=os.environ | quiet | place, text=True, **pipes))  # type: ignore[call-overload]
    try:
        said = [process.communicate(timeout=seconds) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"{case}: {next(error for (_, error), process in zip(said, ranks, strict=True) if process.returncode)}")
    held = [json.loads(out.strip().splitlines()[-1]) for out, _ in said]
    return {name: max(of[name] for of in held) for name in held[0]}


def _rank(case: Case) -> dict[str, float]:
    """One rank: bytes between steps, and the peak of a step."""
    from training.ema import Ema
    from training.zero import initialise, start_process_group

    torch.set_num_threads(1)
    start_process_group(20.0)

    def trained(width: int, heads: int, double: int, single: int) -> tuple[Any, Any, Callable[[], None]]:
        torch.manual_seed(0)
        engine = initialise(_transformer(width, heads, double, single, case.lora), None, case.engine)
        average, batch = Ema(engine, 0.999), _batch(width, MICRO, "cpu")

        def backward() -> None:
            engine.backward(_loss(engine, batch))

        return engine, average, backward

    engine, average, backward = trained(128, 1, 1, 1)  # loads all code and libraries' workspaces
    for step in range(2):
        backward()
        engine.step()
        average.update(engine, step)
    del engine, average, backward
    torch.distributed.barrier()
    before = _resident()
    engine, average, backward = trained(WIDTH, 4, 2, 4)
    for step in range(2):
        backward()
        engine.step()
        average.update(engine, step)
    torch.distributed.barrier()
    resting = _resident() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    backward()
    engine.step()
    peak = _status("VmHWM") - before
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return {"resting": resting, "peak": peak}


def _transformer(width: int, heads: int, double: int, single: int, lora: bool) -> LaToTransformer:
    module = LaToTransformer(
        in_channels=64, hidden_size=width, num_attention_heads=heads, num_double_blocks=double, num_single_blocks=single,
        axes_dims_rope=(16, 56, 56), text_dim=width, context_dim=width, connector_num_heads=heads, connector_depth=1, pooled_dim=width,
        landmark_dim=width, text_padding="masked",
    )  # fmt: skip
    if lora:
        add_adapter(module, 16, 16)
    return module


def _batch(width: int, size: int, device: str) -> dict[str, Any]:
    def some(*shape: int) -> Tensor:
        return torch.rand(size, *shape, device=device)

    return {
        "noise_tokens": some(GRID**2, 64), "source_tokens": some(GRID**2, 64), "grid": (GRID, GRID), "timestep": some(),
        "landmark_latents": some(68, width), "landmarks": some(68, 2) * 300 + 100, "landmark_mask": some(68) > -1,
        "text_embeddings": some(TEXT, width), "text_mask": some(TEXT) > -1,
    }  # fmt: skip


def _loss(module: Any, batch: dict[str, Any]) -> Tensor:
    return module(**batch).float().square().mean()


def _resident() -> float:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def _status(field: str) -> float:
    return float(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def _error(plan: float, measured: float) -> float:
    return 100 * (plan - measured) / measured


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        print(json.dumps(_rank(Case(**json.loads(sys.argv[1])))))
    else:
        print(HEAD, flush=True)
        for found in rows():
            print(line(found), flush=True)
