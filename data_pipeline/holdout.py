"""Evaluation sets that must not be trained on: candidates that show their people or their pictures are barred."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.chips import cut_chip
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError
from data_pipeline.groups import GROUPS, Face, GroupsConfig
from data_pipeline.identities import NAME
from data_pipeline.image_set import read_image_set
from data_pipeline.sources import ContentHashes
from data_pipeline.staging import staged
from data_pipeline.worklist import IMAGE_SUFFIXES, VIDEO_SUFFIXES, WorkItem
from infra.addresses import join
from infra.config import Config
from infra.console import each, say
from infra.errors import UserError
from infra.storage import files_below, read_bytes, sha256_bytes, sha256_json
from lato.faces import FaceReader
from lato.faces.identity import RECOGNIZER, SAME_PERSON_THRESHOLD
from lato.faces.quality import hash_distance
from lato.pairs import decode_image


class HoldoutConfig(Config):
    """What evaluation uses, and training may not."""

    identities: tuple[str, ...] = ()
    """Declared people."""
    sha256: tuple[str, ...] = ()
    """Contents of sources, or of pictures in image sets: a set that holds one is barred whole, the edits of a photo among them."""
    folder: str | None = None
    """Pictures and videos of evaluation sets, on disk or in an object store: real people who look like anybody in them, and near-duplicates of them, are barred."""
    similarity: float = SAME_PERSON_THRESHOLD[RECOGNIZER]
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
    sources: frozenset[str] = frozenset()
    """Ids of those that hold a content of `sha256` (`find_sources`)."""

    @classmethod
    def read(cls, config: HoldoutConfig, models: Path, groups: GroupsConfig | None = None) -> Holdout:
        """Reads the faces of the evaluation pictures, and of the videos one frame a second, with the recognizer of the build's column groups.

        Raises:
            UserError: The folder is not there, or a file in it is unreadable or shows no face: it could not be kept out of training.
        """
        embeddings: list[npt.NDArray[np.float32]] = []
        hashes: list[bytes] = []
        most: dict[str, int] = {}
        if config.folder:
            files = files_below(config.folder)
            if files is None:
                raise UserError(f"holdout.folder: there is no folder {config.folder}")
            reader = FaceReader.from_folder(models)
            identify = GROUPS[NAME].make(models, groups or GroupsConfig())
            shown = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES)]
            for file in each("holdout", shown, "files"):
                most[file] = 0
                for image in _pictures_of(join(config.folder, file)):
                    readings = reader.read_all(image)
                    most[file] = max(most[file], len(readings))
                    for reading in readings:
                        chip = cut_chip(image, reading.mesh.landmarks68)
                        (found,) = identify([Face(chip, chip.place(reading.mesh.landmarks68))])
                        embeddings.append(np.asarray(found["embedding"], np.float32))
                        hashes.append(reading.quality.phash)
        blind = [file for file, count in most.items() if not count]
        if blind:
            raise UserError(f"holdout.folder: no face is found in {', '.join(blind[:5])}; take them out, or name their sources by sha256")
        several = [f"{file} ({count})" for file, count in most.items() if count > 1]
        if several:
            say(
                f"  holdout.folder: everybody in a picture is kept out; several faces are in {', '.join(several[:5])}{', ...' * (len(several) > 5)}"
            )
        return cls(config, np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32), tuple(hashes))

    def find_sources(self, items: list[WorkItem], usable: Collection[str], work: str) -> Holdout:
        """With the sources that hold a content of `sha256`, by themselves or as one of a set's pictures; warns of names and contents that no source has.

        Args:
            items: All sources, generated ones too.
            usable: Ids of those that could be read: of others no picture is used, and their sets may be damaged.
            work: The build's folder, where their hashes are kept.
        """
        known, wanted = ContentHashes(work), frozenset(self.config.sha256)
        found = {
            item.source_id: wanted & _contents_of(item, known)
            for item in each("holdout", items, "sources")
            if wanted and item.source_id in usable
        }
        people = {item.identity for item in items}
        met = frozenset[str]().union(*found.values())
        for name, given, there in (("identities", self.config.identities, people), ("sha256", self.config.sha256, met)):
            unmet = [entry for entry in given if entry not in there]
            if unmet:
                say(
                    f"  warning: holdout.{name}: no source here is of {', '.join(unmet[:5])}{', ...' if len(unmet) > 5 else ''}: nothing is kept out for it"
                )
        return replace(self, sources=frozenset(source_id for source_id, contents in found.items() if contents))

    @property
    def digest(self) -> str:
        """Of all that is held out."""
        marks = sorted(mark.hex() for mark in self.hashes)
        return sha256_json([self.config.model_dump(mode="json", exclude={"folder"}), marks, sorted(self.sources)])

    def mark(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A source's observations with `held_out`: whether each is declared to be somebody, or shows something, that evaluation uses. Pictures of one set are
        held out together: two edits of a photo show what it shows. Likeness is asked for later."""
        shown = [self._shows(row) for row in rows]
        whole = any(shown) and rows[0]["kind"] == "image"
        return [row | {"held_out": whole or one} for row, one in zip(rows, shown, strict=True)]

    def bars(self, vector: npt.NDArray[np.float32]) -> bool:
        """Whether a real face's identity vector is that of somebody in the evaluation pictures."""
        return bool(len(self.embeddings)) and float((self.embeddings @ vector).max()) >= self.config.similarity

    def _shows(self, row: dict[str, Any]) -> bool:
        if row["identity"] in self.config.identities or row["source_id"] in self.sources:
            return True
        return any(hash_distance(row["phash"], known) <= self.config.bits for known in self.hashes)


def _contents_of(item: WorkItem, known: ContentHashes) -> set[str]:
    """Hashes of a source and, where it is a set, of its pictures; none where it cannot be read."""
    own = known.of(item)
    if own is None:
        return set()
    pictures = read_image_set(item.uri).images if item.uri.endswith(".json") else []
    return {own, *(sha256_bytes(read_bytes(picture.uri)) for picture in pictures)}


def _pictures_of(uri: str) -> Iterator[npt.NDArray[np.uint8]]:
    """A picture, or a video's frames, one a second."""
    try:
        if uri.lower().endswith(IMAGE_SUFFIXES):
            yield decode_image(read_bytes(uri), uri)
        else:
            with staged(uri) as path:
                yield from (frame.image for frame in sample_frames(str(path), 1.0))
    except (DecodeError, ValueError, OSError) as error:
        raise UserError(f"holdout.folder: {uri} cannot be read ({error}); take it out, or name its source by sha256") from error
