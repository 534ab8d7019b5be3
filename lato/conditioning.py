"""The forms in which landmarks reach the transformer (the paper's ablation), in one place for training and editing.

none: not at all. rendered: drawn, encoded as an image, on the noise's grid. compressed: drawn at half size, beside the grid. tokens: 68 coordinate tokens.
control: null tokens at the landmarks' places, which shows what codes add to positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lato.codec import encode_images, spatial_factor, to_tokens
from lato.landmarks import CANVAS, draw_landmarks
from lato.positions import compressed_ids, image_ids
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import Conditioning


@dataclass(frozen=True)
class LandmarkCondition:
    """What the transformer is given of B pictures' landmarks, and what it is given instead where they are dropped."""

    landmarks: Tensor
    """(B, 68, 2) canvas px, unknown ones filled."""
    known: Tensor
    """(B, 68) bool."""
    latents: Tensor | None = None
    """(B, 68, d) code vectors."""
    drawn: Tensor | None = None
    """(B, M, C) tokens of the drawn map."""
    blank: Tensor | None = None
    """(1, M, C) tokens of a map with nothing on it."""
    ids: Tensor | None = None
    """(B, M, 3)."""

    @staticmethod
    def join(parts: Sequence[LandmarkCondition]) -> LandmarkCondition:
        """Conditions of one form and grid, one batch."""

        def cat(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        landmarks, known = (torch.cat([getattr(part, name) for part in parts]) for name in ("landmarks", "known"))
        return LandmarkCondition(landmarks, known, cat("latents"), cat("drawn"), parts[0].blank, cat("ids"))

    def arguments(self, keep: Tensor) -> dict[str, Any]:
        """Arguments for `LaToTransformer`.

        Args:
            keep: (n * B,) bool, where the landmarks are not dropped; the batch is repeated n times.
        """
        copies = len(keep) // len(self.landmarks)
        given: dict[str, Any] = {"landmark_latents": None, "landmarks": None}
        if self.latents is not None:
            given["landmark_latents"] = self.latents.repeat(copies, 1, 1)
            given["landmarks"] = self.landmarks.repeat(copies, 1, 1)
            given["landmark_mask"] = self.known.repeat(copies, 1) & keep[:, None]
        if self.drawn is not None and self.blank is not None and self.ids is not None:
            given["condition_tokens"] = torch.where(keep[:, None, None], self.drawn.repeat(copies, 1, 1), self.blank)
            given["condition_ids"] = self.ids.repeat(copies, 1, 1)
        return given


@torch.no_grad()
def encode_condition(
    form: Conditioning, landmarks: Tensor, grid: tuple[int, int], tokenizer: LandmarkTokenizer, vae: Any
) -> LandmarkCondition:
    """Landmarks -> what the transformer is given of them.

    Args:
        form: Of the transformer's config.
        landmarks: (B, 68, 2) canvas px; NaN where unknown.
        grid: (h, w) of the noise tokens.
        tokenizer: For `tokens` and `control`.
        vae: For `rendered` and `compressed`; the image codec.

    Raises:
        ValueError: Landmarks are evidently in another unit.
    """
    known = torch.isfinite(landmarks).all(-1)
    filled = fill_unknown(landmarks)
    if form in ("tokens", "control"):
        return LandmarkCondition(filled, known, latents=tokenizer.encode(filled)[1])
    if form == "none":
        return LandmarkCondition(filled, known)
    half = form == "compressed"
    rows, columns = (grid[0] // 2, grid[1] // 2) if half else grid
    side = 2 * spatial_factor(vae)
    maps = [_draw(row.cpu().numpy(), rows * side, columns * side) for row in (*landmarks, torch.full_like(filled[0], torch.nan))]
    pixels = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).to(landmarks.device).float() / 127.5 - 1
    tokens = to_tokens(encode_images(vae, pixels))
    ids = compressed_ids(len(filled), grid, filled.device) if half else image_ids(len(filled), grid, filled.device)
    return LandmarkCondition(filled, known, drawn=tokens[:-1], blank=tokens[-1:], ids=ids)


def fill_unknown(landmarks: Tensor) -> Tensor:
    """(B, 68, 2) with NaN -> the same with each unknown point on the line between its known neighbours in iBUG order; the canvas's centre if none is known.

    Their own tokens are null tokens; the fill only keeps the tokenizer's convolutions from seeing a jump beside the known ones.
    """
    if bool(torch.isfinite(landmarks).all()):
        return landmarks
    rows = landmarks.cpu().numpy().copy()
    index = np.arange(rows.shape[1])
    for row in rows:
        known = np.isfinite(row).all(-1)
        for axis in range(2):
            row[~known, axis] = np.interp(index[~known], index[known], row[known, axis]) if known.any() else CANVAS.width / 2
    return torch.from_numpy(rows).to(landmarks.device)


def _draw(points: np.ndarray, height: int, width: int) -> np.ndarray:
    black = np.zeros((height, width, 3), np.uint8)
    return black if np.isnan(points).all() else draw_landmarks(points, black)
