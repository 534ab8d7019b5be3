"""Evaluation sets that must not be trained on: candidates that show their people or their pictures are barred."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.chips import cut_chip
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError
from data_pipeline.groups import GROUPS, Face, GroupsConfig
from data_pipeline.identities import NAME
from data_pipeline.worklist import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from infra.config import Config
from infra.errors import UserError
from infra.storage import sha256_json
from lato.faces import FaceReader
from lato.faces.quality import hash_distance
from lato.pairs import decode_image


class HoldoutConfig(Config):
    """What evaluation uses, and training may not."""

    identities: tuple[str, ...] = ()
    """Declared people."""
    sha256: tuple[str, ...] = ()
    """Contents of sources."""
    folder: str | None = None
    """Pictures and videos of evaluation sets: real people who look like one in them, and near-duplicates of them, are barred."""
    similarity: float = 0.45
    """Cosine from which two real faces count as one person; where it is not given, the recognizer's own (0.50 for buffalo_l)."""
    bits: int = 10
    """Of 256, within which two faces are near-duplicates."""


@dataclass(frozen=True)
class Holdout:
    """The evaluation sets, read."""

    config: HoldoutConfig
    embeddings: npt.NDArray[np.float32]
    """(N, D) unit vectors of their faces."""
    hashes: tuple[bytes, ...]

    @classmethod
    def read(cls, config: HoldoutConfig, models: Path, groups: GroupsConfig | None = None) -> Holdout:
        """Reads the faces of the evaluation pictures, and of the videos one frame a second, with the recognizer of the build's column groups.

        Raises:
            UserError: The folder is not there, or a file in it is unreadable or shows no face: it could not be kept out of training.
        """
        embeddings: list[npt.NDArray[np.float32]] = []
        hashes: list[bytes] = []
        blind: list[str] = []
        if config.folder:
            if not Path(config.folder).is_dir():
                raise UserError(f"holdout.folder: there is no folder {config.folder}")
            reader = FaceReader.from_folder(models)
            identify = GROUPS[NAME].make(models, groups or GroupsConfig())
            for file in sorted(path for path in Path(config.folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES):
                before = len(hashes)
                for image in _pictures_of(file):
                    reading = reader.read(image)
                    if reading is not None:
                        chip = cut_chip(image, reading.mesh.landmarks68)
                        (found,) = identify([Face(chip, chip.place(reading.mesh.landmarks68))])
                        embeddings.append(np.asarray(found["embedding"], np.float32))
                        hashes.append(reading.quality.phash)
                if len(hashes) == before:
                    blind.append(file.name)
        if blind:
            raise UserError(f"holdout.folder: no face is found in {', '.join(blind[:5])}; take them out, or name their sources by sha256")
        return cls(config, np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32), tuple(hashes))

    @property
    def digest(self) -> str:
        """Of all that is held out."""
        return sha256_json([self.config.model_dump(mode="json", exclude={"folder"}), sorted(mark.hex() for mark in self.hashes)])

    def mark(self, row: dict[str, Any]) -> dict[str, Any]:
        """The observation with `held_out`: whether it is declared to be somebody, or shows something, that evaluation uses. Likeness is asked for later."""
        return row | {"held_out": self._shows(row)}

    def bars(self, vector: npt.NDArray[np.float32]) -> bool:
        """Whether a real face's identity vector is that of somebody in the evaluation pictures."""
        return bool(len(self.embeddings)) and float((self.embeddings @ vector).max()) >= self.config.similarity

    def _shows(self, row: dict[str, Any]) -> bool:
        if row["identity"] in self.config.identities or row["source_sha256"] in self.config.sha256:
            return True
        return any(hash_distance(row["phash"], known) <= self.config.bits for known in self.hashes)


def _pictures_of(file: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """A picture, or a video's frames, one a second."""
    try:
        if file.suffix.lower() in IMAGE_SUFFIXES:
            yield decode_image(file.read_bytes(), str(file))
        else:
            yield from (frame.image for frame in sample_frames(str(file), 1.0))
    except (DecodeError, ValueError) as error:
        raise UserError(f"holdout.folder: {file} cannot be read ({error}); take it out, or name its source by sha256") from error
