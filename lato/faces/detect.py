"""Face boxes and five points with YuNet (OpenCV's FaceDetectorYN)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

_LONGEST_SIDE = 320
"""YuNet finds faces from 18 to 300 px; a picture is looked at once with its longest side at this many pixels."""
_GLANCE = 160, 1 / 8
"""The longest side of a glance: at least so many pixels, and this share of the picture's. A face that is too small for it alone has under 144 px."""


@dataclass(frozen=True)
class Detection:
    """One face in an image."""

    box: npt.NDArray[np.float32]
    """(4,) left, top, right, bottom in image pixels."""
    score: float
    """0..1."""
    points5: npt.NDArray[np.float32]
    """(5, 2) image-left eye, image-right eye, nose tip, image-left and image-right mouth corner: the order ArcFace aligns by."""

    @property
    def size(self) -> float:
        """The longer side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))


Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of a picture, within which the centre of a face must lie."""


def within(found: list[Detection], image: npt.NDArray[np.uint8], box: Box | None) -> list[Detection]:
    """The faces of an image `(H, W, 3)` that a box allows, in their order; None allows all."""
    return [one for one in found if box is None or _lies_in(one, image, box)]


def _lies_in(detection: Detection, image: npt.NDArray[np.uint8], box: Box) -> bool:
    centre = (detection.box[:2] + detection.box[2:]) / 2 / [image.shape[1], image.shape[0]]
    return bool(box[0] <= centre[0] <= box[2] and box[1] <= centre[1] <= box[3])


def face_box(landmarks: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """The box `(4,)` a detector would draw around landmarks `(68, 2)`: they stop at the brows, a face does not (0.3 of their height more, the median
    over the clips)."""
    low, high = np.min(landmarks, axis=0), np.max(landmarks, axis=0)
    return np.array([low[0], low[1] - 0.3 * (high[1] - low[1]), high[0], high[1]], np.float32)


class FaceDetector:
    """Finds faces."""

    def __init__(self, detector: cv2.FaceDetectorYN) -> None:
        self._detector = detector

    @classmethod
    def from_file(cls, path: Path, score_threshold: float = 0.6) -> FaceDetector:
        """Loads a YuNet ONNX file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"face detector: no file at {path}")
        cv2.utils.logging.setLogLevel(
            cv2.utils.logging.LOG_LEVEL_ERROR
        )  # errors only: it warns at each load that its CPU target cannot be changed
        return cls(cv2.FaceDetectorYN.create(str(path), "", (320, 320), score_threshold, 0.3, 50))

    def detect(self, image: npt.NDArray[np.uint8]) -> list[Detection]:
        """Faces in an RGB image `(H, W, 3)`, the largest first."""
        return self._look(image, _LONGEST_SIDE)

    def glance(self, image: npt.NDArray[np.uint8]) -> list[Detection]:
        """The same for less than half the work in pictures under 1280 px; faces under 18 px of what it looks at are missed."""
        least, share = _GLANCE
        return self._look(image, min(_LONGEST_SIDE, max(least, share * max(image.shape[:2]))))

    def _look(self, image: npt.NDArray[np.uint8], longest: float) -> list[Detection]:
        height, width = image.shape[:2]
        scale = min(1.0, longest / max(height, width))
        small = cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
        self._detector.setInputSize((small.shape[1], small.shape[0]))
        _, rows = self._detector.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        to_image = np.array([width / small.shape[1], height / small.shape[0]], np.float32)
        found = []
        for row in np.asarray(rows, np.float32):
            corner, extent = row[:2] * to_image, row[2:4] * to_image
            points = row[4:14].reshape(5, 2) * to_image
            found.append(Detection(np.concatenate([corner, corner + extent]), float(row[14]), points))
        return sorted(found, key=lambda face: -face.size)
