"""Flow matching on a straight line: x_t = (1 - t) x_0 + t noise, velocity noise - x_0, sigmas shifted with resolution. t = 1 is noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shift_for(num_tokens: int) -> float:
    """The shift e^mu for an image of that many tokens: mu is linear from 0.5 at 256 to 1.15 at 4096 (1.8776 at 512 px), as the base model samples."""
    mu = 0.5 + (1.15 - 0.5) * (num_tokens - 256) / (4096 - 256)
    return math.exp(mu)


def apply_shift(sigmas: Tensor, shift: float) -> Tensor:
    """s * sigma / (1 + (s - 1) * sigma), which keeps 0 and 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sample_sigmas(normal: Tensor, shift: float) -> Tensor:
    """Training times: the sigmoid of standard normal draws (B,), shifted."""
    return apply_shift(torch.sigmoid(normal.float()), shift)


def interpolate(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """x_t of clean and noise (B, ...) at sigmas (B,)."""
    sigmas = sigmas.view(-1, *[1] * (clean.ndim - 1)).to(clean.dtype)
    return (1 - sigmas) * clean + sigmas * noise


def velocity_target(clean: Tensor, noise: Tensor) -> Tensor:
    """dx_t / dt = noise - clean."""
    return noise - clean


def sampling_sigmas(steps: int, shift: float) -> Tensor:
    """(steps + 1,) from 1 down to 0, shifted."""
    return apply_shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def euler_step(x: Tensor, velocity: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """One Euler step from sigma to next_sigma."""
    return x + (next_sigma - sigma).to(x.dtype) * velocity
