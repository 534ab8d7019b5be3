"""What a stage says of its model and data; `training.engine` does the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.data import Dataset
from training.mixture import Mixture, Sample

Batch = dict[str, Any]
"""What `read` makes of some samples: tensors (and dataclasses, lists, dicts of them) on the CPU; the engine moves them to the device."""


@dataclass(frozen=True)
class StepLoss:
    """The loss of a micro-batch of B samples."""

    per_sample: Tensor
    """(B,) losses, differentiable. Their mean over the global batch is what is trained on, so that it does not depend on how the batch is cut."""
    tokens: int
    """Tokens that went through the model."""
    shown: dict[str, Tensor] = field(default_factory=dict)
    """Further numbers for the log, detached scalars."""


class Stage(Protocol):
    """One of the three trainings."""

    name: str
    data: Mixture
    """Training samples."""
    sources: list[str]
    """A short name of each of the mixture's sources, no two alike, for the log."""
    notes: list[str]
    """What a person should know before the first step."""
    floors: dict[str, tuple[float, str]]
    """Metrics that should not fall below a limit after warm-up, with what to say when they do."""

    def build(self) -> nn.Module:
        """The module on the CPU, equal on all ranks; what is too large for that on the meta device. Only parameters that require a gradient are trained
        and saved."""
        ...

    def weights(self) -> Mapping[str, Tensor] | None:
        """Values for what `build` left on the meta device, by name, read one at a time (memory-mapped files); None where nothing was."""
        ...

    def read(self, samples: list[Sample]) -> Batch:
        """Reads and draws what `loss` needs; may run in another thread, ahead of its step."""
        ...

    def length(self, sample: Sample) -> int:
        """Something that grows with a sample's cost (its text's length): a step's samples are dealt to micro-batches by it. 0 where all are alike."""
        ...

    def loss(self, module: nn.Module, batch: Batch) -> StepLoss:
        """The loss of a batch. `module` is what DeepSpeed made of the module: call it, do not reach into it."""
        ...

    def after_step(self, module: nn.Module, step: int, steps: int) -> dict[str, float]:
        """What changes outside the optimizer (a codebook), once a step, on every rank; numbers for the log."""
        ...

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Held-out numbers, on every rank; `held_out` is the one that must fall."""
        ...

    def pictures(self, module: nn.Module) -> dict[str, npt.NDArray[np.uint8]]:
        """Sample grids (H, W, 3) RGB by name, from fixed samples and seeds; on every rank (at ZeRO-3 a forward pass is a collective)."""
        ...

    def export(self, module: nn.Module, folder: Path) -> None:
        """Writes what the stage hands on; on one rank, with a whole module on the CPU."""
        ...


T = TypeVar("T")


def to_device(value: T, device: torch.device) -> T:
    """A batch with all its tensors on a device; dicts, lists, tuples and dataclasses are gone through."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)  # type: ignore[return-value]
    if isinstance(value, dict):
        return {name: to_device(inner, device) for name, inner in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(to_device(inner, device) for inner in value)  # type: ignore[call-arg,return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in dataclasses.fields(value)})  # type: ignore[return-value]
    return value


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    return next(module.parameters()).device


def source_names(datasets: Sequence[Dataset]) -> list[str]:
    """The datasets' names, no two alike: of two builds each version may be called v1, and a loss is logged under its source's name. Before one that
    several have goes the part of their addresses in which all of these differ; what is still the same (one address twice) is numbered.
    """
    names: list[str] = []
    for dataset in datasets:
        alike = [other.uri.split("/") for other in datasets if other.name == dataset.name]
        telling = [parts for parts in zip(*map(reversed, alike), strict=False) if len(set(parts)) == len(alike) > 1]
        place = alike.index(dataset.uri.split("/"))
        names.append(f"{telling[0][place]}-{dataset.name}" if telling else dataset.name)
    unique: list[str] = []
    for name in names:
        number, new = 1, name
        while new in unique:
            number += 1
            new = f"{name}-{number}"
        unique.append(new)
    return unique
