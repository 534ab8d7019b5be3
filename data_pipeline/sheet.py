"""A contact sheet of samples: source and target with their landmarks, the instruction below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data_pipeline.pack import read_members
from lato.landmarks import draw_landmarks
from lato.pairs import FacePair, decode_pair

_SIDE = 224


def read_samples(folder: str, rows: Iterable[dict[str, Any]]) -> list[FacePair]:
    """Reads samples of a version by their manifest rows, each by its byte offsets."""
    return [decode_pair(str(row["key"]), read_members(folder, row)) for row in rows]


def draw_sheet(pairs: list[FacePair], columns: int = 4) -> npt.NDArray[np.uint8]:
    """The sheet as an RGB image: `columns` pairs a row."""
    cells = [_draw_pair(pair) for pair in pairs]
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])


def _draw_pair(pair: FacePair) -> npt.NDArray[np.uint8]:
    pictures = []
    for image, landmarks in ((pair.source_image(), pair.landmarks[0]), (pair.target_image(), pair.landmarks[1])):
        pictures.append(cv2.resize(draw_landmarks(landmarks, image), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA))
    caption = np.full((40, 2 * _SIDE, 3), 255, np.uint8)
    words, line = pair.meta.instruction.split(), ""
    lines: list[str] = []
    for word in words:
        if len(line) + len(word) > 62:
            lines, line = [*lines, line], ""
        line = f"{line} {word}".strip()
    for number, text in enumerate([*lines, line][:2]):
        cv2.putText(caption, text, (4, 15 + 17 * number), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
    cell = np.vstack([np.hstack(pictures), caption])
    return cv2.copyMakeBorder(cell, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))  # type: ignore[return-value]
