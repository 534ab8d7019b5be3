"""Landmark-aware classifier-free guidance. The source stays in every branch; a null is learned landmark tokens, or the empty instruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """How strongly conditions are followed.

    joint: v(0,0) + g [v(l,t) - v(0,0)], null landmarks and null text together.
    text: v(l,0) + g [v(l,t) - v(l,0)], what the release does.
    separate: v(0,0) + g_l [v(l,0) - v(0,0)] + g_t [v(l,t) - v(l,0)].
    A scale of 1 is one conditional pass.
    """

    mode: Literal["joint", "text", "separate"] = "joint"
    scale: float = 4.0
    landmark_scale: float = 4.0
    """g_l of `separate`; `scale` is its g_t."""

    @property
    def branches(self) -> tuple[tuple[bool, bool], ...]:
        """(landmarks kept, text kept) of each pass, the full one last."""
        if self.scale == 1.0 and (self.mode != "separate" or self.landmark_scale == 1.0):
            return ((True, True),)
        first = {"joint": ((False, False),), "text": ((True, False),), "separate": ((False, False), (True, False))}
        return (*first[self.mode], (True, True))


def guided_velocity(
    predict: Callable[[Tensor, Tensor], Tensor], batch: int, guidance: Guidance, device: torch.device | None = None
) -> Tensor:
    """Combines the branches' velocities, all predicted in one batch.

    Args:
        predict: Takes two bool tensors (branches * B,), landmarks kept and text kept, branch by branch, and gives velocities (branches * B, N, C).
        batch: B.
        guidance: The scales.
        device: Where the masks go.

    Returns:
        (B, N, C).
    """
    branches = guidance.branches
    landmarks = torch.tensor([kept for kept, _ in branches], device=device).repeat_interleave(batch)
    text = torch.tensor([kept for _, kept in branches], device=device).repeat_interleave(batch)
    velocities = predict(landmarks, text).chunk(len(branches))
    if len(branches) == 1:
        return velocities[0]
    if len(branches) == 2:
        null, full = velocities
        return null + guidance.scale * (full - null)
    null, landmarks_only, full = velocities
    return null + guidance.landmark_scale * (landmarks_only - null) + guidance.scale * (full - landmarks_only)
