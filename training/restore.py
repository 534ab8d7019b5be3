"""Checkpoints read back: into an engine on any number of ranks, or as whole tensors for an export."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from torch import Tensor

from infra.addresses import join
from infra.errors import UserError
from infra.storage import read_bytes
from training.checkpoint import MARKER
from training.ema import Ema
from training.ranges import RangeReader
from training.shards import MOMENTS, make_moments, push, set_optimizer_step, shards

_AT_ONCE = 256 << 20
"""Bytes that are asked for at once, side by side on an object store."""


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
    files = ShardFiles(folder, marker)
    _check_names(files, engine, folder)
    if not weights_only:
        make_moments(engine)
    wanted: list[tuple[str, str, int, Tensor]] = []
    for shard in shards(engine):
        moments = {} if weights_only else shard.moments
        wanted += [(part, shard.name, shard.start, tensor) for part, tensor in [("weight", shard.weight), *moments.items()]]
        if ema is not None:
            wanted.append(("ema" if files.has("ema") else "weight", shard.name, shard.start, ema.values[shard.name]))
    files.fill(wanted)
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
    """A checkpoint's tensors, read range by range where they lie: a rank of many fetches its own part of an object store's files and nothing else.

    Args:
        folder: Of the checkpoint.
        marker: Its marker.

    Raises:
        UserError: Files of it are gone or cut short, or do not hold all of a parameter.
    """

    def __init__(self, folder: str, marker: Mapping[str, Any]) -> None:
        self._folder, self._reader = folder, RangeReader()
        self._bytes = {name: entry["bytes"] for name, entry in marker["files"].items()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of every trained parameter."""
        self._ranges: dict[str, list[tuple[int, int, str]]] = {}
        names = [f"rank-{rank:05d}-of-{marker['world_size']:05d}" for rank in range(marker["world_size"])]
        for name, data in zip(names, self._read_whole([f"{name}.json" for name in names]), strict=True):
            for parameter, (start, count, shape) in json.loads(data)["ranges"].items():
                self.shapes[parameter] = tuple(shape)
                self._ranges.setdefault(parameter, []).append((start, start + count, f"{name}.safetensors"))
        if torn := [
            name for name, ranges in self._ranges.items() if sum(end - start for start, end, _ in ranges) != math.prod(self.shapes[name])
        ]:
            raise UserError(
                f"{folder}: parts of {torn[0]} are in no file of it ({len(torn)} such parameters). Copy the checkpoint again as a whole."
            )
        self._offsets = self._read_headers(sorted({file for ranges in self._ranges.values() for *_, file in ranges}))

    def has(self, part: str) -> bool:
        """Whether it holds `weight`, `exp_avg`, `exp_avg_sq` or `ema`."""
        return any(key.startswith(f"{part}/") for offsets in self._offsets.values() for key in offsets)

    def fill(self, wanted: Iterable[tuple[str, str, int, Tensor]]) -> None:
        """Sets fp32 tensors to ranges of flattened parameters; to zeros where they are moments that the optimizer had not made yet.

        Args:
            wanted: Part, parameter, start of the range, and the tensor (n,) that takes it.

        Raises:
            UserError: A file is gone, cut short, or has no such weights.
        """
        pieces: list[tuple[tuple[str, int, int], Tensor]] = []
        together = 0
        for part, name, start, out in wanted:
            for first, last, file in self._ranges[name]:
                low, high = max(start, first), min(start + len(out), last)
                if low >= high:
                    continue
                there = out[low - start : high - start]
                offset = self._offsets[file].get(f"{part}/{name}")
                if offset is None and part in MOMENTS:
                    there.zero_()
                    continue
                if offset is None:
                    raise UserError(f"{join(self._folder, file)}: {part} of {name} is not in it. Copy the checkpoint again as a whole.")
                pieces.append(((join(self._folder, file), offset + 4 * (low - first), 4 * (high - low)), there))
                together += 4 * (high - low)
                if together >= _AT_ONCE:
                    self._fetch(pieces)
                    pieces, together = [], 0
        self._fetch(pieces)

    def whole(self, part: str, name: str) -> Tensor:
        """A parameter in its shape, fp32."""
        shape = self.shapes[name]
        out = torch.empty(math.prod(shape))
        self.fill([(part, name, 0, out)])
        return out.view(shape)

    def shared(self) -> dict[str, Tensor]:
        """What belongs to no rank: `buffer/<name>`."""
        return load_tensors(self._read_whole(["shared.safetensors"])[0])

    def _fetch(self, pieces: list[tuple[tuple[str, int, int], Tensor]]) -> None:
        for (_, out), data in zip(pieces, self._reader.read_many([piece for piece, _ in pieces]), strict=True):
            out.copy_(torch.frombuffer(bytearray(data), dtype=torch.float32))

    def _read_whole(self, files: list[str]) -> list[bytes]:
        return self._reader.read_many([(join(self._folder, file), 0, self._bytes[file]) for file in files])

    def _read_headers(self, files: list[str]) -> dict[str, dict[str, int]]:
        """File -> tensor -> offset of its bytes. A safetensors file begins with the length of a JSON header (8 bytes, little-endian) and the header."""
        uris = [join(self._folder, file) for file in files]
        lengths = [int.from_bytes(data, "little") for data in self._reader.read_many([(uri, 0, 8) for uri in uris])]
        headers = self._reader.read_many([(uri, 8, length) for uri, length in zip(uris, lengths, strict=True)])
        found = {}
        for file, length, data in zip(files, lengths, headers, strict=True):
            tensors = {key: entry for key, entry in json.loads(data).items() if key != "__metadata__"}
            assert {entry["dtype"] for entry in tensors.values()} <= {"F32"}, f"{file}: the trained state is kept in fp32"
            found[file] = {key: 8 + length + entry["data_offsets"][0] for key, entry in tensors.items()}
        return found


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
