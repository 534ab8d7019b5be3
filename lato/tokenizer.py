"""The landmark tokenizer: a VQ-VAE over the 68 points (`LM_VQVAE` of the released LaTo), with a quantizer that can be trained and resumed.

Modules carry the released names, so a released state dict is this one's without the quantizer's statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from lato.landmarks import CANVAS, NUM_LANDMARKS

_NORM_GROUPS = 32
_CHUNK = 1024
"""Rows that are worked on at once: their distances to all codes, or their new codes."""


@dataclass(frozen=True)
class CodeStatistics:
    """What one batch says of the codebook; sums over micro-batches and ranks add up."""

    count: Tensor
    """(K,) assignments of each code."""
    sum: Tensor
    """(K, D) sum of the encoder outputs assigned to it."""
    samples: Tensor
    """(R, D) the encoder outputs, from which unused codes can be revived."""

    def __add__(self, other: CodeStatistics) -> CodeStatistics:
        return CodeStatistics(self.count + other.count, self.sum + other.sum, torch.cat([self.samples, other.samples]))


@dataclass(frozen=True)
class TokenizerOutput:
    """A training forward: landmarks in canvas px, losses in normalised units."""

    reconstruction: Tensor
    """(B, 68, 2) canvas pixels."""
    codes: Tensor
    """(B, 68) int64."""
    reconstruction_loss: Tensor
    """(B,) mean absolute error in units of half a canvas."""
    commit_loss: Tensor
    """(B,) mean squared distance of encoder outputs from their codes, gradient to the encoder only."""
    perplexity: Tensor
    """exp of the entropy of the batch's code use."""
    codes_used: Tensor
    """How many codes the batch uses."""
    statistics: CodeStatistics


class ResBlock(nn.Module):
    """GroupNorm, SiLU, dilated convolution, GroupNorm, SiLU, pointwise convolution, added to the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        dilation = max(1, 512 // out_channels - 1)  # the release derives it from the width
        self.block = nn.Sequential(
            nn.GroupNorm(_NORM_GROUPS, in_channels, eps=1e-6),
            nn.SiLU(),
            nn.Conv1d(in_channels, out_channels, 3, padding=dilation, dilation=dilation),
            nn.GroupNorm(_NORM_GROUPS, out_channels, eps=1e-6),
            nn.SiLU(),
            nn.Conv1d(out_channels, out_channels, 1),
        )
        self.conv_short = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, L) -> (B, C_out, L)."""
        return self.conv_short(x) + self.block(x)


class AttnBlock(nn.Module):
    """Single-head self-attention over the landmarks, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_NORM_GROUPS, channels, eps=1e-6)
        self.q = nn.Conv1d(channels, channels, 1)
        self.k = nn.Conv1d(channels, channels, 1)
        self.v = nn.Conv1d(channels, channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C, L)."""
        h = self.norm(x)
        query, key, value = (layer(h).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2))


class ConvStack(nn.Module):
    """Encoder or decoder: convolution, three blocks, attention, a block that changes width, three blocks, attention, convolution."""

    def __init__(self, in_channels: int, widths: tuple[int, int], out_channels: int) -> None:
        super().__init__()
        first, second = widths
        self.conv_in = nn.Conv1d(in_channels, first, 3, padding=1)
        self.resnet1 = nn.ModuleList([ResBlock(first, first) for _ in range(3)])
        self.attn1 = AttnBlock(first)
        self.resnet2 = ResBlock(first, second)
        self.resnet3 = nn.ModuleList([ResBlock(second, second) for _ in range(3)])
        self.attn2 = AttnBlock(second)
        self.conv_out = nn.Conv1d(second, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, L) -> (B, C_out, L)."""
        x = self.conv_in(x)
        for block in self.resnet1:
            x = block(x)
        x = self.resnet2(self.attn1(x))
        for block in self.resnet3:
            x = block(x)
        return self.conv_out(self.attn2(x))


class Quantizer(nn.Module):
    """Nearest code by Euclidean distance; codes move by exponential averages, never inside `forward`.

    Unlike the release's, all its state is in the state dict, statistics are summed over ranks, and a revived code takes its sum and count along (there,
    a revived code falls back to its old place one step later).
    """

    codebook: Tensor
    code_sum: Tensor
    code_count: Tensor
    used: Tensor
    updates: Tensor
    generator_state: Tensor

    def __init__(self, num_codes: int, dim: int, decay: float, reset_every: int) -> None:
        super().__init__()
        self.decay, self.reset_every = decay, reset_every
        self.register_buffer("codebook", torch.zeros(num_codes, dim))
        self.register_buffer("code_sum", torch.zeros(num_codes, dim))
        self.register_buffer("code_count", torch.zeros(num_codes))
        self.register_buffer("used", torch.zeros(num_codes, dtype=torch.bool))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("generator_state", generator.get_state())

    def nearest(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N,) int64 codes, in chunks: memory is bounded at any N."""
        codebook = self.codebook.to(vectors.dtype)
        norms = codebook.square().sum(1)
        return torch.cat([torch.addmm(norms, chunk, codebook.T, alpha=-2).argmin(1) for chunk in vectors.split(_CHUNK)])

    def statistics(self, vectors: Tensor, codes: Tensor) -> CodeStatistics:
        """Counts and sums of the vectors (N, D) by their codes (N,)."""
        vectors = vectors.detach().to(self.code_sum.dtype)
        count = torch.zeros_like(self.code_count).index_add_(0, codes, torch.ones_like(codes, dtype=self.code_count.dtype))
        total = torch.zeros_like(self.code_sum).index_add_(0, codes, vectors)
        return CodeStatistics(count, total, vectors)

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """Puts the codes on encoder outputs (N, D) drawn on rank 0, with a little noise where there are fewer than codes."""
        drawn = self._draw(vectors, len(self.codebook))
        if _distributed():
            dist.broadcast(drawn, 0)
        self.codebook.copy_(drawn)
        self.code_sum.copy_(drawn)
        self.code_count.fill_(1.0)

    @torch.no_grad()
    def update(self, statistics: CodeStatistics, reset: bool = True) -> int:
        """Moves the codes; once per optimizer step, on every rank.

        Args:
            statistics: Of all micro-batches of the step on this rank.
            reset: Whether unused codes may be replaced (not in the last fifth of training).

        Returns:
            The number of codes revived.
        """
        count, total = statistics.count, statistics.sum
        if _distributed():
            count, total = count.clone(), total.clone()
            dist.all_reduce(count)
            dist.all_reduce(total)
        self.used |= count > 0
        self.code_sum.mul_(self.decay).add_(total, alpha=1 - self.decay)
        self.code_count.mul_(self.decay).add_(count, alpha=1 - self.decay)
        for rows in torch.arange(len(self.codebook), device=count.device).split(_CHUNK):  # no second codebook in memory
            alive = rows[self.code_count[rows] > 1e-6]
            self.codebook[alive] = self.code_sum[alive] / self.code_count[alive, None]
        self.updates += 1
        if int(self.updates) % self.reset_every:
            return 0
        dead = ~self.used
        self.used.zero_()
        revived = int(dead.sum())
        if not reset or not revived:
            return 0
        fresh = self._draw(_in_order(statistics.samples), revived)
        self.codebook[dead] = fresh
        self.code_sum[dead] = fresh
        self.code_count[dead] = 1.0
        return revived

    def _draw(self, vectors: Tensor, number: int) -> Tensor:
        """`number` of the vectors (N, D), by the generator in the state dict, with a little noise."""
        generator = torch.Generator()
        generator.set_state(self.generator_state.cpu())
        order = torch.randint(len(vectors), (number,), generator=generator).to(vectors.device)
        noise = torch.randn(number, vectors.shape[1], generator=generator).to(vectors.device)
        self.generator_state.copy_(generator.get_state())
        return vectors[order].to(self.codebook.dtype) + noise.to(self.codebook.dtype) * (0.01 * vectors.shape[1] ** -0.5)


def _distributed() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _in_order(vectors: Tensor) -> Tensor:
    """All ranks' vectors (N, D), sorted: the same on every rank, and however a batch is cut into ranks and micro-batches."""
    if _distributed():
        count = torch.tensor([len(vectors)], device=vectors.device)
        counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, count)
        most = int(torch.stack(counts).max())
        padded = F.pad(vectors, (0, 0, 0, most - len(vectors)))
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        vectors = torch.cat([part[: int(own)] for part, own in zip(gathered, counts, strict=True)])
    # by one projection: rows that differ only in the last bits stay in place unless they are the same point
    return vectors[(vectors @ torch.linspace(-1, 1, vectors.shape[1], device=vectors.device, dtype=vectors.dtype)).argsort(stable=True)]


class LandmarkTokenizer(ModelMixin, ConfigMixin):
    """68 points <-> 68 codes.

    Args:
        widths: Channels of the two stages of the encoder, reversed in the decoder.
        code_dim: D, the width of a code, which the DiT's `landmark_in` takes.
        num_codes: K.
        decay: Of the codebook's moving averages.
        reset_every: Optimizer steps between two revivals of unused codes (the paper's 50).
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, widths: tuple[int, int] = (128, 512), code_dim: int = 3072, num_codes: int = 8192, decay: float = 0.99, reset_every: int = 50
    ) -> None:
        super().__init__()
        first, second = widths
        self.encoder = ConvStack(2, (first, second), code_dim)
        self.decoder = ConvStack(code_dim, (second, first), 2)
        self.vq = Quantizer(num_codes, code_dim, decay, reset_every)

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, landmarks: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks (B, 68, 2) in canvas px -> codes (B, 68) int64 and their vectors (B, 68, D).

        Raises:
            ValueError: Wrong shape, unit, or values that are not finite.
        """
        vectors = self._encode(landmarks)
        codes = self.vq.nearest(vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2])
        return codes, self.vq.codebook[codes]

    @apply_forward_hook
    @torch.no_grad()
    def decode(self, quantized: Tensor) -> Tensor:
        """Code vectors (B, 68, D) -> landmarks (B, 68, 2) in canvas px."""
        return _to_canvas(self.decoder(quantized.transpose(1, 2)).transpose(1, 2))

    def forward(self, landmarks: Tensor) -> TokenizerOutput:
        """A training pass over landmarks (B, 68, 2) in canvas px. Changes no buffer."""
        vectors = self._encode(landmarks)
        flat = vectors.flatten(0, 1)
        codes = self.vq.nearest(flat.detach())
        quantized = self.vq.codebook[codes].unflatten(0, vectors.shape[:2])
        # straight-through; in bf16 only weights are narrow: the codebook keeps its width, and so do canvas pixels, of which bf16 knows every other one
        passed = (vectors + (quantized - vectors).detach()).to(vectors.dtype)
        decoded = self.decoder(passed.transpose(1, 2)).transpose(1, 2).to(landmarks.dtype)
        statistics = self.vq.statistics(flat, codes)
        share = statistics.count / statistics.count.sum()
        return TokenizerOutput(
            reconstruction=_to_canvas(decoded),
            codes=codes.unflatten(0, vectors.shape[:2]),
            reconstruction_loss=(decoded - _from_canvas(landmarks)).abs().mean((1, 2)),
            commit_loss=(vectors - quantized.detach()).square().mean((1, 2)),
            codes_used=(statistics.count > 0).sum(),
            perplexity=torch.exp(-(share * torch.log(share + 1e-6)).sum()),
            statistics=statistics,
        )

    def initialise_codebook(self, landmarks: Tensor) -> None:
        """Puts the codes on the encoder's outputs for some landmarks (B, 68, 2); once, before training."""
        with torch.no_grad():
            self.vq.initialise(self._encode(landmarks).flatten(0, 1))

    def update_codebook(self, statistics: CodeStatistics, reset: bool = True) -> int:
        """Moves the codes once per optimizer step; see `Quantizer.update`."""
        return self.vq.update(statistics, reset)

    def _encode(self, landmarks: Tensor) -> Tensor:
        check_landmarks(landmarks)
        points = _from_canvas(landmarks).to(self.encoder.conv_in.weight.dtype)
        return self.encoder(points.transpose(1, 2)).transpose(1, 2)


def check_landmarks(landmarks: Tensor) -> None:
    """Raises ValueError unless landmarks are (B, 68, 2), finite, and in canvas pixels."""
    if landmarks.ndim != 3 or landmarks.shape[1:] != (NUM_LANDMARKS, 2):
        raise ValueError(f"landmarks: expected shape (B, {NUM_LANDMARKS}, 2), given {tuple(landmarks.shape)}")
    if landmarks.is_meta:
        return  # a shape without values, as `lato train plan` passes
    if not torch.isfinite(landmarks).all():
        raise ValueError("landmarks: expected finite canvas pixels, given NaN or infinity")
    if landmarks.abs().max() <= 2.0:
        raise ValueError(f"landmarks: expected pixels on the {CANVAS.width:g} canvas, given values within 0..1 or -1..1")


def _from_canvas(landmarks: Tensor) -> Tensor:
    return landmarks * (2.0 / CANVAS.width) - 1.0


def _to_canvas(points: Tensor) -> Tensor:
    return (points + 1.0) * (CANVAS.width / 2.0)
