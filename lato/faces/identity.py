"""Identity vectors: insightface's ArcFaceONNX runs any 112 x 112 recognizer; SFace is the embedded default."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

SAME_PERSON_THRESHOLD = {
    "face_recognition_sface_2021dec.onnx": 0.45,
    "w600k_r50.onnx": 0.50,
}
"""Cosine from which two faces count as one person when mining pairs, per recognizer file (`docs/decisions.md`)."""


class FaceEmbedder:
    """Turns an aligned face into a unit vector."""

    def __init__(self, recognizer: object, threshold: float) -> None:
        self._recognizer = recognizer
        self.threshold = threshold

    @classmethod
    def from_file(cls, path: Path) -> FaceEmbedder:
        """Loads a recognizer.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: No same-person threshold is known for it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"face recognizer: no file at {path}")
        if Path(path).name not in SAME_PERSON_THRESHOLD:
            known = ", ".join(SAME_PERSON_THRESHOLD)
            raise ValueError(f"face recognizer: no same-person threshold is known for {Path(path).name}; known: {known}")
        import onnxruntime
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
        return cls(ArcFaceONNX(str(path), session), SAME_PERSON_THRESHOLD[Path(path).name])

    def embed(self, image: npt.NDArray[np.uint8], points5: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """RGB image `(H, W, 3)` and the five points `(5, 2)` in its pixels -> unit vector `(D,)`."""
        from insightface.utils.face_align import norm_crop

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # insightface 2.1 calls a deprecated scikit-image name
            aligned = norm_crop(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.asarray(points5, np.float32), 112)  # it expects BGR
        vector = np.asarray(self._recognizer.get_feat(aligned), np.float32).reshape(-1)  # type: ignore[attr-defined]
        return vector / max(float(np.linalg.norm(vector)), 1e-9)


def similarity(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Cosine of two unit vectors."""
    return float(np.dot(a, b))
