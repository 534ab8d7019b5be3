"""Committed checkpoints, written while training goes on, in files that depend on no number of ranks.

A checkpoint is a folder `step-000123`: each rank's ranges of weights, moments and average by parameter name (safetensors), buffers and counters once, and a
COMPLETE marker with every file's hash, written last. Without a marker it is no checkpoint. DeepSpeed's own format is not used: docs/decisions.md says why.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from infra.addresses import is_local, join
from infra.errors import UserError
from infra.storage import commit, commit_file, delete_folder, exists, list_folders, read_bytes, sha256_file, size_of
from training.ema import Ema
from training.shards import optimizer_step, shards
from training.zero import reducible

MARKER = "COMPLETE"


@dataclass
class _Writing:
    """A checkpoint on its way."""

    step: int
    held_out: float | None
    thread: threading.Thread
    error: str | None = None


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: URI; a path, or a folder of an object store.
        keep: How many of the newest stay; the one with the lowest held-out number stays beside them.
    """

    def __init__(self, folder: str, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._writing: _Writing | None = None

    def save(self, step: int, engine: Any, ema: Ema | None, held_out: float | None) -> None:
        """Copies the state to the host's memory and begins to write it; called on every rank. `settle` commits it.

        Args:
            step: Steps done.
            engine: DeepSpeed's.
            ema: The average, if one is kept.
            held_out: The held-out number at this step, where it was measured.
        """
        assert self._writing is None, "settle comes before the next save"
        tensors, ranges = _own_ranges(engine, ema)
        about = {"ranges": ranges, "random": _random_state()}
        shared = _shared_state(engine) if dist.get_rank() == 0 else None
        folder = join(self._folder, f"step-{step:06d}")
        thread = threading.Thread(target=self._write, args=(folder, tensors, about, shared), name="checkpoint", daemon=True)
        self._writing = _Writing(step, held_out, thread)
        thread.start()

    def state(self) -> tuple[bool, bool]:
        """Whether this rank's part is still being written, and whether it failed."""
        if self._writing is None:
            return False, False
        return self._writing.thread.is_alive(), self._writing.error is not None

    def settle(self, writing: bool, failed: bool) -> str | None:
        """Commits what all ranks have written; called on every rank with the ranks' common answer (any writing, any failed).

        Returns:
            What went wrong, on every rank; None where nothing did or the write is not over.
        """
        if self._writing is None or writing:
            return None
        current, self._writing = self._writing, None
        folder = join(self._folder, f"step-{current.step:06d}")
        said: list[Any] = [current.error]
        if failed:
            said *= dist.get_world_size()
            dist.all_gather_object(said, current.error)
        else:
            said = [self._commit(folder, current) if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(said, 0)
        error = next((text for text in said if text), None)
        if error is None:
            return None
        if failed and dist.get_rank() == 0:
            with contextlib.suppress(
                Exception
            ):  # a store that is down does not delete either, and rank 0 must not stop alone: `sweep` does it then
                delete_folder(folder)
        return f"the checkpoint of step {current.step} could not be written ({error}); the last one stands"

    def finish(self) -> str | None:
        """Waits for what is being written and commits it; called on every rank."""
        if self._writing is None:
            return None
        self._writing.thread.join()
        failed = reducible([self.state()[1]])
        dist.all_reduce(failed, dist.ReduceOp.MAX)
        said = self.settle(False, bool(failed))
        dist.barrier()
        return said

    def _write(
        self, folder: str, tensors: dict[str, Tensor], about: dict[str, Any], shared: tuple[dict[str, Tensor], dict[str, Any]] | None
    ) -> None:
        current = self._writing
        try:
            name = f"rank-{dist.get_rank():05d}-of-{dist.get_world_size():05d}"
            files = {f"{name}.safetensors": _write_tensors(tensors, join(folder, f"{name}.safetensors"))}
            if shared is not None:
                files["shared.safetensors"] = _write_tensors(shared[0], join(folder, "shared.safetensors"))
                data = json.dumps(shared[1]).encode()
                commit(join(folder, "counters.json"), data)
                files["counters.json"] = {"sha256": sha256_file(join(folder, "counters.json")), "bytes": len(data)}
            commit(join(folder, f"{name}.json"), json.dumps(about | {"files": files}).encode())
        except Exception as error:  # whatever a disk, a store or a library raises here is told at the next step, and training goes on
            assert current is not None
            current.error = str(error) or type(error).__name__

    def _commit(self, folder: str, current: _Writing) -> str | None:
        """Writes the marker and thins what is older, on rank 0; returns what went wrong, for all ranks to know: alone it must not raise."""
        try:
            files: dict[str, Any] = {}
            for rank in range(dist.get_world_size()):
                name = f"rank-{rank:05d}-of-{dist.get_world_size():05d}.json"
                data = read_bytes(join(folder, name))
                files |= json.loads(data)["files"]
                files[name] = {"sha256": sha256_file(join(folder, name)), "bytes": len(data)}
            marker = {"step": current.step, "world_size": dist.get_world_size(), "held_out": current.held_out, "files": files}
            commit(join(folder, MARKER), json.dumps(marker, indent=1).encode())
            for old in superfluous(markers(self._folder), self._keep):
                delete_folder(old)
        except Exception as error:  # as in `_write`
            return str(error) or type(error).__name__
        return None


def markers(folder: str) -> dict[str, dict[str, Any]]:
    """Folder -> marker of every checkpoint that has one, the oldest first."""
    paths = [path for path in list_folders(folder) if path.rsplit("/", 1)[-1].startswith("step-") and exists(join(path, MARKER))]
    found = {path: json.loads(read_bytes(join(path, MARKER))) for path in paths}
    return dict(sorted(found.items(), key=lambda entry: entry[1]["step"]))  # by name, a millionth step comes before the second


def newest(folder: str) -> str | None:
    """The newest checkpoint whose files are all there and whole (by hash; on an object store by size). A torn one is passed over."""
    return next((path for path, marker in reversed(markers(folder).items()) if is_whole(path, marker)), None)


def is_whole(path: str, marker: Mapping[str, Any]) -> bool:
    """Whether all files that a checkpoint's marker names are there as they were written (by hash; on an object store by size)."""
    return all(_is_as_written(join(path, name), entry) for name, entry in marker["files"].items())


def drop_torn(folder: str, whole: str | None) -> list[str]:
    """Deletes the checkpoints behind the newest whole one (`newest`), which are torn, and the kept best, where it is: they must not count as kept or as best.
    Called by one rank, before training.

    Returns:
        Their names.

    Raises:
        UserError: There are only torn ones: to begin anew in their place is not for a program to decide.
    """
    found = markers(folder)
    if found and whole is None:
        names = ", ".join(path.rsplit("/", 1)[-1] for path in found)
        raise UserError(
            f"{folder}: no checkpoint is whole (files of {names} are missing or changed). Copy one back, or move them away to begin anew."
        )
    torn = [path for path, marker in found.items() if whole and marker["step"] > found[whole]["step"]]
    for path in _by_held_out({path: marker for path, marker in found.items() if path not in torn}):
        if path == whole or is_whole(path, found[path]):
            break
        torn.append(path)
    for path in torn:
        delete_folder(path)
    return [path.rsplit("/", 1)[-1] for path in torn]


def best(folder: str) -> str | None:
    """The checkpoint with the lowest held-out number of those whose files are all there and whole."""
    found = markers(folder)
    return next((path for path in _by_held_out(found) if is_whole(path, found[path])), None)


def superfluous(found: Mapping[str, Mapping[str, Any]], keep: int) -> list[str]:
    """All but the newest, and but the best of those that were measured."""
    kept = _by_held_out(found)[:1]
    return [path for path in list(found)[:-keep] if path not in kept]


def _by_held_out(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Those that were measured, the best first."""
    return sorted((path for path, marker in found.items() if marker["held_out"] is not None), key=lambda path: found[path]["held_out"])


def sweep(folder: str) -> None:
    """Deletes what killed runs left: checkpoints without a marker. Called by one rank, before training."""
    for path in list_folders(folder):
        if path.rsplit("/", 1)[-1].startswith("step-") and not exists(join(path, MARKER)):
            delete_folder(path)


def _own_ranges(engine: Any, ema: Ema | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copies of this rank's ranges, and what they are: name -> (start, length, shape)."""
    tensors: dict[str, Tensor] = {}
    ranges: dict[str, Any] = {}
    for shard in shards(engine):
        if shard.own.stop <= shard.own.start:
            continue
        ranges[shard.name] = (shard.start + shard.own.start, shard.own.stop - shard.own.start, shard.shape)
        parts = {"weight": shard.weight, **shard.moments}
        if ema is not None:
            parts["ema"] = ema.values[shard.name]
        for part, tensor in parts.items():
            tensors[f"{part}/{shard.name}"] = tensor[shard.own].detach().to("cpu", copy=True)
    return tensors, ranges


def _shared_state(engine: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    buffers = {f"buffer/{name}": buffer.detach().to("cpu", copy=True).contiguous() for name, buffer in engine.module.named_buffers()}
    counters = {
        "optimizer_step": optimizer_step(engine),
        "global_steps": engine.global_steps,
        "global_samples": engine.global_samples,
        "schedule": engine.lr_scheduler.state_dict() | {"lr_lambdas": None},
    }
    return buffers, counters


def _write_tensors(tensors: dict[str, Tensor], uri: str) -> dict[str, Any]:
    """Writes a safetensors file to stay; returns its hash and size."""
    with tempfile.TemporaryDirectory(prefix="lato-checkpoint-") as scratch:
        path = uri.removeprefix("file://") if is_local(uri) else str(Path(scratch) / "tensors")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        entry = {"sha256": sha256_file(path), "bytes": Path(path).stat().st_size}
        if not is_local(uri):
            commit_file(path, uri)
        return entry


def _is_as_written(uri: str, entry: Mapping[str, Any]) -> bool:
    if not exists(uri) or size_of(uri) != entry["bytes"]:
        return False
    return not is_local(uri) or sha256_file(uri) == entry["sha256"]


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
        "cuda": bytes(torch.cuda.get_rng_state().tolist()).hex() if torch.cuda.is_available() else None,
    }
