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
_THIN = 0.25
"""And one that does not lie level is thinner than so much of the face's extent: a blob over eyes, nose and mouth is a third to a half."""


class TextDetector:
    """Finds how much of a picture is text."""

    def __init__(self, session: object) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name  # type: ignore[attr-defined]

    @classmethod
    def from_file(cls, path: Path, gpu: bool = False) -> TextDetector:
        """Loads an ONNX file, to run on the CPU or on a GPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: There is no GPU for it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"text detector: no file at {path}")
        return cls(open_session(path, gpu=gpu))

    def share(self, image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.floating]) -> float:
        """Share of an RGB image `(H, W, 3)` that is the core of a line of text, the face itself with landmarks `(68, 2)` among it.

        On the face only what is as long as a line counts, however it lies: of drawn faces the network takes one in twelve itself for a letter.
        """
        small = cv2.resize(image, (_INPUT, _INPUT), interpolation=cv2.INTER_AREA).astype(np.float32)
        given = np.ascontiguousarray(small[None, :, :, ::-1].transpose(0, 3, 1, 2) / 127.5 - 1)  # it was trained on BGR
        likely = np.asarray(self._session.run(None, {self._input: given})[0])[0, 0]  # type: ignore[attr-defined]
        count, numbers, pieces, centres = cv2.connectedComponentsWithStats((likely > _LIKELY).astype(np.uint8))
        points = (np.asarray(landmarks, np.float64) * (_INPUT / image.shape[1], _INPUT / image.shape[0])).astype(np.float32)
        outline, thin = cv2.convexHull(points), _THIN * float(np.ptp(points, axis=0).max())
        text = 0
        for number in range(1, count):
            _, _, width, height, area = pieces[number].tolist()
            beside = cv2.pointPolygonTest(outline, centres[number].tolist(), False) < 0
            if beside or width > _LINE * height or _is_slanted_line(numbers == number, thin):
                text += area
        return text / likely.size


def _is_slanted_line(piece: npt.NDArray[np.bool_], thin: float) -> bool:
    """Whether the pixels of a piece `(H, W)` are as long as a line along whatever axis, and thinner than `thin` pixels."""
    _, sides, _ = cv2.minAreaRect(np.argwhere(piece).astype(np.float32))
    short, long = (side + 1 for side in sorted(sides))  # from the middle of a pixel to that of another
    return long > _LINE * short and short < thin
