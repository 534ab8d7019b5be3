"""Which samples a step sees: a function of the step alone, whatever the number of ranks, workers or micro-batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

_BLOCK = 1024
"""Places over which every source gets its share exactly."""


@dataclass(frozen=True)
class Sample:
    """One place in a batch."""

    source: int
    """Which entry of the mixture."""
    key: str
    epoch: int
    """How often its source had been seen whole before."""
    step: int = 0
    """The step it is seen in: what all samples of a step must share (a picture size) is drawn from it."""


class Mixture:
    """Several sources in fixed shares, each in an order drawn anew in every epoch.

    Args:
        keys: Of each source.
        weights: Relative shares, one a source.
        seed: Of the orders.

    Raises:
        ValueError: A source has no samples, or no weight above 0.
    """

    def __init__(self, keys: Sequence[Sequence[str]], weights: Sequence[float], seed: int) -> None:
        if not keys or len(keys) != len(weights) or any(not own for own in keys):
            raise ValueError(
                f"mixture: expected sources with samples and a weight each, given {[len(own) for own in keys]} and {list(weights)}"
            )
        if min(weights) <= 0:
            raise ValueError(f"mixture: expected weights above 0, given {list(weights)}")
        self.keys, self._weights, self._seed = [list(own) for own in keys], list(weights), seed
        shares = np.asarray(weights, np.float64) / np.sum(weights) * _BLOCK
        self._counts = np.floor(shares).astype(np.int64)
        missing = _BLOCK - int(self._counts.sum())
        self._counts[np.argsort(self._counts - shares, kind="stable")[:missing]] += 1  # the largest remainders take what is left
        self._orders: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    @property
    def counts(self) -> list[int]:
        """Samples of each source in a block; 0 is a source that is never drawn."""
        return self._counts.tolist()

    def __len__(self) -> int:
        return sum(len(own) for own in self.keys)

    def without(self, left_out: Sequence[Set[str]]) -> Mixture:
        """The same mixture without some keys of each source.

        Raises:
            ValueError: Nothing is left of a source.
        """
        keys = [[key for key in own if key not in out] for own, out in zip(self.keys, left_out, strict=True)]
        return Mixture(keys, self._weights, self._seed)

    def batch(self, step: int, size: int) -> list[Sample]:
        """The `size` samples of a step (0 is the first), in order; batches run on over the ends of epochs."""
        return [self._sample(place, step) for place in range(step * size, (step + 1) * size)]

    def _sample(self, place: int, step: int) -> Sample:
        block, offset = divmod(place, _BLOCK)
        order = self._order(-1, block, np.repeat(np.arange(len(self._counts)), self._counts))
        source = int(order[offset])
        before = block * int(self._counts[source]) + int((order[:offset] == source).sum())
        epoch, index = divmod(before, len(self.keys[source]))
        chosen = self._order(source, epoch, np.arange(len(self.keys[source])))[index]
        return Sample(source, self.keys[source][int(chosen)], epoch, step)

    def _order(self, source: int, epoch: int, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if (source, epoch) not in self._orders:
            if len(self._orders) > 4 * len(self.keys) + 4:  # the last few are asked again and again, older ones never
                self._orders.clear()
            self._orders[source, epoch] = np.random.default_rng((self._seed, source + 1, epoch)).permutation(values)
        return self._orders[source, epoch]


def sample_generator(seed: int, sample: Sample, purpose: str = "") -> torch.Generator:
    """The source of every random draw of a sample in an epoch; equal for any number of ranks and workers."""
    digest = hashlib.sha256(f"{seed}/{sample.source}/{sample.epoch}/{sample.key}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
