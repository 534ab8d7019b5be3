"""RoPE ids: where text, image and landmark tokens stand. Always float32: bfloat16 rounds 31.40 to 31.375.

Axes are (T, H, W); T is always 0. Noise and source tokens share one grid, as the base weights expect.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lato.landmarks import CANVAS, NUM_LANDMARKS

LandmarkPositions = Literal["mapped", "image", "learnable", "none"]
_THETA = 10000.0
"""The base of the rotary frequencies, Flux's."""


def text_ids(batch: int, length: int, device: torch.device | None = None) -> Tensor:
    """(B, L, 3) zeros: text stands nowhere."""
    return torch.zeros(batch, length, 3, device=device)


def image_ids(batch: int, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(B, h * w, 3): (0, row, column) of each token of a grid of h x w."""
    height, width = grid
    rows, columns = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).float()
    return ids.reshape(1, height * width, 3).expand(batch, -1, -1)


def compressed_ids(batch: int, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Ids of a map at half size, (B, (h / 2) * (w / 2), 3): (0, 2r + 0.5, 2c + 0.5 + w), each token at the middle of the four it stands for, shifted."""
    height, width = grid
    ids = image_ids(batch, (height // 2, width // 2), device) * 2 + 0.5
    ids[..., 0] = 0
    ids[..., 2] += width
    return ids


def landmark_ids(landmarks: Tensor, grid: tuple[int, int], positions: LandmarkPositions, learnable: Tensor | None = None) -> Tensor:
    """Ids of landmark tokens.

    Args:
        landmarks: (B, 68, 2) canvas px.
        grid: (h, w) of the image tokens.
        positions: `mapped`: (0, y / s_y, x / s_x), the place each landmark guides, fractional (the paper's). `image`: as if they were an image's first
            tokens. `learnable`: (0, a_i, b_i). `none`: zeros.
        learnable: (68, 2), for `learnable`.

    Returns:
        (B, 68, 3) float32.
    """
    batch = len(landmarks)
    if positions == "none":
        return torch.zeros(batch, NUM_LANDMARKS, 3, device=landmarks.device)
    if positions == "mapped":
        # the release scales both axes by the height; equal on square grids, right on others
        scale = torch.tensor([grid[1] / CANVAS.width, grid[0] / CANVAS.height], device=landmarks.device)
        places = (landmarks.float() * scale).flip(-1)
    elif positions == "image":
        places = first_grid_places(grid[1], landmarks.device).expand(batch, -1, -1)
    else:
        assert learnable is not None, "learnable positions need their parameter"
        places = learnable.float().expand(batch, -1, -1)
    return torch.cat([torch.zeros_like(places[..., :1]), places], dim=-1)


def first_grid_places(width: int, device: torch.device | None = None) -> Tensor:
    """(68, 2): (i // w, i % w), where an image of that width has its first 68 tokens."""
    index = torch.arange(NUM_LANDMARKS, device=device)
    return torch.stack([index // width, index % width], dim=-1).float()


def rotary_embedding(ids: Tensor, axes_dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding, each (B, L, sum(axes_dims) / 2) float32, for ids (B, L, len(axes_dims))."""
    angles = []
    for axis, dim in enumerate(axes_dims):
        omega = _THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim)
        angles.append(ids[..., axis, None].double() * omega)
    angle = torch.cat(angles, dim=-1)
    return angle.cos().float(), angle.sin().float()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates interleaved pairs of x (B, L, H, D) by (B, L, D / 2) cosines and sines, in float32; returns x's dtype."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
