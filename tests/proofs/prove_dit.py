"""Does the DiT learn to follow landmarks? `make prove-dit`; writes docs/proof_dit.md. Interrupted, the same command goes on.

Small synthetic people, the stage's own transformer, loss and drawing; forms of position, of the null and noise on landmarks, trained equally long.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lato.conditioning import LandmarkCondition
from lato.flow import sample_sigmas, shift_for
from lato.text_encoder import pad_states
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer
from tests.proofs.dit_world import (
    GRID,
    TEXT_DIM,
    ZERO,
    Instruments,
    World,
    load_world,
    set_rate,
    text_states,
    to_images,
    train_instruments,
    train_tokenizer,
)
from training.stages.dit_config import DitConfig, new_transformer
from training.stages.flow import draw_tokens, velocity_error

PEOPLE, PICTURES, HELD_OUT = 400, 8, 40
ARMS = ("mapped", "none", "learnable", "image", "control", "zeros")
"""Position forms of landmark tokens; `control`: mapped places with null tokens; `zeros`: mapped, where dropped landmarks are coordinates set to zero."""
BATCH, RATE, EULER = 8, 1e-3, 8
PAIRS, CURVE_PAIRS, SHOWN = 96, 48, 8
"""Held-out pairs that are measured at the end, at each point of a curve, and that are shown."""
SHIFT = shift_for(GRID[0] * GRID[1])
SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
NOISES = (0.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Kit:
    """What all runs share."""

    world: World
    instruments: Instruments
    tokenizers: dict[str, LandmarkTokenizer]
    """`plain`, and `zeros`: trained with coordinates dropped to zero."""


def prepare(folder: Path, tokenizer_steps: int = 600, instrument_steps: int = 800) -> Kit:
    """People, tokenizers and instruments, made where they are not there yet."""
    world = load_world(folder, PEOPLE, PICTURES, HELD_OUT)
    if not (folder / "instruments.json").is_file():
        net, errors = train_instruments(world, instrument_steps)
        save_file(net.state_dict(), folder / "instruments.safetensors")
        _write(folder / "instruments.json", errors)
    tokenizers = {}
    for name, dropout in (("plain", 0.0), ("zeros", 0.1)):
        if not (folder / f"tokenizer-{name}.json").is_file():
            trained, error = train_tokenizer(world, tokenizer_steps, dropout)
            trained.save_pretrained(folder / f"tokenizer-{name}")
            _write(folder / f"tokenizer-{name}.json", {"held_out_px": error})
        tokenizers[name] = LandmarkTokenizer.from_pretrained(folder / f"tokenizer-{name}").eval()
    instruments = Instruments(world.train, torch.zeros(68, 2))
    instruments.load_state_dict(load_file(folder / "instruments.safetensors"))
    return Kit(world, instruments.eval(), tokenizers)


def _write(file: Path, content: Any) -> None:
    """Whole or not at all."""
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(file)


def new_model(arm: str, kit: Kit, seed: int) -> LaToTransformer:
    """An untrained transformer of an arm; equal weights for equal seeds."""
    torch.manual_seed(seed)
    config = DitConfig(
        sizes=[(32, 32)],
        context_dim=48,
        num_double_blocks=1,
        num_single_blocks=3,
        conditioning="control" if arm == "control" else "tokens",
        landmark_positions="mapped" if arm in ("control", "zeros") else arm,  # type: ignore[arg-type]
    )
    return new_transformer(config, 48, TEXT_DIM, tokenizer_of(arm, kit).vq.codebook)


def tokenizer_of(arm: str, kit: Kit) -> LandmarkTokenizer:
    """The tokenizer that an arm's landmarks go through."""
    return kit.tokenizers["zeros" if arm == "zeros" else "plain"]


@dataclass(frozen=True)
class Pairs:
    """B pairs of one person's pictures."""

    people: Tensor
    sources: Tensor
    targets: Tensor

    @staticmethod
    def draw(world: World, count: int, rng: np.random.Generator, held_out: bool) -> Pairs:
        """Any two pictures of any person of the part asked for."""
        first, last = (world.train, len(world.images)) if held_out else (0, world.train)
        pictures = world.images.shape[1]
        people = rng.integers(first, last, count)
        sources = rng.integers(0, pictures, count)
        targets = (sources + rng.integers(1, pictures, count)) % pictures
        return Pairs(*(torch.from_numpy(part) for part in (people, sources, targets)))


def make_batch(
    kit: Kit, arm: str, pairs: Pairs, keep_landmarks: Tensor, keep_text: Tensor, noise: Tensor | None = None, null: str | None = None
) -> dict[str, Any]:
    """A batch as `DitStage.read` gives it, but for times and noise.

    Args:
        kit: What all runs share.
        arm: Decides how dropped landmarks look, unless `null` says so.
        pairs: Of the world.
        keep_landmarks: (B,) bool.
        keep_text: (B,) bool.
        noise: (B, 68, 2) px that is added to the landmarks.
        null: `learned` or `zeros`.
    """
    world, p = kit.world, pairs
    landmarks = world.landmarks[p.people, p.targets] + (0 if noise is None else noise)
    zeroed = (null or ("zeros" if arm == "zeros" else "learned")) == "zeros"
    if zeroed:
        landmarks = torch.where(keep_landmarks[:, None, None], landmarks, ZERO)
    known = torch.ones(landmarks.shape[:2], dtype=torch.bool)
    texts = [world.instruction(int(a), int(b), int(c)) if kept else "" for a, b, c, kept in zip(p.people, p.sources, p.targets, keep_text)]
    text, mask = pad_states([text_states(words) for words in texts])
    return {
        "grid": GRID,
        "source": world.tokens(p.people, p.sources),
        "target": world.tokens(p.people, p.targets),
        "condition": LandmarkCondition(landmarks, known, latents=tokenizer_of(arm, kit).encode(landmarks)[1]),
        "keep_landmarks": torch.ones_like(keep_landmarks) if zeroed else keep_landmarks,
        "text": text,
        "text_mask": mask,
    }


def train(
    arm: str, seed: int, steps: int, kit: Kit, every: int, part: Path | None = None, pairs: int = 0
) -> tuple[LaToTransformer, list[dict[str, float]]]:
    """One run.

    Args:
        arm: Of `ARMS`.
        seed: Of weights and draws.
        steps: Optimizer steps.
        kit: What all runs share.
        every: Steps between two points of the curve.
        part: Where the state is kept at each of them, so that an interrupted run goes on.
        pairs: Held-out pairs that are edited for a point; 0 for none.

    Returns:
        The model and its curve.
    """
    model = new_model(arm, kit, seed)
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and not n.startswith("null_landmarks")]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or n.startswith("null_landmarks")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.99)
    )
    curve: list[dict[str, float]] = []
    if part is not None and part.is_file():
        state = torch.load(part, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        curve = state["curve"]
    losses: list[float] = []
    before = curve[-1]["cpu_seconds"] - time.process_time() if curve else -time.process_time()
    for step in range(int(curve[-1]["step"]) if curve else 0, steps):
        set_rate(optimizer, RATE, step, steps)
        loss = velocity_error(model, training_batch(kit, arm, seed, step))[0].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if (step + 1) % every == 0 or step + 1 == steps:
            point = {"step": step + 1, "loss": float(np.mean(losses)), "cpu_seconds": before + time.process_time()}
            curve.append(point | (measure(model, arm, kit, pairs) if pairs else {}))
            losses.clear()
            if part is not None:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve}, part.with_suffix(".new"))
                part.with_suffix(".new").replace(part)
                print(arm, seed, curve[-1], flush=True)
    return model, curve


def training_batch(kit: Kit, arm: str, seed: int, step: int) -> dict[str, Any]:
    """What a step sees: a function of seed and step; conditions are dropped in the stage's shares."""
    rng = np.random.default_rng((seed, step))
    pairs, chance = Pairs.draw(kit.world, BATCH, rng, held_out=False), torch.from_numpy(rng.random(BATCH))
    both = (chance >= 0.20) & (chance < 0.25)
    batch = make_batch(kit, arm, pairs, ~((chance < 0.10) | both), ~(((chance >= 0.10) & (chance < 0.20)) | both))
    noise = torch.from_numpy(rng.standard_normal(batch["target"].shape, dtype=np.float32))
    return batch | {"noise": noise, "sigma": sample_sigmas(torch.from_numpy(rng.standard_normal(BATCH)), SHIFT)}


def edit(
    model: LaToTransformer, arm: str, kit: Kit, count: int, scale: float = 1.0, noise_px: float = 0.0, null: str | None = None
) -> tuple[Pairs, Tensor]:
    """Held-out pairs, always the same ones from the same noise, and the edits (B, 3, 32, 32) that a model draws of them.

    Args:
        model: Of an arm.
        arm: Its name.
        kit: What all runs share.
        count: Pairs.
        scale: Of joint guidance.
        noise_px: Standard deviation of what is added to each coordinate.
        null: What stands for "no landmarks" in guidance; None for what the arm was trained with.
    """
    rng = np.random.default_rng(4321)
    pairs = Pairs.draw(kit.world, count, rng, held_out=True)
    start = torch.from_numpy(rng.standard_normal((count, 64, 48), dtype=np.float32))
    noise = noise_px * torch.from_numpy(rng.standard_normal((count, 68, 2), dtype=np.float32))
    everything = torch.ones(count, dtype=torch.bool)
    full = make_batch(kit, arm, pairs, everything, everything, noise, null)
    without = None
    if scale != 1:
        without = make_batch(kit, arm, pairs, ~everything, ~everything, None, null)
    model.eval()
    edits = to_images(draw_tokens(model, full, start, EULER, SHIFT, without, scale)).clamp(-1, 1)
    model.train()
    return pairs, edits


def measure(
    model: LaToTransformer, arm: str, kit: Kit, count: int, scale: float = 1.0, noise_px: float = 0.0, null: str | None = None
) -> dict[str, float]:
    """`compare` of the edits of held-out people; arguments as for `edit`."""
    return compare(kit, *edit(model, arm, kit, count, scale, noise_px, null))


@torch.no_grad()
def compare(kit: Kit, pairs: Pairs, edits: Tensor) -> dict[str, float]:
    """How edits (B, 3, 32, 32) follow what was asked for.

    Returns:
        `le`: mean L1 in canvas px between the landmarks that were asked for (before noise) and those read off the edit. `identity`: cosine of the embeddings
        of edit and source. `pixels`: mean absolute difference of edit and source in 0..255, which is small where the source was copied.
    """
    sources = kit.world.images[pairs.people, pairs.sources]
    places, embedding = kit.instruments(edits)
    return {
        "le": float((places - kit.world.landmarks[pairs.people, pairs.targets]).abs().mean()),
        "identity": float((embedding * kit.instruments(sources)[1]).sum(-1).mean()),
        "pixels": float((edits - sources).abs().mean() * 127.5),
    }


def run(arm: str, seed: int, steps: int, folder: Path) -> None:
    """One run with all that is measured of it, to `<arm>-<seed>.json`; nothing if that is there."""
    torch.set_num_threads(1)
    file = folder / f"{arm}-{seed}.json"
    if file.is_file():
        return
    kit = prepare(folder)
    model, curve = train(arm, seed, steps, kit, max(1, steps // 8), folder / f"{arm}-{seed}.pt", CURVE_PAIRS)
    result: dict[str, Any] = {"arm": arm, "seed": seed, "steps": steps, "curve": curve}
    result["final"] = measure(model, arm, kit, PAIRS)
    nulls = {"mapped": ("learned", "zeros"), "zeros": ("zeros",)}.get(arm, ())
    result["guidance"] = {null: {scale: measure(model, arm, kit, PAIRS // 2, scale, null=null) for scale in SCALES} for null in nulls}
    if arm == "mapped":
        result["noise"] = {noise: measure(model, arm, kit, PAIRS, noise_px=noise) for noise in NOISES}
    np.save(folder / f"{arm}-{seed}.npy", ((edit(model, arm, kit, SHOWN)[1] + 1) * 127.5).round().byte().numpy())
    _write(file, result)


def plan(folder: Path, minutes: float, seeds: int) -> int:
    """Steps of every run, so that all of them take about as long as asked on one idle core; decided once for a folder.

    Raises:
        SystemExit: The folder was begun with another plan.
    """
    file, asked = folder / "plan.json", {"minutes": minutes, "seeds": seeds}
    if not file.is_file():
        kit = prepare(folder)
        model = new_model("mapped", kit, 0)
        times = []
        for step in range(8):
            before = time.process_time()
            velocity_error(model, training_batch(kit, "mapped", 0, step))[0].mean().backward()
            times.append(time.process_time() - before)
        steps = int(0.85 * 60 * minutes / (float(np.median(times)) * 1.05 * len(ARMS) * seeds))  # the rest is measuring
        _write(file, asked | {"steps": max(8, steps // 8 * 8), "seconds_per_step": float(np.median(times))})
    stored = json.loads(file.read_text())
    if {name: stored[name] for name in asked} != asked:
        raise SystemExit(f"{folder} was begun with {stored}; go on with these, or give another --folder")
    return int(stored["steps"])


def main() -> None:
    """Runs what is not there yet, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=65, help="of one idle core, for all training runs together")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, of one thread each")
    parser.add_argument("--folder", type=Path, default=Path("work/proof_dit"))
    parser.add_argument("--page", type=Path, default=Path("docs/proof_dit.md"))
    parser.add_argument("--only-page", action="store_true", help="writes the page of the runs that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.only_page:
        steps = plan(options.folder, options.minutes, options.seeds)
        jobs = [(arm, seed, steps, options.folder) for seed in range(options.seeds) for arm in ARMS]
        with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
            pool.starmap(run, jobs, chunksize=1)
    from tests.proofs.dit_page import write_page

    write_page(options.folder, options.page, prepare(options.folder))


if __name__ == "__main__":
    main()
