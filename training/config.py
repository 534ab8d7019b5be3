"""What every stage's training has in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.config import Config


class DataSource(Config):
    """One dataset version or view that training reads."""

    uri: str
    """Its folder, on disk or an object store."""
    weight: float | None = Field(default=None, gt=0)
    """Its share in the mixture, relative to the others: given to all or to none. None takes its number of samples, times a view's own weight."""


class EngineConfig(Config):
    """One training run."""

    steps: int = Field(default=1000, gt=0)
    """Optimizer steps."""
    global_batch: int = Field(default=16, gt=0)
    """Samples a step, over all ranks and accumulation; step k sees the same samples for any number of ranks."""
    accumulation: int = Field(default=1, gt=0)
    """Micro-batches a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate after warm-up."""
    warmup: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    decay_from: float = Field(default=0.7, ge=0)
    """Share of the steps after which the rate falls, linearly, to a tenth; 1 holds it."""
    weight_decay: float = Field(default=0.01, ge=0)
    """On matrices; not on norms, biases and null tokens."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the moving average of the weights, which is then what is exported; None keeps none."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in the host's memory: nothing, the optimizer's state (ZeRO 1 to 3), or weights too (ZeRO 3)."""
    checkpoint_activations: bool = False
    """Computes activations anew in the backward pass."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights in the forward pass; masters and moments are fp32."""
    deterministic: bool = False
    """Only algorithms that give the same bits on a GPU; slower there."""
    eval_every: int = Field(default=100, gt=0)
    """Steps between two held-out evaluations; one is always made at step 0 and at the end."""
    picture_every: int | None = Field(default=None, gt=0)
    """Steps between two sample grids; None draws one at the end."""
    checkpoint_every: int = Field(default=200, gt=0)
    """Steps between two checkpoints."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints that are kept, beside the one with the best held-out number."""
    save_minutes: float | None = Field(default=None, gt=0)
    """Also save by the clock, this often; None does not."""
    log_every: int = Field(default=10, gt=0)
    """Steps between two lines of metrics."""
    prefetch: int = Field(default=2, ge=0)
    """Steps whose samples are read ahead while the model computes; 0 reads when asked."""
    timeout_minutes: float = Field(default=10.0, gt=0)
    """After this long without an answer of another rank a collective is given up."""
    workers: int = Field(default=2, gt=0)
    """Ranks."""
    seed: int = 0
    """Of order, draws and initial weights."""


MAY_CHANGE = frozenset(
    {
        "steps", "accumulation", "zero_stage", "offload", "checkpoint_activations", "deterministic", "eval_every", "picture_every",
        "checkpoint_every", "keep", "save_minutes", "log_every", "prefetch", "timeout_minutes", "workers",
    }
)  # fmt: skip
"""What may differ when a run goes on: how far it goes, what is written when, and how its work is spread. All else would make it another training."""
