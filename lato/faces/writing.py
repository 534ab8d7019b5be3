"""Writing in a face picture, burnt in or part of the scene: the text detector of PP-OCRv4 (a DB network, 256 x 256 RGB in, how likely each pixel is text out)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from lato.faces.onnx_session import open_session

_INPUT = 256
_LIKELY = 0.3
"""Over which a pixel is text (the threshold of the network's makers)."""
_LINE = 2.0
"""A line is longer than so many times its height."""


class TextDetector:
    """Finds how much of a picture is text."""

    def __init__(self, session: object) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name  # type: ignore[attr-defined]

    @classmethod
    def from_file(cls, path: Path) -> TextDetector:
        """Loads an ONNX file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"text detector: no file at {path}")
        return cls(open_session(path))

    def share(self, image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> float:
        """Share of an RGB image `(H, W, 3)` that is the core of a line of text, the face itself with landmarks `(68, 2)` among it.

        On the face only what is as long as a line counts: of drawn faces the network takes one in twelve itself for a letter.
        """
        small = cv2.resize(image, (_INPUT, _INPUT), interpolation=cv2.INTER_AREA).astype(np.float32)
        given = np.ascontiguousarray(small[None, :, :, ::-1].transpose(0, 3, 1, 2) / 127.5 - 1)  # it was trained on BGR
        likely = np.asarray(self._session.run(None, {self._input: given})[0])[0, 0]  # type: ignore[attr-defined]
        count, _, pieces, centres = cv2.connectedComponentsWithStats((likely > _LIKELY).astype(np.uint8))
        outline = cv2.convexHull(
            (np.asarray(landmarks, np.float64) * (_INPUT / image.shape[1], _INPUT / image.shape[0])).astype(np.float32)
        )
        text = 0
        for (_, _, width, height, area), centre in zip(pieces[1:count].tolist(), centres[1:count].tolist(), strict=True):
            if width > _LINE * height or cv2.pointPolygonTest(outline, centre, False) < 0:
                text += area
        return text / likely.size
