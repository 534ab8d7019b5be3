"""From the VLM's states to the DiT's text tokens and pooled vector (`Qwen2Connector` of Step1X-Edit, as released)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lato.layers import timestep_sinusoid


class TimestepEmbedder(nn.Module):
    """Sinusoids through two linear layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """(B,) in 0..1 -> (B, dim) in dtype."""
        return self.mlp(timestep_sinusoid(t).to(dtype))


class ContextEmbedder(nn.Module):
    """Mean text state through two linear layers."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, dim)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class FeedForward(nn.Module):
    """Linear, SiLU, linear, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, dim) -> (B, L, dim)."""
        return self.fc2(F.silu(self.fc1(x)))


class RefinerBlock(nn.Module):
    """Self-attention and feed-forward, each gated by the conditioning."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.self_attn_qkv = nn.Linear(dim, 3 * dim)
        self.self_attn_proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim)
        gate = nn.Linear(dim, 2 * dim)
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), gate)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D), c (B, D), mask (B, 1, L, L) bool -> (B, L, D)."""
        gate_attention, gate_mlp = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        query, key, value = self.self_attn_qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + gate_attention * self.self_attn_proj(attended)
        return x + gate_mlp * self.mlp(self.norm2(x))


class RefinerBlocks(nn.Module):
    """The blocks, under the name that the released checkpoints give them."""

    def __init__(self, dim: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([RefinerBlock(dim, num_heads) for _ in range(depth)])


class TokenRefiner(nn.Module):
    """Embeds text states and refines them, aware of time and of their own mean."""

    def __init__(self, in_dim: int, dim: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(in_dim, dim)
        self.t_embedder = TimestepEmbedder(dim)
        self.c_embedder = ContextEmbedder(in_dim, dim)
        self.individual_token_refiner = RefinerBlocks(dim, num_heads, depth)

    def forward(self, x: Tensor, mean: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, in), its mean (B, in), t (B,), mask (B, L) bool -> (B, L, dim)."""
        c = self.t_embedder(t, x.dtype) + self.c_embedder(mean)
        pairs = (mask[:, None, :, None] & mask[:, None, None, :]).clone()
        pairs[..., 0] = True  # a padded row must see something
        x = self.input_embedder(x)
        for block in self.individual_token_refiner.blocks:
            x = block(x, c, pairs)
        return x


class Connector(nn.Module):
    """Text states -> DiT text tokens and pooled vector.

    Time is given in 0..1 here and everywhere; the factor 1000 is inside the sinusoid. (In the public fine-tuning script of the base model it was applied
    twice, so that training and sampling saw different times.)
    """

    def __init__(self, in_dim: int, dim: int, num_heads: int, depth: int, pooled_dim: int) -> None:
        super().__init__()
        self.S = TokenRefiner(in_dim, dim, num_heads, depth)
        self.scale_factor = nn.Parameter(torch.full((1,), -0.91))
        self.global_proj_out = nn.Linear(in_dim, pooled_dim)

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, in), t (B,) in 0..1, mask (B, L) -> tokens (B, L, dim), pooled (B, pooled_dim)."""
        mask = mask.bool()
        weight = mask[..., None].to(x.dtype)
        mean = (x * weight).sum(1) / weight.sum(1)
        return self.S(x, mean, t, mask), self.global_proj_out(mean * (1 + self.scale_factor))
