"""478-point mesh, 52 blendshapes and head pose with mediapipe's FaceLandmarker, one still image at a time (no state between frames).

The network's reading depends a little on the square it is shown. The squares are therefore few: sides are powers of two, centres lie on a grid of a
quarter of the side. `settle` looks again until the square is the one that the landmarks themselves ask for. A face then reads the same whoever said
where it is: a detector, or the frame before.
"""

from __future__ import annotations

import atexit
import math
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from lato.faces.detect import Detection, face_box
from lato.faces.quiet import quiet_stderr
from lato.landmarks import Landmarks, mesh_to_68

_MARGIN = 1.5
"""The square's side is the next power of two from this many times the box's: on a whole picture of six people the landmarker alone finds none."""
_GRID = 4
"""Places of a square's centre within its own side."""
_CROP = 384
"""The crop's side in pixels; the network itself looks at 256 of the face, which takes a third to two thirds of the square."""
_LOOKS = 3
"""At most this many, until the square is the face's own."""

Square = tuple[float, float, float]
"""Left, top, side in image pixels."""


@dataclass(frozen=True)
class MeshObservation:
    """What the mesh network sees in one face. Angles in degrees: yaw > 0 image right, pitch > 0 up, roll > 0 clockwise as seen."""

    landmarks68: Landmarks
    """(68, 2) image pixels."""
    blendshapes: npt.NDArray[np.float32]
    """(52,) in the order of `BLENDSHAPE_NAMES`, 0..1."""
    yaw: float
    pitch: float
    roll: float


class FaceMesh:
    """Reads the mesh of a detected face."""

    def __init__(self, landmarker: object) -> None:
        self._landmarker = landmarker

    @classmethod
    def from_file(cls, path: Path) -> FaceMesh:
        """Loads a `face_landmarker.task` bundle.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: A system library that mediapipe needs (libEGL, libGLESv2) is missing.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"face mesh: no file at {path}")
        os.environ.setdefault("GLOG_minloglevel", "3")
        with quiet_stderr():
            from mediapipe.tasks.python import BaseOptions
            from mediapipe.tasks.python.vision import FaceLandmarker, FaceLandmarkerOptions

            options = FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_path=str(path)),
                output_face_blendshapes=True,
                output_facial_transformation_matrixes=True,
                num_faces=1,
                min_face_detection_confidence=0.3,
            )
            landmarker = FaceLandmarker.create_from_options(options)
        atexit.register(setattr, landmarker, "_handle", None)  # its __del__ would close through a thread pool that has ended by then
        return cls(landmarker)

    def observe(self, image: npt.NDArray[np.uint8], detection: Detection) -> MeshObservation | None:
        """Reads one face, with one look at the square around its box.

        Args:
            image: RGB `(H, W, 3)`.
            detection: Where the face is.

        Returns:
            The observation, or None where the network finds no face in the crop.
        """
        return self._look(image, _square_around(detection.box))

    def settle(self, image: npt.NDArray[np.uint8], detection: Detection) -> MeshObservation | None:
        """Reads one face, and again while the square that its landmarks ask for is another one; a second look is needed for one face in twenty.

        Args and result as of `observe`; the result does not depend on small errors of the detection.
        """
        square = _square_around(detection.box)
        seen: dict[Square, MeshObservation] = {}
        while len(seen) < _LOOKS:
            found = self._look(image, square)
            if found is None:
                return None
            seen[square] = found
            square = _square_around(face_box(found.landmarks68))
            if square in seen:  # its own, or it goes round in a circle: then whichever of these comes first
                circle = list(seen)[list(seen).index(square) :]
                return seen[min(circle)]
        return found

    def _look(self, image: npt.NDArray[np.uint8], square: Square) -> MeshObservation | None:
        import mediapipe

        crop, to_image = _crop_square(image, square)
        with quiet_stderr():
            result = self._landmarker.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=crop))  # type: ignore[attr-defined]
        if not result.face_landmarks:
            return None
        mesh = np.array([(point.x, point.y) for point in result.face_landmarks[0]], np.float64) * _CROP
        mesh = mesh @ to_image[:, :2].T + to_image[:, 2]
        yaw, pitch, roll = _angles(np.asarray(result.facial_transformation_matrixes[0]))
        scores = {category.category_name: category.score for category in result.face_blendshapes[0]}
        blendshapes = np.array([scores[name] for name in BLENDSHAPE_NAMES], np.float32)
        return MeshObservation(mesh_to_68(mesh), blendshapes, yaw, pitch, roll)


def _square_around(box: npt.NDArray[np.floating]) -> Square:
    """One of the few squares, from a box `(4,)`."""
    left, top, right, bottom = (float(value) for value in box)
    side = 2.0 ** math.ceil(math.log2(max(right - left, bottom - top, 1.0) * _MARGIN))
    step = side / _GRID
    return round((left + right) / 2 / step) * step - side / 2, round((top + bottom) / 2 / step) * step - side / 2, side


def _crop_square(image: npt.NDArray[np.uint8], square: Square) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """A square of the image as `_CROP` pixels, and the 2 x 3 map from crop pixels to image pixels."""
    left, top, side = square
    scale = side / _CROP
    to_image = np.array([[scale, 0, left], [0, scale, top]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if scale > 2:  # a large face: shrink with averaging first, bilinear sampling alone would alias
        image = cv2.resize(image, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
        shrunk = to_image.copy() / scale
        return np.ascontiguousarray(cv2.warpAffine(image, shrunk, (_CROP, _CROP), flags=flags)), to_image  # type: ignore[return-value]
    return np.ascontiguousarray(cv2.warpAffine(image, to_image, (_CROP, _CROP), flags=flags)), to_image  # type: ignore[return-value]


def _angles(matrix: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    """Yaw, pitch, roll in our signs from mediapipe's canonical-face-to-camera matrix (x right, y up, z towards the viewer)."""
    yaw = np.arctan2(-matrix[2, 0], np.hypot(matrix[0, 0], matrix[1, 0]))
    pitch = -np.arctan2(matrix[2, 1], matrix[2, 2])
    roll = -np.arctan2(matrix[1, 0], matrix[0, 0])
    return tuple(float(np.degrees(angle)) for angle in (yaw, pitch, roll))  # type: ignore[return-value]


BLENDSHAPE_NAMES: tuple[str, ...] = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft",
    "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft",
    "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft",
    "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight",
    "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
"""The 52 scores of the landmarker's blendshape network, in its order."""
