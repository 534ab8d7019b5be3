"""The engine: DeepSpeed ZeRO around a stage. It knows no Ray: it runs wherever the five variables of a process group are set.

A non-finite loss or gradient on any rank stops all of them before weights, codebook, optimizer or counter change, and names the samples.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training import checkpoint
from training.config import EngineConfig
from training.data import batch_indices
from training.requests import Preempted, Requests, listen

Report = Callable[[dict[str, Any]], None]
"""Takes one line of metrics; called on rank 0."""


class Stage(Protocol):
    """What a stage knows of its model and data."""

    name: str
    keys: list[str]
    """Training samples."""

    def build(self) -> nn.Module:
        """The module, its weights set; equal on all ranks."""
        ...

    def loss(self, module: nn.Module, samples: list[tuple[str, int]]) -> tuple[Tensor, dict[str, float]]:
        """Mean loss over (key, epoch) samples, and numbers to show."""
        ...

    def after_step(self, module: nn.Module, step: int, steps: int) -> dict[str, float]:
        """What changes outside the optimizer (a codebook), once a step."""
        ...

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Held-out numbers; `held_out` is the one that must fall."""
        ...

    def export(self, module: nn.Module, folder: Path) -> None:
        """Writes what the stage hands on."""
        ...


class NotFinite(RuntimeError):
    """A loss or gradient was NaN or infinite."""


def run(stage: Stage, config: EngineConfig, folder: Path, report: Report) -> None:
    """Trains a stage from its newest checkpoint to its end and exports it; called on every rank of a process group whose variables are set.

    Args:
        stage: What is trained.
        config: How.
        folder: `checkpoints/` and `export/` go below it.
        report: Takes metrics on rank 0.

    Raises:
        NotFinite: On all ranks.
        Preempted: On all ranks, after a checkpoint was written.
        ValueError: The global batch does not divide over ranks and accumulation.
    """
    engine = _initialise(stage.build(), config)
    rank, world = dist.get_rank(), dist.get_world_size()
    micro, left = divmod(config.global_batch, world * config.accumulation)
    if left or not micro:
        raise ValueError(f"global_batch {config.global_batch} does not divide over {world} ranks x {config.accumulation} micro-batches")
    finite = _watch_gradients(engine.module)
    step = checkpoint.load_newest(folder / "checkpoints", engine)
    if step == 0:
        before = _validate(stage, engine.module)  # on all ranks: at ZeRO-3 a forward pass is a collective
        if rank == 0:
            report({"step": 0, **before})
    with listen(folder, config.save_minutes) as requests:
        _train(engine, stage, config, folder, report, finite, requests, step, micro)
    with _whole(engine.module, config.zero_stage):
        if rank == 0:
            stage.export(engine.module, folder / "export")
    dist.barrier()


def _train(
    engine: Any,
    stage: Stage,
    config: EngineConfig,
    folder: Path,
    report: Report,
    finite: list[Tensor],
    requests: Requests,
    step: int,
    micro: int,
) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    started, first = time.monotonic(), step
    while step < config.steps:
        order = batch_indices(step, config.global_batch, len(stage.keys), config.seed)
        mine = [order[(part * world + rank) * micro :][:micro] for part in range(config.accumulation)]
        metrics = _train_step(engine, stage, config, mine, finite, step)
        step += 1
        done = step == config.steps
        evaluate = done or step % config.eval_every == 0
        if evaluate:
            metrics |= _validate(stage, engine.module)
        if rank == 0 and (evaluate or step % config.log_every == 0):
            rate = (step - first) / (time.monotonic() - started)
            report({"step": step, "steps": config.steps, "steps_per_second": rate, "seconds_left": (config.steps - step) / rate, **metrics})
        asked = requests.poll()
        if done or asked.stop or asked.save or step % config.checkpoint_every == 0:
            checkpoint.save(folder / "checkpoints", step, engine, config.keep, metrics.get("held_out"))
            if rank == 0:
                requests.answered()
        if asked.stop and not done:
            raise Preempted(f"asked to end after step {step}: saved, and the same command goes on from there")


def _train_step(
    engine: Any, stage: Stage, config: EngineConfig, parts: list[list[tuple[int, int]]], finite: list[Tensor], step: int
) -> dict[str, float]:
    engine.train()
    metrics: dict[str, float] = {}
    for part in parts:
        samples = [(stage.keys[index], epoch) for index, epoch in part]
        loss, shown = stage.loss(engine, samples)
        _stop_unless(torch.isfinite(loss.detach()).all(), "loss", step, samples)
        finite[0] = torch.ones((), dtype=torch.bool)
        engine.backward(loss)
        _stop_unless(finite[0], "gradient", step, samples)
        engine.step()
        metrics = {"loss": float(loss.detach()), **shown}
    metrics["lr"] = float(engine.get_lr()[0])
    norm = engine.get_global_grad_norm()
    if norm is not None:
        metrics["grad_norm"] = float(norm)
    return metrics | stage.after_step(engine.module, step + 1, config.steps)


def _stop_unless(ok: Tensor, what: str, step: int, samples: list[tuple[str, int]]) -> None:
    """Stops all ranks when one of them saw something that is not finite."""
    votes: list[Any] = [None] * dist.get_world_size()
    verdict = ok.to(torch.int32).cpu().clone()
    dist.all_reduce(verdict, dist.ReduceOp.MIN)
    if int(verdict):
        return
    keys = [key for key, _ in samples] if not bool(ok) else []
    dist.all_gather_object(votes, keys)
    guilty = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in enumerate(votes) if names)
    raise NotFinite(
        f"the {what} of step {step + 1} is not finite ({guilty}). Nothing was changed by this step. Look at these samples, or lower the rate."
    )


def _watch_gradients(module: nn.Module) -> list[Tensor]:
    """A flag that falls when a gradient that is not finite passes any parameter; seen before ranks are averaged, at every ZeRO stage."""
    flag = [torch.ones((), dtype=torch.bool)]

    def look(gradient: Tensor) -> None:
        flag[0] = flag[0] & torch.isfinite(gradient).all().cpu()

    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_hook(look)
    return flag


def _validate(stage: Stage, module: nn.Module) -> dict[str, float]:
    module.eval()
    with torch.no_grad(), torch.random.fork_rng():
        values = stage.validate(module)
    module.train()
    return values


def _whole(module: nn.Module, zero_stage: int) -> Any:
    """A context in which every parameter is whole (at ZeRO-3 they are partitioned)."""
    if zero_stage < 3:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(module.parameters()))


def _initialise(module: nn.Module, config: EngineConfig) -> Any:
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    import deepspeed

    # without these two, DeepSpeed compiles C++ at start on a CPU (minutes, or an error without a compiler)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    decayed = [p for n, p in module.named_parameters() if p.requires_grad and p.ndim >= 2 and not n.startswith("null_landmarks")]
    others = [p for n, p in module.named_parameters() if p.requires_grad and (p.ndim < 2 or n.startswith("null_landmarks"))]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, config))
    world = dist.get_world_size()
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config={
            "train_batch_size": config.global_batch,
            "train_micro_batch_size_per_gpu": config.global_batch // (world * config.accumulation),
            "gradient_accumulation_steps": config.accumulation,
            "gradient_clipping": config.clip,
            "zero_optimization": {"stage": config.zero_stage},
            "bf16": {"enabled": config.precision == "bf16"},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    return engine


def rate_factor(step: int, config: EngineConfig) -> float:
    """Learning rate at a step, as a share of the highest: warm-up, constant, linear fall to a tenth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    start = config.decay_from * config.steps
    if step <= start:
        return 1.0
    return max(0.1, 1.0 - 0.9 * (step - start) / max(1.0, config.steps - start))


def write_line(path: Path) -> Report:
    """A report that appends JSON lines to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def report(values: Mapping[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"time": time.time(), **values}) + "\n")

    return report
