"""What every stage's training has in common."""

from __future__ import annotations

from typing import Literal

from infra.config import Config


class EngineConfig(Config):
    """One training run."""

    steps: int = 1000
    """Optimizer steps."""
    global_batch: int = 16
    """Samples a step, over all ranks and accumulation; step k sees the same samples for any number of ranks."""
    accumulation: int = 1
    """Micro-batches a step."""
    lr: float = 1e-3
    """Learning rate after warm-up."""
    warmup: int = 20
    """Steps of linear warm-up."""
    decay_from: float = 0.7
    """Share of the steps after which the rate falls, linearly, to a tenth."""
    weight_decay: float = 0.01
    """On matrices; not on norms, biases and null tokens."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights in the forward pass."""
    eval_every: int = 100
    """Steps between two held-out evaluations; one is always made at step 0 and at the end."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the one with the best held-out number."""
    save_minutes: float | None = None
    """Also save by the clock, this often; None does not."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    workers: int = 2
    """Ranks."""
    seed: int = 0
    """Of order, draws and initial weights."""
