"""68 iBUG points with a small network of their own (64 x 64 grey in, 68 x 2 in 0..1 out), independent of the mesh."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from lato.faces.onnx_session import open_session
from lato.landmarks import Landmarks

_INPUT = 64
_MARGIN = 1.3
"""Side of the square it looks at, in units of the landmarks' extent."""


class FacePoints68:
    """Finds 68 points in a face whose eyes are level."""

    def __init__(self, session: object) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name  # type: ignore[attr-defined]

    @classmethod
    def from_file(cls, path: Path, gpu: bool = False) -> FacePoints68:
        """Loads an ONNX file, to run on the CPU or on a GPU.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: There is no GPU for it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"68-point network: no file at {path}")
        return cls(open_session(path, gpu=gpu))

    def find(self, image: npt.NDArray[np.uint8], around: npt.NDArray[np.floating]) -> Landmarks:
        """Points `(68, 2)` in the pixels of an RGB image, in the square around some landmarks `(68, 2)`."""
        low, high = np.min(around, axis=0), np.max(around, axis=0)
        side = _MARGIN * float((high - low).max())
        corner = (low + high) / 2 - side / 2
        matrix = np.array([[_INPUT / side, 0, -corner[0] * _INPUT / side], [0, _INPUT / side, -corner[1] * _INPUT / side]])
        patch = cv2.warpAffine(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), matrix, (_INPUT, _INPUT), flags=cv2.INTER_LINEAR)
        given = (patch.astype(np.float32) / 256).reshape(1, 1, _INPUT, _INPUT)
        points = np.asarray(self._session.run(None, {self._input: given})[0], np.float32).reshape(68, 2)  # type: ignore[attr-defined]
        return (points * side + corner).astype(np.float32)
