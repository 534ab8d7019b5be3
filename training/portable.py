"""Training state by parameter name, independent of how it was spread over ranks: what a resume on another number of ranks reads.

DeepSpeed's own files are laid out for one number of ranks, and its universal format drops module buffers and every optimizer state but Adam's two moments
(measured); so this is written beside them, as safetensors: fp32 weights, both moments, all buffers, and the counters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = "portable.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def gather(engine: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All state as whole tensors (`weight/<name>`, `exp_avg/<name>`, `exp_avg_sq/<name>`, `buffer/<name>`) and counters; a collective, equal on all ranks."""
    tensors: dict[str, Tensor] = {}
    _link_moments(engine)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        tensors[f"weight/{name}"] = _whole_weight(engine, parameter)
        for moment in _MOMENTS:
            state = _whole_moment(engine, parameter, moment)
            if state is not None:
                tensors[f"{moment}/{name}"] = state
    for name, buffer in engine.module.named_buffers():
        tensors[f"buffer/{name}"] = buffer.detach()
    counters = {
        "adam_step": _adam_step(engine),
        "global_steps": engine.global_steps,
        "global_samples": engine.global_samples,
        "schedule": engine.lr_scheduler.state_dict() | {"lr_lambdas": None},
    }
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}, counters


def save(folder: Path, engine: Any) -> None:
    """Writes the state; called on all ranks, written by the first."""
    tensors, counters = gather(engine)
    if dist.get_rank() == 0:
        save_file(tensors, folder / FILE, metadata={"counters": json.dumps(counters)})


def load(folder: Path, engine: Any) -> None:
    """Sets an engine that has made no step to the state; called on all ranks."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    _make_moments(engine)
    with safe_open(folder / FILE, framework="pt") as file:
        counters = json.loads(file.metadata()["counters"])
        known = set(file.keys())
        for name, parameter in engine.module.named_parameters():
            if f"weight/{name}" not in known:
                continue
            weight = file.get_tensor(f"weight/{name}")
            moments = {moment: file.get_tensor(f"{moment}/{name}") for moment in _MOMENTS if f"{moment}/{name}" in known}
            if engine.zero_optimization_stage() == 3:
                _set_partition(parameter, weight, None)
                for moment, state in moments.items():
                    _set_partition(parameter, state, moment)
            elif engine.zero_optimization():
                safe_set_full_fp32_param(parameter, weight)
                for moment, state in moments.items():
                    safe_set_full_optimizer_state(parameter, state, moment)
            else:
                _set_plain(engine, parameter, weight, moments, counters["adam_step"])
        for name, buffer in engine.module.named_buffers():
            buffer.copy_(file.get_tensor(f"buffer/{name}"))
    _set_adam_step(engine, counters["adam_step"])
    engine.global_steps = counters["global_steps"]
    engine.global_samples = counters["global_samples"]
    schedule = counters["schedule"] | {"lr_lambdas": [None] * len(engine.lr_scheduler.lr_lambdas)}
    engine.lr_scheduler.load_state_dict(schedule)
    for group, rate in zip(engine.optimizer.param_groups, engine.lr_scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def _inner(engine: Any) -> Any:
    """The optimizer that torch knows, below DeepSpeed's wrapper where there is one."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _flat_partitions(engine: Any) -> list[Tensor]:
    """The fp32 tensors that Adam sees at ZeRO 1 to 3."""
    partitions = getattr(engine.optimizer, "single_partition_of_fp32_groups", None)
    return list(partitions if partitions is not None else engine.optimizer.fp32_partitioned_groups_flat)


def _link_moments(engine: Any) -> None:
    """At ZeRO 1 and 2 a parameter's moments are views that DeepSpeed links once, in its first step and before Adam has made them: link them anew."""
    if engine.zero_optimization_stage() in (1, 2) and any(_inner(engine).state.values()):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _make_moments(engine: Any) -> None:
    """Adam makes its moments at the first step; here they must be there before it."""
    if not engine.zero_optimization():
        return
    for partition in _flat_partitions(engine):
        zeros = {moment: torch.zeros_like(partition) for moment in _MOMENTS}
        _inner(engine).state[partition] = {"step": torch.tensor(0.0), **zeros}
    _link_moments(engine)


def _whole_weight(engine: Any, parameter: Tensor) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter) if engine.zero_optimization() else parameter.detach().float()


def _whole_moment(engine: Any, parameter: Tensor, moment: str) -> Tensor | None:
    from deepspeed.utils import safe_get_full_optimizer_state

    if engine.zero_optimization():
        return safe_get_full_optimizer_state(parameter, moment)
    return _inner(engine).state.get(parameter, {}).get(moment)


def _adam_step(engine: Any) -> float:
    steps = [float(state["step"]) for state in _inner(engine).state.values() if "step" in state]
    return max(steps, default=0.0)


def _set_adam_step(engine: Any, step: float) -> None:
    for state in _inner(engine).state.values():
        if "step" in state:
            state["step"] = torch.tensor(step) if isinstance(state["step"], Tensor) else step


def _set_partition(parameter: Any, value: Tensor, key: str | None) -> None:
    """This rank's part of a ZeRO-3 parameter or moment. DeepSpeed's own setter forgets that the last rank's part is padded."""
    optimizer = parameter._z3_optimizer
    partition, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
    start = partition.numel() * optimizer._get_param_partition_rank(parameter)
    mine = value.flatten()[start : start + partition.numel()]
    partition.data[: mine.numel()].copy_(mine)


def _set_plain(engine: Any, parameter: Tensor, weight: Tensor, moments: dict[str, Tensor], step: float) -> None:
    with torch.no_grad():
        parameter.copy_(weight)
    if moments:
        state = {moment: value.to(parameter.device) for moment, value in moments.items()}
        _inner(engine).state[parameter] = {"step": torch.tensor(step), **state}
