"""What a rank holds of the trained state, by parameter name: the one file that knows how DeepSpeed spreads it at each ZeRO stage.

Every trained parameter is, flattened, cut into ranges; a `Shard` is this rank's range of one of them, as views: writing to them is writing to the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Shard:
    """A rank's range of one trained parameter."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """Of the range in the flattened parameter."""
    weight: Tensor
    """(n,) the fp32 master, a view."""
    moments: dict[str, Tensor]
    """(n,) each, views; empty before the optimizer's first step."""
    own: slice
    """The part of the range that this rank saves; over all ranks these are disjoint and complete."""


def shards(engine: Any) -> list[Shard]:
    """This rank's ranges of all trained parameters, in the module's order; ranks may hold none of some."""
    names = [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    stage = engine.zero_optimization_stage()
    look = {0: _replicated, 1: _flat, 2: _flat, 3: _partitioned}[stage]
    found = (look(engine, name, parameter) for name, parameter in names)
    return [shard for shard in found if shard is not None]


def make_moments(engine: Any) -> None:
    """Gives the optimizer zero moments where it has none yet: it makes them at its first step, and a resume needs them before."""
    inner = inner_optimizer(engine)
    tensors = _masters(engine)
    for tensor in tensors:
        if not inner.state[tensor]:
            inner.state[tensor] = {"step": torch.tensor(0.0), **{moment: torch.zeros_like(tensor.detach()) for moment in MOMENTS}}


def push(engine: Any) -> None:
    """Carries the masters over to the weights that the forward pass uses; a collective."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if optimizer.persistent_parameters:  # small ones stay whole on every rank
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    else:
        for parameter, master in _fp32_copies(engine).items():
            parameter.data.copy_(master)


def inner_optimizer(engine: Any) -> Any:
    """The optimizer that torch knows, below DeepSpeed's wrapper where there is one."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def optimizer_step(engine: Any) -> float:
    """How many steps the optimizer made, as it counts them."""
    return max((float(state["step"]) for state in inner_optimizer(engine).state.values() if "step" in state), default=0.0)


def set_optimizer_step(engine: Any, step: float) -> None:
    """Sets that count."""
    for state in inner_optimizer(engine).state.values():
        if "step" in state:
            state["step"] = torch.tensor(step) if isinstance(state["step"], Tensor) else step


def _masters(engine: Any) -> list[Tensor]:
    """The tensors that the optimizer steps on."""
    optimizer = engine.optimizer
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _fp32_copies(engine: Any) -> dict[Any, Tensor]:
    """At ZeRO-0 in bf16: weight -> its fp32 master. Empty in fp32, where the weights are the masters."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {parameter: master for weights, masters in pairs for parameter, master in zip(weights, masters, strict=True)}


def _replicated(engine: Any, name: str, parameter: Any) -> Shard:
    """ZeRO-0: every rank holds all of it, and saves its share of it."""
    master = _fp32_copies(engine).get(parameter, parameter)
    state = inner_optimizer(engine).state.get(master, {})
    size = -(-parameter.numel() // dist.get_world_size())
    first = min(size * dist.get_rank(), parameter.numel())
    own = slice(first, min(first + size, parameter.numel()))
    return Shard(name, tuple(parameter.shape), 0, master.detach().view(-1), {m: state[m].view(-1) for m in MOMENTS if m in state}, own)


def _flat(engine: Any, name: str, parameter: Any) -> Shard | None:
    """ZeRO 1 and 2: a rank's masters are one flat tensor a group; a parameter's range in it may be empty."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = _masters(engine)[mapping.param_group_index]
    there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
    state = inner_optimizer(engine).state.get(flat, {})
    moments = {m: state[m].narrow(0, there.start, there.numel) for m in MOMENTS if m in state}
    weight = flat.detach().narrow(0, there.start, there.numel)
    return Shard(name, tuple(parameter.shape), here.start, weight, moments, slice(0, there.numel))


def _partitioned(engine: Any, name: str, parameter: Any) -> Shard | None:
    """ZeRO-3: each parameter is cut into equal ranges, the last one padded; the padding is left out here."""
    optimizer = engine.optimizer
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = size * dist.get_rank(group=parameter.ds_process_group)
    count = min(size, parameter.ds_numel - start)
    if count <= 0:
        return None
    flat = optimizer.fp32_partitioned_groups_flat[group]
    state = inner_optimizer(engine).state.get(flat, {})
    moments = {m: state[m].narrow(0, offset, count) for m in MOMENTS if m in state}
    return Shard(name, tuple(parameter.ds_shape), start, flat.detach().narrow(0, offset, count), moments, slice(0, count))
