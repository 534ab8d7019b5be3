"""FaceReader: detection, mesh, identity and quality of an image's faces, in one call."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lato.faces.detect import Box, Detection, FaceDetector, within
from lato.faces.identity import RECOGNIZER, FaceEmbedder
from lato.faces.mesh import FaceMesh, MeshObservation
from lato.faces.quality import QualityScores, measure

MODEL_FILES = {
    "detector": "face_detection_yunet_2023mar.onnx",
    "mesh": "face_landmarker.task",
    "embedder": RECOGNIZER,
}
"""The embedded default models, by the role they play."""

LICENCES = {MODEL_FILES["detector"]: "MIT", MODEL_FILES["mesh"]: "Apache-2.0", MODEL_FILES["embedder"]: "Apache-2.0"}


@dataclass(frozen=True)
class FaceReading:
    """Everything read from one face. `embedding` is a unit vector `(D,)`."""

    detection: Detection
    mesh: MeshObservation
    embedding: npt.NDArray[np.float32]
    quality: QualityScores


class FaceReader:
    """Reads the faces of an image."""

    def __init__(self, detector: FaceDetector, mesh: FaceMesh, embedder: FaceEmbedder) -> None:
        self.detector = detector
        self.mesh = mesh
        self.embedder = embedder
        self.folder: Path | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> FaceReader:
        """Loads the embedded default models from a folder that holds them under their own names (`MODEL_FILES`).

        Raises:
            ValueError: A file is not what the folder's `manifest.json` says.
        """
        folder = Path(folder)
        manifest = folder / "manifest.json"
        if manifest.is_file():
            for name, entry in json.loads(manifest.read_text()).items():
                got = _sha256(folder / Path(name).name)
                if got != entry["sha256"]:
                    raise ValueError(f"{folder / name}: expected sha256 {entry['sha256']}, given {got}")
        reader = cls.from_files(*(folder / MODEL_FILES[role] for role in ("detector", "mesh", "embedder")))
        reader.folder = folder
        return reader

    def save(self, folder: Path) -> None:
        """Copies the model files below a folder, with a manifest of sha256 and licences."""
        assert self.folder is not None, "only a reader that came from a folder can be saved"
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {}
        for name in MODEL_FILES.values():
            if folder.resolve() != self.folder.resolve():
                shutil.copyfile(self.folder / name, folder / name)
            manifest[name] = {"sha256": _sha256(folder / name), "licence": LICENCES[name]}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))

    @classmethod
    def from_files(cls, detector: Path, mesh: Path, embedder: Path) -> FaceReader:
        """Loads the three models from their files."""
        return cls(FaceDetector.from_file(detector), FaceMesh.from_file(mesh), FaceEmbedder.from_file(embedder))

    def read(self, image: npt.NDArray[np.uint8], box: Box | None = None) -> FaceReading | None:
        """RGB `(H, W, 3)` -> the reading of the largest face (that the box allows), or None where no face, or no mesh in it, is found."""
        largest = within(self.detector.detect(image), image, box)[:1]
        return next(self._readings(image, largest), None)

    def read_all(self, image: npt.NDArray[np.uint8]) -> list[FaceReading]:
        """RGB `(H, W, 3)` -> the readings of all faces, the largest first; those in which no mesh is found are left out."""
        return list(self._readings(image, self.detector.detect(image)))

    def _readings(self, image: npt.NDArray[np.uint8], found: list[Detection]) -> Iterator[FaceReading]:
        for detection in found:
            observation = self.mesh.settle(image, detection)
            if observation is not None:
                embedding = self.embedder.embed(image, detection.points5)
                yield FaceReading(detection, observation, embedding, measure(image, observation.landmarks68))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
