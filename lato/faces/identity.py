"""Identity vectors: insightface's ArcFaceONNX runs any 112 x 112 recognizer; SFace is the embedded default."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

SAME_PERSON_THRESHOLD = {
    "face_recognition_sface_2021dec.onnx": 0.45,
    "w600k_r50.onnx": 0.50,
}
"""Cosine from which two faces count as one person when mining pairs, per recognizer file (`docs/decisions.md`)."""


class FaceEmbedder:
    """Turns aligned faces into unit vectors."""

    def __init__(self, recognizer: object, threshold: float, batched: bool) -> None:
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
            ValueError: No same-person threshold is known for it, or there is no GPU for it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"face recognizer: no file at {path}")
        if Path(path).name not in SAME_PERSON_THRESHOLD:
            known = ", ".join(SAME_PERSON_THRESHOLD)
            raise ValueError(f"face recognizer: no same-person threshold is known for {Path(path).name}; known: {known}")
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX

        session = open_session(path, batched, gpu)
        return cls(ArcFaceONNX(str(path), session), SAME_PERSON_THRESHOLD[Path(path).name], batched)

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


_GPU = ("CUDAExecutionProvider", "ROCMExecutionProvider", "MIGraphXExecutionProvider")


def open_session(path: Path, batched: bool = False, gpu: bool = False) -> object:
    """An onnxruntime session of one thread, on the CPU unless a GPU is asked for: a worker that was given none must not take a share of one.

    Args:
        path: The ONNX file.
        batched: Open the batch axis, in memory: the files have a batch of 1 baked in.
        gpu: Run it on a GPU.

    Raises:
        ValueError: A GPU is asked for, and this onnxruntime has no provider for one.
    """
    import onnxruntime

    there = [name for name in _GPU if name in onnxruntime.get_available_providers()] if gpu else []
    if gpu and not there:
        raise ValueError(
            f"a GPU was asked for, but onnxruntime has none of {', '.join(_GPU)} here. Install onnxruntime-gpu on GPU nodes, or set gpus=0."
        )

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = _open_batch_axis(path) if batched else str(path)
    return onnxruntime.InferenceSession(model, options, providers=[*there, "CPUExecutionProvider"])


def _open_batch_axis(path: Path) -> bytes:
    import onnx

    model = onnx.load(str(path))
    weights = {tensor.name for tensor in model.graph.initializer}  # old files list them among the inputs
    for value in (*model.graph.input, *model.graph.output):
        if value.name not in weights and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # shapes in between are inferred anew
    for node in model.graph.node:
        if node.op_type == "Reshape":
            _reshape_any_batch(model, node)
    return model.SerializeToString()


def _reshape_any_batch(model: Any, node: Any) -> None:
    """A Reshape to (1, n) becomes one to (any, n)."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name == node.input[1]:
            shape = numpy_helper.to_array(tensor).copy()
            if len(shape) and shape[0] == 1 and (shape > 0).all():
                shape[0] = -1
                tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


def similarity(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Cosine of two unit vectors."""
    return float(np.dot(a, b))
