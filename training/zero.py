"""DeepSpeed's set-up: the process group, ZeRO, and a large model's weights put tensor by tensor into ZeRO-3 partitions."""

from __future__ import annotations

import copy
import ctypes
import datetime
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.config import EngineConfig

BUCKET = 500_000_000
"""Most elements of the buffer that gradients are reduced in (DeepSpeed's own `reduce_bucket_size`)."""


def start_process_group(timeout_minutes: float) -> None:
    """Joins the process group whose five variables are set (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    A collective that waits longer than the timeout is given up, with an error on every rank that waits.
    """
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed calls collectives by their old names
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    import deepspeed

    # without this, DeepSpeed compiles C++ at start on a CPU (minutes, or an error without a compiler)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    timeout = datetime.timedelta(minutes=timeout_minutes)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if not dist.is_initialized():
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend, timeout=timeout)
    deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timeout)


def reducible(values: list[float]) -> Tensor:
    """A small float64 tensor where the process group's collectives can work on it."""
    return torch.tensor(values, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")


def reduce_bucket(trained: int, most: int = BUCKET) -> int:
    """Elements of the buffer that gradients are reduced in at ZeRO 1 to 3: no more than there are gradients, for DeepSpeed makes it whole at once."""
    return min(most, trained)


def zero_config(config: EngineConfig, world: int, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run that trains so many elements."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "reduce_bucket_size": reduce_bucket(trained)}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.global_batch // (world * config.accumulation),
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip,
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bf16"},
        # torch's AdamW: DeepSpeed's own compiles C++ at start
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def initialise(module: nn.Module, weights: Mapping[str, Tensor] | None, config: EngineConfig) -> Any:
    """Wraps a module into a DeepSpeed engine with AdamW (0.9, 0.99) and the run's schedule; in a process group.

    Args:
        module: On the CPU; parameters may be on the meta device.
        weights: What these are filled with.
        config: The run's.

    Raises:
        ValueError: The global batch does not divide over ranks and accumulation, or nothing is to be trained.
    """
    import deepspeed

    world = dist.get_world_size()
    micro, left = divmod(config.global_batch, world * config.accumulation)
    if left or not micro:
        raise ValueError(f"global_batch {config.global_batch} does not divide over {world} ranks x {config.accumulation} micro-batches")
    if config.checkpoint_activations:
        _checkpoint_activations(module)
    if any(parameter.is_meta for parameter in module.parameters()):
        assert weights is not None, "the stage left parameters on the meta device and gives no weights for them"
        fill(module, weights, config)
    names = {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not names:
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    trained = sum(_numel(parameter) for parameter in names)
    shapes = {parameter: getattr(parameter, "ds_shape", parameter.shape) for parameter in names}
    decayed = [p for p, name in names.items() if len(shapes[p]) >= 2 and not name.startswith("null_landmarks")]
    others = [p for p, name in names.items() if len(shapes[p]) < 2 or name.startswith("null_landmarks")]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, config))
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, lr_scheduler=schedule, config=zero_config(config, world, trained))
    return engine


class HeldOutTrace:
    """Lets a pass that is no training step leave ZeRO-3's plan of gathers alone.

    DeepSpeed (0.19.8) records which parameters a pass gathers and keeps, in one place for all passes, and remembers what to free by position even after that record
    is thrown away: once a pass without gradient was recorded, every later training step frees all parameters after the forward pass and gathers them twice.
    """

    def __init__(self, engine: Any) -> None:
        """Called before the first pass.

        Args:
            engine: DeepSpeed's.
        """
        self._offload = getattr(engine.optimizer, "parameter_offload", None)
        if self._offload is not None:
            self._own = copy.copy(self._offload.param_coordinator)
            self._own._clear_trace_structures()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """What runs in this context is recorded apart."""
        if self._offload is None:
            yield
            return
        training = self._offload.param_coordinator
        self._offload.param_coordinator = self._own
        try:
            yield
        finally:
            self._offload.param_coordinator = training


def fill(module: nn.Module, weights: Mapping[str, Tensor], config: EngineConfig) -> None:
    """Puts weights where a module has meta tensors, one at a time; at ZeRO-3 each is cut into partitions before the next is read.

    Host memory of a rank stays below its partitions and the largest tensor (with `weights` from memory-mapped files).

    """
    import deepspeed

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    if config.zero_stage < 3:
        materialise(module, weights, dtype)
        return
    trained = sum(_numel(parameter) for parameter in module.parameters() if parameter.requires_grad)
    cutter = deepspeed.zero.Init(config_dict_or_path=zero_config(config, dist.get_world_size(), trained), dtype=dtype)
    with _tensors_given_back_at_once():
        materialise(module, weights, dtype, lambda parameter: cutter._convert_to_zero_parameters([parameter]))


@contextmanager
def _tensors_given_back_at_once() -> Iterator[None]:
    """A context in which the C library returns every freed tensor to the system.

    It keeps freed blocks up to some 32 MB for later; between partitions that stay they are holes, which cost as much again as the partitions (measured).
    """
    threshold, usual, small = -3, 32 << 20, 64 << 10  # M_MMAP_THRESHOLD, glibc's own upper end, and what tensors are above
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and no such habit
    if mallopt is not None:
        mallopt(threshold, small)
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(threshold, usual)


def materialise(
    module: nn.Module,
    weights: Mapping[str, Tensor] | None,
    dtype: torch.dtype = torch.float32,
    then: Callable[[nn.Parameter], None] | None = None,
) -> None:
    """Puts values where a module has meta tensors, one at a time.

    Args:
        module: Changed in place.
        weights: Values by name; None where nothing is on the meta device.
        dtype: Of floating-point parameters.
        then: What is done with each parameter before the next is read.

    Raises:
        ValueError: A value is missing, or of another shape.
    """
    if weights is None:
        return
    made: dict[int, nn.Parameter] = {}  # tied parameters stay one
    for prefix, part in module.named_modules():
        for own, given in list(part.named_parameters(recurse=False)):
            if not given.is_meta:
                continue
            if id(given) not in made:
                name = f"{prefix}.{own}".lstrip(".")
                value = _value(weights, name, given.shape).to(dtype if given.is_floating_point() else given.dtype)
                made[id(given)] = nn.Parameter(value, requires_grad=given.requires_grad)
                del value
                if then is not None:
                    then(made[id(given)])
            part._parameters[own] = made[id(given)]
        for own, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_meta:
                part._buffers[own] = _value(weights, f"{prefix}.{own}".lstrip("."), buffer.shape).to(buffer.dtype)


def _numel(parameter: Any) -> int:
    """Elements of a parameter, also of one that ZeRO-3 has cut."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _value(weights: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    if name not in weights:
        raise ValueError(f"{name}: the weights given for this model do not hold it")
    value = weights[name]
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, given {tuple(value.shape)}")
    return value


def _checkpoint_activations(module: nn.Module) -> None:
    for name in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):  # diffusers', transformers'
        if hasattr(module, name):
            getattr(module, name)()
            return
    raise ValueError(f"checkpoint_activations: {type(module).__name__} cannot compute its activations anew; set it to false")


def rate_factor(step: int, config: EngineConfig) -> float:
    """Learning rate at a step, as a share of the highest: warm-up, constant, linear fall to a tenth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    start = config.decay_from * config.steps
    if step <= start:
        return 1.0
    return max(0.1, 1.0 - 0.9 * (step - start) / max(1.0, config.steps - start))
