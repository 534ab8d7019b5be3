"""What a step costs: seconds by phase, samples, tokens, arithmetic, memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from training.flops import FlopCount
from training.gpus import gpu_of


class Meter:
    """Adds up since the last `read`."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._counting: FlopCount | None = FlopCount()
        self._flops_per_batch = 0
        self._reset()

    def _reset(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._started, self._samples, self._tokens, self._batches, self._steps = time.monotonic(), 0, 0, 0, 0
        self._cpu = sum(self._process.cpu_times()[:2])

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the seconds of a part of the step. On a GPU work is only queued in it, and shows where it is waited for."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - start

    def add(self, samples: int, tokens: int) -> None:
        """Counts a micro-batch of this rank."""
        self._samples, self._tokens, self._batches = self._samples + samples, self._tokens + tokens, self._batches + 1

    def step(self, waited: float) -> None:
        """Counts a step, and how long it waited for its data."""
        self._steps += 1
        self._seconds["read"] += waited

    @contextmanager
    def count_arithmetic(self, backward: bool = False) -> Iterator[None]:
        """Counts the model FLOPs (`training.flops`) of the first micro-batch: of its forward pass, and then of its backward pass."""
        if self._counting is None:
            yield
            return
        self._counting.backward = backward
        with self._counting:
            yield
        if backward:
            self._flops_per_batch, self._counting = self._counting.model, None

    @property
    def own_seconds(self) -> float:
        """Seconds since the last `read` in which this rank did not wait for others: reading, and the forward pass."""
        return self._seconds["read"] + self._seconds["forward"]

    def read(self, world: int) -> dict[str, float]:
        """Rates of all ranks together, shares and memory since the last call.

        `tflops` are model FLOPs, and `mfu` is their share of the GPUs' peak: what checkpointing computes twice is in neither.
        """
        passed = time.monotonic() - self._started
        if not self._steps:
            return {}
        values: dict[str, float] = {
            "samples_per_second": self._samples * world / passed,
            "tokens_per_second": self._tokens * world / passed,
            "tflops": self._flops_per_batch * self._batches * world / passed / 1e12,
            "data_wait_share": self._seconds["read"] / passed,
        }
        values |= {f"time/{name}": self._seconds[name] / self._steps for name in ("read", "forward", "backward", "optimizer")}
        if torch.cuda.is_available():
            values["memory/allocated_mb"] = torch.cuda.max_memory_allocated() / 2**20
            kind = gpu_of(torch.cuda.get_device_name())
            if kind is not None:
                values["mfu"] = values["tflops"] / world / kind.teraflops
        else:
            values["cpu_utilisation"] = (sum(self._process.cpu_times()[:2]) - self._cpu) / passed
            values["memory/rss_mb"] = self._process.memory_info().rss / 2**20
        self._reset()
        return values


def seed_everything(seed: int) -> None:
    """The process's own generators; what samples draw does not depend on them."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def be_deterministic() -> None:
    """Only algorithms that give the same bits, on a GPU too."""
    import os

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Floats to seven digits: metrics files stay readable."""
    return {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in values.items()}
