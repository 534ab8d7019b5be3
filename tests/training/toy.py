"""A stage small enough to train hundreds of times: y = Wx from noisy draws, a buffer that moves after each step, dropout from the global state."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.training.ranks import leave
from training import engine
from training.config import EngineConfig
from training.mixture import Mixture, sample_generator
from training.stage import StepLoss, device_of

BASE = {"global_batch": 4, "warmup": 2, "checkpoint_every": 5, "eval_every": 100, "log_every": 1, "lr": 1e-2, "timeout_minutes": 2}


class Toy:
    name = "toy"
    floors = {}
    notes = []
    sources = ["toys"]

    def __init__(self, poison=None, width=8, meta=False, dropout=0.1):
        self.data = Mixture([[f"k{n}" for n in range(11)]], [1.0], 0)
        self._poison, self._width, self._meta, self._dropout = poison, width, meta, dropout

    def build(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, self._width), nn.Dropout(self._dropout), nn.Linear(self._width, 3))
        self._whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if self._meta:
            model = model.to("meta")
        model.gradient_checkpointing_enable = lambda: setattr(model, "remade", True)
        model.register_buffer("moved", torch.zeros(3))
        return model

    def weights(self):
        return self._whole if self._meta else None

    def length(self, sample):
        return int(sample.key[1:]) % 3

    def read(self, samples):
        return {
            "draws": torch.stack([torch.randn(9, generator=sample_generator(0, sample)) for sample in samples]),
            "keys": [s.key for s in samples],
        }

    def loss(self, module, batch):
        draws = batch["draws"].to(next(module.parameters()).dtype)
        output = module(draws[:, :6])
        losses = (output - draws[:, 6:]).square().mean(1)
        if self._poison and self._poison.strip("~") in batch["keys"]:
            hidden = self._poison.startswith("~")  # the loss stays finite, its gradient does not
            losses = losses + (0 * output.sum()).abs().sqrt() if hidden else losses * float("nan")
        return StepLoss(losses, len(draws), {"seen": draws.mean().detach()})

    def after_step(self, module, step, steps):
        module.moved += step
        return {}

    def validate(self, module):
        return {
            "held_out": float(
                module(torch.ones(1, 6, dtype=next(module.parameters()).dtype, device=device_of(module))).float().square().mean()
            )
        }

    def pictures(self, module):
        module(torch.ones(1, 6, dtype=next(module.parameters()).dtype))
        return {"grid": np.zeros((8, 8, 3), np.uint8)}

    def export(self, module, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: tensor.clone() for name, tensor in module.state_dict().items()}, folder / "model.pt")


def train_all(rank, world, jobs):
    """Runs (folder, config, Toy arguments) one after another in one process group; what stopped one is written down."""
    for folder, config, toy in jobs:
        folder = Path(folder)
        try:
            engine.run(Toy(**toy), EngineConfig(**config), folder)
        except (engine.NotFinite, engine.Preempted) as error:
            (folder / f"stopped-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    leave()
