"""Layers that transformer and connector share. Names follow the released checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SINUSOIDS = 256
"""Width of a time's embedding, as in the released weights."""


def timestep_sinusoid(t: Tensor) -> Tensor:
    """Sinusoids (B, 256) of a time (B,) in 0..1, scaled by 1000; float32 whatever the weights' dtype."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(_SINUSOIDS // 2, dtype=torch.float32, device=t.device) / (_SINUSOIDS // 2))
    angles = 1000.0 * t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class MLPEmbedder(nn.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_dim)
        self.silu = nn.SiLU()
        self.out_layer = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, hidden)."""
        return self.out_layer(self.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape (..., dim)."""
        return torch.nn.functional.rms_norm(x.float(), self.scale.shape, self.scale.float(), eps=1e-6).to(x.dtype)


class QKNorm(nn.Module):
    """RMSNorm of queries and of keys."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised (query, key)."""
        return self.query_norm(query), self.key_norm(key)


class Modulation(nn.Module):
    """Shift, scale and gate for one or two sublayers, from the conditioning vector."""

    def __init__(self, dim: int, double: bool) -> None:
        super().__init__()
        self.parts = 6 if double else 3
        self.lin = nn.Linear(dim, self.parts * dim)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        """(B, D) -> `parts` tensors (B, 1, D)."""
        return self.lin(nn.functional.silu(vec))[:, None].chunk(self.parts, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) * x + shift."""
    return torch.addcmul(shift, x, 1 + scale)
