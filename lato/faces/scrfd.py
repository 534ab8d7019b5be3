"""insightface's SCRFD detector (the `det_*.onnx` of a pack), behind the same door as the embedded one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from lato.faces.detect import Detection
from lato.faces.onnx_session import open_session

_INPUT = (640, 640)
_SCORE = 0.5


class ScrfdDetector:
    """Finds faces."""

    def __init__(self, network: object) -> None:
        self._network = network

    @classmethod
    def from_file(cls, path: Path, gpu: bool = False) -> ScrfdDetector:
        """Loads an SCRFD ONNX file, to run on the CPU or on a GPU.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"face detector: no file at {path}")
        from insightface.model_zoo.retinaface import RetinaFace

        network = RetinaFace(str(path), open_session(path, gpu=gpu))
        network.prepare(0 if gpu else -1, input_size=_INPUT, det_thresh=_SCORE)
        return cls(network)

    def detect(self, image: npt.NDArray[np.uint8]) -> list[Detection]:
        """Faces in an RGB image `(H, W, 3)`, the largest first."""
        boxes, points = self._network.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))  # type: ignore[attr-defined]
        if points is None:
            return []
        found = [
            Detection(np.asarray(box[:4], np.float32), float(box[4]), np.asarray(five, np.float32))
            for box, five in zip(boxes, points, strict=True)
        ]
        return sorted(found, key=lambda face: -face.size)
