"""Checkpoints read back: into an engine on any number of ranks, or as whole tensors for an export."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from infra.errors import UserError
from infra.storage import is_local, join, read_bytes
from training.checkpoint import MARKER
from training.ema import Ema
from training.shards import make_moments, push, set_optimizer_step, shards


def load(folder: str, engine: Any, ema: Ema | None, weights_only: bool = False) -> dict[str, Any]:
    """Sets an engine that has made no step, and its average, to a checkpoint; called on every rank, which may be more or fewer than wrote it.

    On as many ranks as wrote it the random state of each is set too, and the run goes on bit for bit.

    Args:
        folder: Of the checkpoint.
        engine: DeepSpeed's.
        ema: The average, where one is kept.
        weights_only: Takes weights, average and buffers; moments, counters and random states stay those of a new run.

    Returns:
        The checkpoint's marker.

    Raises:
        UserError: It is of another model.
    """
    marker = json.loads(read_bytes(join(folder, MARKER)))
    world, rank = dist.get_world_size(), dist.get_rank()
    with ShardFiles.open(folder, marker["world_size"]) as files:
        _check_names(files, engine, folder)
        if not weights_only:
            make_moments(engine)
        for shard in shards(engine):
            end = shard.start + len(shard.weight)
            moments = {} if weights_only else shard.moments
            for part, tensor in [("weight", shard.weight), *moments.items()]:
                tensor.copy_(files.read(part, shard.name, shard.start, end))
            if ema is not None:
                ema.values[shard.name].copy_(files.read("ema" if files.has("ema") else "weight", shard.name, shard.start, end))
        buffers = files.shared()
        for name, buffer in engine.module.named_buffers():
            buffer.copy_(buffers[f"buffer/{name}"])
    if not weights_only:
        _set_counters(engine, json.loads(read_bytes(join(folder, "counters.json"))))
    push(engine)
    if not weights_only and marker["world_size"] == world:
        _set_random_state(json.loads(read_bytes(join(folder, f"rank-{rank:05d}-of-{world:05d}.json")))["random"])
    return marker


class ShardFiles:
    """A checkpoint's tensors, read range by range.

    Args:
        folder: Of the checkpoint, on this machine.
        world_size: How many ranks wrote it.
    """

    def __init__(self, folder: Path, world_size: int) -> None:
        self._folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of every trained parameter."""
        self._ranges: dict[str, list[tuple[int, int, str]]] = {}
        for rank in range(world_size):
            name = f"rank-{rank:05d}-of-{world_size:05d}"
            for parameter, (start, count, shape) in json.loads((folder / f"{name}.json").read_text())["ranges"].items():
                self.shapes[parameter] = tuple(shape)
                self._ranges.setdefault(parameter, []).append((start, start + count, f"{name}.safetensors"))
        self._open = {f: safe_open(folder / f, framework="pt") for f in sorted({f for ranges in self._ranges.values() for *_, f in ranges})}
        self._keys = {name: set(file.keys()) for name, file in self._open.items()}

    @classmethod
    @contextmanager
    def open(cls, folder: str, world_size: int) -> Iterator[ShardFiles]:
        """Opens a checkpoint; one on an object store is brought to this machine for as long as the context lasts."""
        if is_local(folder):
            yield cls(Path(folder), world_size)
            return
        with tempfile.TemporaryDirectory(prefix="lato-checkpoint-") as scratch:
            filesystem, path = fsspec.core.url_to_fs(folder)
            filesystem.get(path.rstrip("/") + "/", scratch + "/", recursive=True)
            yield cls(Path(scratch), world_size)

    def has(self, part: str) -> bool:
        """Whether it holds `weight`, `exp_avg`, `exp_avg_sq` or `ema`."""
        return any(key.startswith(f"{part}/") for keys in self._keys.values() for key in keys)

    def read(self, part: str, name: str, start: int, end: int) -> Tensor:
        """(end - start,) fp32, a range of a flattened parameter; zeros for moments that the optimizer had not made yet."""
        out = torch.zeros(end - start)
        for first, last, file in self._ranges[name]:
            low, high = max(start, first), min(end, last)
            if low < high and f"{part}/{name}" in self._keys[file]:
                out[low - start : high - start] = self._open[file].get_slice(f"{part}/{name}")[low - first : high - first]
        return out

    def whole(self, part: str, name: str) -> Tensor:
        """A parameter in its shape, fp32."""
        shape = self.shapes[name]
        return self.read(part, name, 0, int(np.prod(shape, dtype=np.int64))).view(shape)

    def shared(self) -> dict[str, Tensor]:
        """What belongs to no rank: `buffer/<name>`."""
        with safe_open(self._folder / "shared.safetensors", framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _set_counters(engine: Any, counters: dict[str, Any]) -> None:
    set_optimizer_step(engine, counters["optimizer_step"])
    engine.global_steps = counters["global_steps"]
    engine.global_samples = counters["global_samples"]
    engine.micro_steps = counters["global_steps"] * engine.gradient_accumulation_steps()
    engine.lr_scheduler.load_state_dict(counters["schedule"] | {"lr_lambdas": [None] * len(engine.lr_scheduler.lr_lambdas)})
    for group, rate in zip(engine.optimizer.param_groups, engine.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def _check_names(files: ShardFiles, engine: Any, folder: str) -> None:
    trained = ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)
    mine = {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in trained}
    mine |= {name: tuple(buffer.shape) for name, buffer in engine.module.named_buffers()}
    there = files.shapes | {name.removeprefix("buffer/"): tuple(tensor.shape) for name, tensor in files.shared().items()}
    wrong = [
        f"{name}: {there.get(name, 'not in it')}, here {mine.get(name, 'unknown')}"
        for name in sorted(mine.keys() | there.keys())
        if there.get(name) != mine.get(name)
    ]
    if wrong:
        raise UserError(
            f"{folder}: this checkpoint is of another model. {len(wrong)} of {len(mine)} parameters and buffers differ, the first: {'; '.join(wrong[:3])}"
        )


def _set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(state["cuda"])), dtype=torch.uint8))
