"""`make prove-tokenizer`: the tokenizer learns, on people it never saw; its whole codebook is used; the release's reset rule beside ours.

Writes docs/proof_tokenizer.md. Runs go to work/proofs/tokenizer; a second call goes on where the first ended. `python -m tests.proofs.prove_tokenizer ours` runs one.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lato.landmarks import CANVAS
from lato.tokenizer import CodeStatistics, LandmarkTokenizer, Quantizer

WORK = Path("work/proofs/tokenizer")
BETA, JITTER = 0.25, 0.1
"""Of training/stages/tokenizer.py, as is the augmentation."""


@dataclass(frozen=True)
class Recipe:
    """One training."""

    widths: tuple[int, int] = (64, 128)
    code_dim: int = 64
    num_codes: int = 1024
    steps: int = 22000
    batch: int = 16
    lr: float = 1e-3
    until: int | None = None
    """Ends earlier, on the same schedule."""
    rule: Literal["ours", "release"] = "ours"
    start: Literal["spread", "first batch"] = "spread"
    """Whose encoder outputs the codes start on: evenly spaced faces, or as in the release those of the first batch."""
    eval_every: int = 250
    save_every: int = 250


RUNS = {
    "ours": Recipe(),
    "release": Recipe(rule="release", until=1000),
    "release, own start": Recipe(rule="release", start="first batch", until=1000),
    "full": Recipe((128, 512), 3072, 8192, steps=200, batch=8, lr=1e-4, eval_every=25, save_every=25),
}


class ReleaseQuantizer(Quantizer):
    """The release's rules: codes start on the first rows that they are given; a code whose average count ever reached 1 is never reset; every 41st update the
    others' rows are overwritten, but not their sums and counts, from which the next update computes the row anew."""

    ever: Tensor

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__(num_codes, dim, 0.99, 41)
        self.register_buffer("ever", torch.zeros(num_codes, dtype=torch.bool))

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """First rows, tiled with noise where there are fewer than codes."""
        rows = self._tiled(vectors)[: len(self.codebook)]
        self.codebook.copy_(rows)
        self.code_sum.copy_(rows)
        self.code_count.fill_(1.0)

    @torch.no_grad()
    def update(self, statistics: CodeStatistics, reset: bool = True) -> int:
        """As released."""
        self.code_sum.mul_(self.decay).add_(statistics.sum, alpha=1 - self.decay)
        self.code_count.mul_(self.decay).add_(statistics.count, alpha=1 - self.decay)
        self.ever |= self.code_count >= 1.0
        self.codebook.copy_(self.code_sum / self.code_count[:, None])
        self.updates += 1
        if int(self.updates) % self.reset_every:
            return 0
        rows = self._tiled(statistics.samples)
        fresh = rows[torch.randperm(len(rows))][: len(self.codebook)]
        self.codebook[~self.ever] = fresh[~self.ever]
        return int((~self.ever).sum())

    def _tiled(self, vectors: Tensor) -> Tensor:
        copies = math.ceil(len(self.codebook) / len(vectors))
        if copies == 1:
            return vectors
        return vectors.repeat(copies, 1) + torch.randn(copies * len(vectors), vectors.shape[1]) * 0.01 * vectors.shape[1] ** -0.5


def train(recipe: Recipe, data: dict[str, np.ndarray], folder: Path) -> list[dict[str, float]]:
    """Trains from where `folder` stands to the end; returns the held-out curve, which is also in `folder/curve.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = LandmarkTokenizer(recipe.widths, recipe.code_dim, recipe.num_codes)
    if recipe.rule == "release":
        tokenizer.vq = ReleaseQuantizer(recipe.num_codes, recipe.code_dim)
    spread = torch.from_numpy(data["train_synthetic"][:: max(1, len(data["train_synthetic"]) // recipe.batch)])
    tokenizer.initialise_codebook(spread if recipe.start == "spread" else _batch(data, recipe.batch, 0))
    optimizer = torch.optim.AdamW(tokenizer.parameters(), recipe.lr, betas=(0.9, 0.99), weight_decay=0.01)
    held_out = {name: torch.from_numpy(data[f"held_out_{name}"]) for name in ("synthetic", "clips")}
    curve: list[dict[str, float]] = []
    step, seconds, revived = 0, 0.0, 0
    if (folder / "state.pt").is_file():
        state = torch.load(folder / "state.pt", weights_only=True)
        tokenizer.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, revived, curve = state["step"], state["seconds"], state["revived"], state["curve"]
    else:
        curve = [{"step": 0, "cpu_seconds": 0.0, "revived": 0, **measure(tokenizer, held_out, 256)}]
    last = min(recipe.steps, recipe.until or recipe.steps)
    while step < last:
        started = time.process_time()
        done = step / recipe.steps
        rate = min(1.0, (step + 1) / 100) * (1.0 if done < 0.5 else 1 - 0.95 * (done - 0.5) / 0.5)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * rate
        output = tokenizer(_batch(data, recipe.batch, step))
        (output.reconstruction_loss + BETA * output.commit_loss).mean().backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        revived += tokenizer.update_codebook(output.statistics, reset=done < 0.8)
        step += 1
        seconds += time.process_time() - started
        if step % recipe.eval_every == 0 or step == last:
            everything = step == recipe.steps
            found = measure(tokenizer, held_out, 10**6 if everything and recipe.num_codes < 8192 else 256)
            curve.append({"step": step, "cpu_seconds": seconds, "revived": revived, **found})
            print(folder.name, {name: round(value, 3) for name, value in curve[-1].items()}, flush=True)
        if step % recipe.save_every == 0 or step == last:
            state = {"model": tokenizer.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
            torch.save({**state, "revived": revived, "curve": curve}, folder / "state.tmp")
            (folder / "state.tmp").replace(folder / "state.pt")
            (folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    return curve


@torch.no_grad()
def measure(tokenizer: LandmarkTokenizer, held_out: dict[str, Tensor], most: int) -> dict[str, float]:
    """Mean absolute error in canvas px per set of held-out people, over at most `most` evenly spaced faces of each; use of the codebook over all of them."""
    found, codes = {}, []
    for name, faces in held_out.items():
        chosen = faces[:: max(1, len(faces) // most)]
        errors = []
        for part in chosen.split(64):
            output = tokenizer(part)
            errors.append((output.reconstruction - part).abs().mean((1, 2)))
            codes.append(output.codes.flatten())
        found[f"{name}_px"] = float(torch.cat(errors).mean())
    count = torch.bincount(torch.cat(codes), minlength=tokenizer.vq.codebook.shape[0]).float()
    share = count / count.sum()
    found["used"] = float((count > 0).float().mean())
    found["perplexity"] = float(torch.exp(-(share * torch.log(share.clamp_min(1e-12))).sum()))
    return found


def _batch(data: dict[str, np.ndarray], size: int, step: int) -> Tensor:
    """A quarter from clips, the rest synthetic, each face under a small similarity of its own: a function of the step alone."""
    rng = np.random.default_rng((3, step))
    real = size // 4
    faces = np.concatenate([
        data["train_clips"][rng.integers(0, len(data["train_clips"]), real)],
        data["train_synthetic"][rng.integers(0, len(data["train_synthetic"]), size - real)],
    ])  # fmt: skip
    draws = rng.uniform(-1, 1, (size, 4)).astype(np.float32)
    angle, scale = np.radians(15) * draws[:, 0], 1 + JITTER * draws[:, 1]
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2) * scale[:, None, None]
    centre = CANVAS.width / 2
    moved = (faces - centre) @ turn.transpose(0, 2, 1) + centre + draws[:, None, 2:] * JITTER * CANVAS.width
    return torch.from_numpy(moved.astype(np.float32))


def main() -> None:
    """Runs what is asked for, or all, and then writes the page."""
    from tests.proofs.people import read_landmarks
    from tests.proofs.tokenizer_page import write_page

    torch.set_num_threads(1)
    data = read_landmarks(WORK, 2000)
    for name in sys.argv[1:] or RUNS:
        train(RUNS[name], data, WORK / name.replace(", ", "_").replace(" ", "_"))
    if not sys.argv[1:]:
        write_page(
            {name: train(RUNS[name], data, WORK / name.replace(", ", "_").replace(" ", "_")) for name in RUNS},
            {name: len(part) for name, part in data.items()},
        )


if __name__ == "__main__":
    main()
