"""Editors: they take sources and instructions and give pictures. The two baselines need no training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch

from evaluation.warp import warp
from lato.guidance import Guidance
from lato.landmarks import Landmarks
from lato.pairs import FacePair
from lato.pipeline import LaToPipeline

SIDE = 512


@dataclass(frozen=True)
class EditResult:
    """What an editor made of one sample."""

    image: npt.NDArray[np.uint8] | None
    """(512, 512, 3) RGB."""
    landmarks: Landmarks | None
    """(68, 2) canvas px that it drew to, where it has any; there may be a picture without."""
    seconds: float
    """For this picture; a batch's time is shared out evenly."""
    state: str = "ok"
    """`ok`, or why there is no picture."""
    reasoning: str = ""


class Editor(Protocol):
    """Edits samples."""

    name: str

    def edit(self, samples: list[FacePair]) -> list[EditResult]:
        """One result a sample."""
        ...


class CopyEditor:
    """Returns the source: what not editing at all scores."""

    name = "copy"

    def edit(self, samples: list[FacePair]) -> list[EditResult]:
        """See `Editor`."""
        return [EditResult(pair.source_image(), pair.landmarks[0], 0.0) for pair in samples]


class WarpEditor:
    """Warps the source to the true target landmarks."""

    name = "warp"

    def edit(self, samples: list[FacePair]) -> list[EditResult]:
        """See `Editor`."""
        results = []
        for pair in samples:
            started = time.perf_counter()
            image = warp(pair.source_image(), pair.landmarks[0], pair.landmarks[1])
            results.append(EditResult(image, pair.landmarks[1], time.perf_counter() - started))
        return results


class LaToEditor:
    """A LaTo pipeline, with the true target landmarks or with predicted ones."""

    def __init__(self, pipeline: LaToPipeline, predicted: bool, steps: int, guidance: Guidance) -> None:
        self.name = "lato_predicted" if predicted else "lato_true"
        self._pipeline, self._predicted, self._steps, self._guidance = pipeline, predicted, steps, guidance

    def edit(self, samples: list[FacePair]) -> list[EditResult]:
        """See `Editor`."""
        started = time.perf_counter()
        output = self._pipeline(
            image=[pair.source_image() for pair in samples],
            instruction=[pair.meta.instruction for pair in samples],
            landmarks=None if self._predicted else np.stack([pair.landmarks[1] for pair in samples]),
            source_landmarks=np.stack([pair.landmarks[0] for pair in samples]),
            num_inference_steps=self._steps,
            guidance=self._guidance,
            generator=[torch.Generator().manual_seed(number) for number in range(len(samples))],
            output_type="np",
        )
        seconds = (time.perf_counter() - started) / len(samples)
        sees_landmarks = self._pipeline.transformer.config["conditioning"] != "none"  # else those that are given are not drawn to
        results = []
        for image, landmarks, reasoning, problems in zip(output.images, output.landmarks, output.reasoning, output.problems, strict=True):
            if image is None:
                results.append(EditResult(None, None, seconds, "no_landmarks: " + "; ".join(problems), reasoning))
            else:
                large = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
                results.append(EditResult(large, landmarks if sees_landmarks else None, seconds, "ok", reasoning))  # type: ignore[arg-type]
        return results
