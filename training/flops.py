"""Model FLOPs: what utilisation (MFU) is measured in. The one definition, for what a run reports and what its plan says.

They are the matrix products of a forward and a backward pass as the model is trained: without the gradients of frozen weights, which nobody computes, and without
what activation checkpointing computes a second time, which is the price of the memory and no progress. Two operations to a multiplication and addition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Counts operators while it is entered; `backward` is set by whoever enters it for a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.model = self.recomputed = 0
        self.backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            count = int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out))
            if (
                self.backward and torch.is_grad_enabled()
            ):  # in a backward pass only a checkpointed block that runs again records for autograd
                self.recomputed += count
            else:
                self.model += count
        return out
