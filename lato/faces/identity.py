"""Identity vectors: insightface's ArcFaceONNX runs any 112 x 112 recognizer; SFace is the embedded default."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from lato.faces.onnx_session import open_session

RECOGNIZER = "face_recognition_sface_2021dec.onnx"
"""The embedded one."""
SAME_PERSON_THRESHOLD = {
    RECOGNIZER: 0.45,
    "w600k_r50.onnx": 0.50,
}
"""Cosine from which two faces count as one person when mining pairs, per recognizer file (`docs/decisions.md`)."""


class FaceEmbedder:
    """Turns aligned faces into unit vectors.

    Args:
        recognizer: insightface's.
        threshold: Its `SAME_PERSON_THRESHOLD`; None where none is known.
        batched: Whether its batch axis is open.
    """

    def __init__(self, recognizer: object, threshold: float | None, batched: bool) -> None:
        self._recognizer = recognizer
        self._batched = batched
        self.threshold = threshold

    @classmethod
    def from_file(cls, path: Path, batched: bool = False, gpu: bool = False) -> FaceEmbedder:
        """Loads a recognizer.

        Args:
            path: An ONNX file.
            batched: Open its batch axis, so that `embed_many` is one call; worth it on a GPU only.
            gpu: Run it there.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: There is no GPU for it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"face recognizer: no file at {path}")
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX

        session = open_session(path, batched, gpu)
        return cls(ArcFaceONNX(str(path), session), SAME_PERSON_THRESHOLD.get(Path(path).name), batched)

    def embed(self, image: npt.NDArray[np.uint8], points5: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """RGB image `(H, W, 3)` and the five points `(5, 2)` in its pixels -> unit vector `(D,)`."""
        return self.embed_many([image], [points5])[0]

    def embed_many(
        self, images: Sequence[npt.NDArray[np.uint8]], points5: Sequence[npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]:
        """The same for many: in one call where the batch axis is open, else one after another."""
        from insightface.utils.face_align import norm_crop

        aligned = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # insightface 2.1 calls a deprecated scikit-image name
            for image, points in zip(images, points5, strict=True):
                aligned.append(norm_crop(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.asarray(points, np.float32), 112))  # it expects BGR
        features = self._recognizer.get_feat  # type: ignore[attr-defined]
        rows = features(aligned) if self._batched and aligned else [features(face) for face in aligned]
        vectors = [np.asarray(row, np.float32).reshape(-1) for row in rows]
        return [vector / max(float(np.linalg.norm(vector)), 1e-9) for vector in vectors]


def similarity(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Cosine of two unit vectors."""
    return float(np.dot(a, b))
