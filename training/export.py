"""What a checkpoint's model is handed on as: the stage's own format, from whole tensors read out of the checkpoint; no process group and no GPU needed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infra.addresses import join
from infra.storage import commit, read_bytes, sha256_bytes
from training.checkpoint import MARKER
from training.restore import ShardFiles
from training.stage import Stage
from training.zero import materialise

CARD = "training.json"
"""Lies in every export: which checkpoint it is of."""


def export(stage: Stage, checkpoint: str, folder: Path) -> dict[str, Any]:
    """Writes a checkpoint's model; the moving average of its weights where one was kept.

    Args:
        stage: That trained it.
        checkpoint: URI of the checkpoint's folder.
        folder: Where the export goes, whole or not at all; one of the same checkpoint that is there already stays.

    Returns:
        The export's card: checkpoint, its marker's sha256, step, held-out number, which weights.
    """
    data = read_bytes(join(checkpoint, MARKER))
    marker, digest = json.loads(data), sha256_bytes(data)
    known = folder / CARD
    if known.is_file() and json.loads(known.read_text())["checkpoint_sha256"] == digest:
        return json.loads(known.read_text())
    module = stage.build()
    materialise(module, stage.weights())
    files = ShardFiles(checkpoint, marker)
    part = "ema" if files.has("ema") else "weight"
    _set(module, files, part)
    unfinished = folder.parent / f".{folder.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    stage.export(module.eval(), unfinished)
    card = {"stage": stage.name, "checkpoint": checkpoint, "checkpoint_sha256": digest, "weights": part}
    card |= {"step": marker["step"], "held_out": marker["held_out"]}
    commit(str(unfinished / CARD), json.dumps(card, indent=1).encode())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
    return card


@torch.no_grad()
def _set(module: nn.Module, files: ShardFiles, part: str) -> None:
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained.keys() == files.shapes.keys(), f"the checkpoint is of another model: {sorted(trained.keys() ^ files.shapes.keys())[:3]}"
    for name, parameter in trained.items():
        parameter.copy_(files.whole(part, name))
    buffers = files.shared()
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[f"buffer/{name}"])
