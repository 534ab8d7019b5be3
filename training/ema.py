"""A moving average of the weights: fp32, beside the masters, each rank the ranges that it holds of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from training.shards import push, shards


class Ema:
    """average <- d average + (1 - d) weight after every step, d = min(decay, (1 + step) / (10 + step)).

    Args:
        engine: DeepSpeed's; the average starts at its weights.
        decay: The largest d.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {shard.name: shard.weight.clone() for shard in shards(engine)}
        """Name -> (n,) fp32, the range that this rank's `Shard` of that name says."""

    @torch.no_grad()
    def update(self, engine: Any, step: int) -> None:
        """Takes in the weights of a step (1 is the first)."""
        held = shards(engine)
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.values[shard.name] for shard in held], [shard.weight for shard in held], 1 - decay)

    @contextmanager
    def in_place(self, engine: Any) -> Iterator[None]:
        """A context in which the model's weights are the average; bit for bit the old ones again after it. A collective."""
        self._exchange(engine)
        try:
            yield
        finally:
            self._exchange(engine)

    @torch.no_grad()
    def _exchange(self, engine: Any) -> None:
        for shard in shards(engine):
            kept = shard.weight.clone()
            shard.weight.copy_(self.values[shard.name])
            self.values[shard.name].copy_(kept)
        push(engine)
