"""Time and memory of the models, as ratios within one run; writes the table of docs/benchmarks.md.

Run: `make bench`. Every row is a median of runs that take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from lato.positions import image_ids
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer

OUT = Path(__file__).parents[2] / "docs/benchmarks.md"
ROUNDS = 7
WIDTH, HEADS, DOUBLE, SINGLE = 384, 3, 2, 4
TEXT, GRID = 640, (32, 32)
"""Token counts at 512 px: 640 text, 1,024 noise, 1,024 source."""


def measure(ways: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Name -> (median seconds, peak bytes above the start), the ways taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way()  # warm up
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that the process still holds would hide the peak
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = _status("VmRSS")
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
            peaks[name] = max(peaks[name], _status("VmHWM") - before)
    return {name: (statistics.median(times), peaks[name]) for name, times in seconds.items()}


def _status(field: str) -> float:
    return float(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def distances_to_codes(tokenizer: LandmarkTokenizer, vectors: Tensor) -> Tensor:
    """All of them at once, (N, K)."""
    codebook = tokenizer.vq.codebook
    return vectors.square().sum(1, keepdim=True) - 2 * vectors @ codebook.T + codebook.square().sum(1)


def move_codes_densely(tokenizer: LandmarkTokenizer, vectors: Tensor, distances: Tensor) -> None:
    """The codebook's update by a one-hot matrix, as the release writes it."""
    vq = tokenizer.vq
    one_hot = F.one_hot(distances.argmin(1), len(vq.codebook)).to(vectors.dtype)
    vq.code_sum.mul_(0.99).add_(one_hot.T @ vectors, alpha=0.01)
    vq.code_count.mul_(0.99).add_(one_hot.sum(0), alpha=0.01)
    vq.codebook.copy_(vq.code_sum / vq.code_count[:, None])


def bench_tokenizer() -> list[str]:
    """The released size, 32 faces: 2,176 vectors against 8,192 codes of 3,072."""
    torch.manual_seed(0)
    tokenizer = LandmarkTokenizer()
    faces = torch.rand(32, 68, 2) * 300 + 100
    tokenizer.initialise_codebook(faces)
    with torch.no_grad():
        vectors = tokenizer._encode(faces).flatten(0, 1)

    def backward(commit: Tensor, reconstruction: Tensor) -> None:
        tokenizer.zero_grad()
        (reconstruction.mean() + 0.25 * commit.mean()).backward()

    def ours() -> None:
        output = tokenizer(faces)
        backward(output.commit_loss, output.reconstruction_loss)
        tokenizer.update_codebook(output.statistics, reset=False)

    def dense() -> None:
        encoded = tokenizer._encode(faces)
        flat = encoded.flatten(0, 1)
        distances = distances_to_codes(tokenizer, flat.detach())
        quantized = tokenizer.vq.codebook[distances.argmin(1)].unflatten(0, encoded.shape[:2])
        decoded = tokenizer.decoder((encoded + (quantized - encoded).detach()).transpose(1, 2)).transpose(1, 2)
        backward(F.mse_loss(encoded, quantized), F.l1_loss(decoded, faces / 256 - 1))
        with torch.no_grad():
            move_codes_densely(tokenizer, flat, distances)

    @torch.no_grad()
    def quantizer() -> None:
        tokenizer.update_codebook(tokenizer.vq.statistics(vectors, tokenizer.vq.nearest(vectors)), reset=False)

    @torch.no_grad()
    def one_hot_quantizer() -> None:
        move_codes_densely(tokenizer, vectors, distances_to_codes(tokenizer, vectors))

    @torch.no_grad()
    def product() -> Tensor:
        return vectors @ tokenizer.vq.codebook.T

    step = measure({"ours": ours, "dense": dense})
    alone = measure({"ours": quantizer, "dense": one_hot_quantizer, "product": product})
    return [
        _row("tokenizer training step, 8,192 x 3,072, over a dense one-hot update", step["ours"], step["dense"]),
        _row("its quantizer alone (assignment and update), over a dense one-hot update", alone["ours"], alone["dense"]),
        _row("its quantizer alone, over the distance product alone", alone["ours"], alone["product"]),
    ]


class _Given(nn.Module):
    """In the connector's place: text tokens and pooled vector as given."""

    def __init__(self, tokens: Tensor, pooled: Tensor) -> None:
        super().__init__()
        self.tokens, self.pooled = tokens, pooled

    def forward(self, *_: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens, self.pooled


def bench_transformer() -> list[str]:
    """Token counts of 512 px at a width that two cores can run."""
    torch.manual_seed(0)
    size = {"in_channels": 64, "num_attention_heads": HEADS, "axes_dims_rope": (16, 56, 56)}
    lato = LaToTransformer(
        **size, hidden_size=WIDTH, num_double_blocks=DOUBLE, num_single_blocks=SINGLE, text_dim=WIDTH, context_dim=WIDTH,
        connector_num_heads=HEADS, landmark_dim=WIDTH,
    )  # fmt: skip
    flux = FluxTransformer2DModel(
        **size, num_layers=DOUBLE, num_single_layers=SINGLE, attention_head_dim=WIDTH // HEADS, joint_attention_dim=WIDTH,
        pooled_projection_dim=768,
    )  # fmt: skip
    count = GRID[0] * GRID[1]
    base = {
        "noise_tokens": torch.randn(1, count, 64), "source_tokens": torch.randn(1, count, 64), "grid": GRID, "landmark_latents": None,
        "landmarks": None, "timestep": torch.tensor([0.5]), "text_embeddings": torch.randn(1, TEXT, WIDTH), "text_mask": torch.ones(1, TEXT),
    }  # fmt: skip
    forms = {
        "none": base,
        "tokens": base | {"landmark_latents": torch.randn(1, 68, WIDTH), "landmarks": torch.rand(1, 68, 2) * 300 + 100},
        "rendered": base | {"condition_tokens": torch.randn(1, count, 64), "condition_ids": image_ids(1, GRID)},
    }
    ids = image_ids(1, GRID)[0].repeat(2, 1)
    flux_input = {
        "hidden_states": torch.randn(1, 2 * count, 64), "encoder_hidden_states": torch.randn(1, TEXT, WIDTH),
        "pooled_projections": torch.randn(1, 768), "timestep": torch.tensor([0.5]), "img_ids": ids, "txt_ids": torch.zeros(TEXT, 3),
        "return_dict": False,
    }  # fmt: skip

    def forward(model: nn.Module, given: dict) -> Callable[[], object]:
        return torch.no_grad()(lambda: model(**given))

    def training(model: nn.Module, given: dict) -> Callable[[], object]:
        def step() -> None:
            model.zero_grad()
            out = model(**given)
            (out[0] if isinstance(out, tuple) else out).square().mean().backward()

        return step

    rows = []
    for kind, way in (("forward", forward), ("training step", training)):
        times = measure({name: way(lato, given) for name, given in forms.items()})
        rows.append(_row(f"DiT {kind} with 68 landmark tokens, over without (paper: 1.05)", times["tokens"], times["none"]))
        rows.append(_row(f"DiT {kind} with the rendered map, over without (paper: 1.69)", times["rendered"], times["none"]))
    lato.connector = _Given(torch.randn(1, TEXT, WIDTH), torch.randn(1, 768))
    for kind, way in (("forward", forward), ("training step", training)):
        times = measure({"lato": way(lato, base), "flux": way(flux, flux_input)})
        rows.append(
            _row(
                f"transformer {kind} without its connector, over diffusers' FluxTransformer2DModel (at most 1.03)",
                times["lato"],
                times["flux"],
            )
        )
    return rows


def _row(what: str, ours: tuple[float, float], other: tuple[float, float]) -> str:
    memory = f"{ours[1] / other[1]:.2f}" if other[1] > 1e6 else "-"
    return f"| {what} | {ours[0] / other[0]:.2f} | {memory} | {ours[1] / 1e6:,.0f} |"


def main() -> None:
    """Measures, prints and writes the table."""
    torch.set_num_threads(2)
    head = (
        "# Benchmarks\n\nRatios within one run on two CPU cores, medians of seven rounds in which the ways take turns (`make bench`"
        " writes this page).\nMemory is the peak above what the process held before.\n\n"
        f"The DiT has the token counts of 512 px ({TEXT} text, 1,024 noise, 1,024 source) at width {WIDTH}, {DOUBLE} double and {SINGLE} single"
        " blocks: at\nfull width linear layers weigh more and attention less, so ratios for longer sequences are somewhat lower there.\n\n"
        "| what | time | peak memory | MB |\n|---|---|---|---|\n"
    )
    page = head + "\n".join([*bench_tokenizer(), *bench_transformer()]) + "\n"
    print(page)
    OUT.write_text(page)


if __name__ == "__main__":
    main()
