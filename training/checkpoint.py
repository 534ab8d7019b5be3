"""Committed checkpoints: a folder is a checkpoint once its COMPLETE marker lies in it, and that is written last, with a hash of every file."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from infra.storage import commit, sha256_file
from training import portable

_MARKER = "COMPLETE"


def save(folder: Path, step: int, engine: Any, keep: int, held_out: float | None = None) -> Path:
    """Saves model, optimizer, buffers and random state of all ranks at `folder/step-000123`; called on every rank.

    Args:
        folder: Of all checkpoints.
        step: Steps done.
        engine: DeepSpeed's.
        keep: How many of the newest stay; the one with the lowest held-out number stays beside them.
        held_out: That number at this step, where it was measured.

    Returns:
        The checkpoint's folder.
    """
    target = folder / f"step-{step:06d}"
    unfinished = folder / f".step-{step:06d}"
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(unfinished), tag="engine", save_latest=False)
    portable.save(unfinished, engine)
    commit(str(unfinished / f"random-{dist.get_rank():04d}.json"), json.dumps(_random_state()).encode())
    dist.barrier()
    if dist.get_rank() == 0:
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        for path in files:
            _fsync(path)
        manifest = {str(path.relative_to(unfinished)): sha256_file(str(path)) for path in files}
        commit(
            str(unfinished / _MARKER),
            json.dumps({"step": step, "world_size": dist.get_world_size(), "held_out": held_out, "files": manifest}, indent=1).encode(),
        )
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)
        for old in _superfluous(complete(folder), keep):
            shutil.rmtree(old)
    dist.barrier()
    return target


def _superfluous(checkpoints: list[Path], keep: int) -> list[Path]:
    """All but the newest, and but the best of those that were measured."""
    measured = [(value, path) for path in checkpoints if (value := json.loads((path / _MARKER).read_text()).get("held_out")) is not None]
    best = min(measured, key=lambda entry: entry[0])[1] if measured else None
    return [path for path in checkpoints[:-keep] if path != best]


def complete(folder: Path) -> list[Path]:
    """Checkpoints whose files are all there with the right content, the oldest first. A torn one is passed over."""
    found = []
    for marker in sorted(folder.glob(f"step-*/{_MARKER}")):
        files = json.loads(marker.read_text())["files"]
        if all((marker.parent / name).is_file() and sha256_file(str(marker.parent / name)) == digest for name, digest in files.items()):
            found.append(marker.parent)
    return found


def load_newest(folder: Path, engine: Any) -> int:
    """Loads the newest complete checkpoint into the engine; returns its step, 0 without one.

    On the number of ranks that wrote it, all of it, random state too: the run goes on bit for bit. On another, what does not belong to a rank: weights,
    moments, buffers, counters; draws are a function of (seed, epoch, key) anyway.
    """
    usable = complete(folder)
    if not usable:
        return 0
    marker = json.loads((usable[-1] / _MARKER).read_text())
    if marker["world_size"] != dist.get_world_size():
        portable.load(usable[-1], engine)
        return int(marker["step"])
    loaded, _ = engine.load_checkpoint(str(usable[-1]), tag="engine")
    assert loaded is not None, f"DeepSpeed did not load {usable[-1]}"
    state = json.loads((usable[-1] / f"random-{dist.get_rank():04d}.json").read_text())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    return int(marker["step"])


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
    }


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
