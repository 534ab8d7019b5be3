"""Evaluation sets that must not be trained on: candidates that show their people or their pictures are barred."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.chips import cut_chip
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError
from data_pipeline.groups import GROUPS, Face, GroupsConfig
from data_pipeline.identities import NAME, Vectors
from data_pipeline.image_set import read_image_set
from data_pipeline.observations import read_representatives
from data_pipeline.pairing import AXES
from data_pipeline.sources import ContentHashes
from data_pipeline.staging import staged
from data_pipeline.worklist import IMAGE_SUFFIXES, VIDEO_SUFFIXES, WorkItem
from infra.addresses import join
from infra.config import Config
from infra.console import each, say
from infra.errors import UserError
from infra.storage import files_below, read_bytes, sha256_bytes, sha256_json
from lato.edits import POSE_STEP
from lato.faces import FaceReader
from lato.faces.identity import RECOGNIZER, SAME_PERSON_THRESHOLD
from lato.pairs import decode_image

_NOTES = (".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".xml", ".html", ".pdf", ".npy", ".npz")
"""What may lie beside evaluation pictures, and shows nobody."""
_READ = ("kind", "track", "representative", "sharpness", "phash", *AXES)
"""What is read of the faces of sources that are held out."""


class HoldoutConfig(Config):
    """What evaluation uses, and training may not. However it is named, real people in other files who look like anybody in it are barred too (a track whole,
    where one of its faces does), and so are near-duplicates of its faces."""

    identities: tuple[str, ...] = ()
    """Declared people of sources."""
    sha256: tuple[str, ...] = ()
    """Contents of sources, or of pictures in image sets: a set that holds one is barred whole, the edits of a photo among them."""
    files: tuple[str, ...] = ()
    """Pictures and videos, on disk or in an object store, whether sources or not."""
    folder: str | None = None
    """One of such pictures and videos."""
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
            UserError: The folder is not there, or a file is unreadable or shows no face: it could not be kept out of training.
        """
        nobody = cls(config, np.zeros((0, 0), np.float32), ())
        found, most = nobody._with_files(_files_of(config), models, groups)
        blind = [name for name, count in most.items() if not count]
        if blind:
            raise UserError(f"holdout: no face is found in {', '.join(blind[:5])}; take them out, or name their sources by sha256")
        several = [f"{name} ({count})" for name, count in most.items() if count > 1]
        if several:
            say(
                f"  holdout: everybody in a picture is kept out; several faces are in {', '.join(several[:5])}{', ...' * (len(several) > 5)}"
            )
        return found

    def _with_files(self, files: list[_File], models: Path, groups: GroupsConfig | None) -> tuple[Holdout, dict[str, int]]:
        """With everybody who is seen in files; and how many that are in a picture of each, at most."""
        embeddings: list[npt.NDArray[np.float32]] = []
        hashes: list[bytes] = []
        most: dict[str, int] = {}
        if files:
            reader = FaceReader.from_folder(models)
            identify = GROUPS[NAME].make(models, groups or GroupsConfig())
            for file in each("holdout", files, "files"):
                most[file.name] = 0
                for image in _pictures_of(file):
                    readings = reader.read_all(image)
                    most[file.name] = max(most[file.name], len(readings))
                    for reading in readings:
                        chip = cut_chip(image, reading.mesh.landmarks68)
                        (found,) = identify([Face(chip, chip.place(reading.mesh.landmarks68))])
                        embeddings.append(np.asarray(found["embedding"], np.float32))
                        hashes.append(reading.quality.phash)
        if not embeddings:
            return self, most
        return replace(self, embeddings=np.stack([*self.embeddings, *embeddings]), hashes=(*self.hashes, *hashes)), most

    def with_photos(self, items: list[WorkItem], usable: Collection[str], models: Path, groups: GroupsConfig) -> Holdout:
        """With everybody who is seen in the photos of sources that are held out themselves: a build looks at the largest face of a photo alone.

        Args:
            items: All sources.
            usable: Ids of those that could be read.
            models: Folder of the perception models.
            groups: The build's column groups.
        """
        photos = [
            _File("holdout", image.uri, image.uri)
            for item in items
            if item.kind == "image" and item.source_id in usable and self._names(item.source_id, item.identity)
            for image in read_image_set(item.uri).images
        ]
        return self._with_files(photos, models, groups)[0]

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
        people = {item.identity for item in items if item.source_id in usable}
        met = frozenset[str]().union(*found.values())
        for name, given, there in (("identities", self.config.identities, people), ("sha256", self.config.sha256, met)):
            unmet = [entry for entry in given if entry not in there]
            if unmet:
                say(
                    f"  warning: holdout.{name}: no source here is of {', '.join(unmet[:5])}{', ...' if len(unmet) > 5 else ''}: nothing is kept out for it "
                    "(sources that are rejected or failed do not count: their faces are not known)"
                )
        return replace(self, sources=frozenset(source_id for source_id, contents in found.items() if contents))

    def with_faces(self, ledger: list[dict[str, Any]], people: Mapping[str, str | None], vectors: Vectors, work: str) -> Holdout:
        """With the faces of the sources that are held out themselves: their people and pictures may be in other files, of which nothing is declared.

        Hashes are those of all representatives. Identity is asked for the sharpest of each track and pose, in steps of 30 degrees: it costs more than all else
        that is done to a face, and of one pose more would say little.

        Args:
            ledger: Rows of usable sources.
            people: Source id -> declared person.
            vectors: Identity of the build's faces.
            work: The build's folder.
        """
        parts = sorted(part for row in ledger if self._names(row["source_id"], people.get(row["source_id"])) for part in row["parts"])
        hashes = set(self.hashes)
        asked: dict[str, set[int]] = defaultdict(set)
        for part in parts:
            faces = read_representatives(work, part, _READ)
            hashes.update(face["phash"] for face in faces)
            real = [face for face in faces if face["kind"] != "synthetic"]  # of others the declared name is all that tells them apart
            sharpest = {_pose_of(face): face["row"] for face in sorted(real, key=lambda face: (face["sharpness"], -face["row"]))}
            asked[part] |= set(sharpest.values())
        vectors.compute(asked)
        known = [(vectors.read(part), rows) for part, rows in asked.items() if rows]
        found = [mine[row] for mine, rows in known for row in sorted(rows)]
        return replace(self, embeddings=np.stack([*self.embeddings, *found]) if found else self.embeddings, hashes=tuple(sorted(hashes)))

    @property
    def digest(self) -> str:
        """Of all that is held out."""
        marks = sorted(mark.hex() for mark in self.hashes)
        return sha256_json([self.config.model_dump(mode="json", exclude={"files", "folder"}), marks, sorted(self.sources)])

    def mark(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A source's observations with `held_out`: whether each is declared to be somebody, or shows something, that evaluation uses. Pictures of one set are
        held out together: two edits of a photo show what it shows. Likeness is asked for later."""
        shown = [self._names(row["source_id"], row["identity"]) or self._sees(row["phash"]) for row in rows]
        whole = any(shown) and rows[0]["kind"] == "image"
        return [row | {"held_out": whole or one} for row, one in zip(rows, shown, strict=True)]

    def bars(self, vector: npt.NDArray[np.float32]) -> bool:
        """Whether a real face's identity vector is that of somebody in the evaluation pictures."""
        return bool(len(self.embeddings)) and float((self.embeddings @ vector).max()) >= self.config.similarity

    def _names(self, source_id: str, identity: str | None) -> bool:
        """Whether a source is held out itself."""
        return identity in self.config.identities or source_id in self.sources

    def _sees(self, phash: bytes) -> bool:
        """Whether a face is a near-duplicate of one that is held out."""
        if not self.hashes:
            return False
        apart = np.bitwise_count(self._words ^ np.frombuffer(phash, np.uint64)).sum(axis=1, dtype=np.int64)
        return bool((apart <= self.config.bits).any())

    @cached_property
    def _words(self) -> npt.NDArray[np.uint64]:
        """The hashes, (N, 4)."""
        return np.frombuffer(b"".join(self.hashes), np.uint64).reshape(-1, 4)


class _File(NamedTuple):
    setting: str
    name: str
    """As it is told."""
    uri: str


def _files_of(config: HoldoutConfig) -> list[_File]:
    """Those named one by one, and those of the folder."""
    files = [_File("holdout.files", uri, uri) for uri in config.files]
    strange = [file.name for file in files if not file.name.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES)]
    if strange:
        raise UserError(
            f"holdout.files: {', '.join(strange[:5])}: neither a picture nor a video by its name; name what lies in a folder by holdout.folder"
        )
    if not config.folder:
        return files
    names = files_below(config.folder)
    if names is None:
        raise UserError(f"holdout.folder: there is no folder {config.folder}")
    inside = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES)]
    others = [name for name in names if name not in set(inside) and not name.lower().endswith(_NOTES) and not f"/{name}".count("/.")]
    if others or not inside:
        lacking = (
            f"{len(others)} files in it are neither pictures nor videos by their names" if others else "there is no picture or video in it"
        )
        raise UserError(
            f"holdout.folder: {config.folder}: {lacking}{': ' * bool(others)}{', '.join(others[:5])}{', ...' * (len(others) > 5)}. What is in it could "
            "not be kept out of training: take them out or convert them; a folder that is linked into it is named by itself"
        )
    return files + [_File("holdout.folder", name, join(config.folder, name)) for name in inside]


def _pose_of(face: dict[str, Any]) -> tuple[int, ...]:
    """A face's track, and its pose in steps of an edit."""
    return face["track"], *(round(face[axis] / POSE_STEP) for axis in AXES)


def _contents_of(item: WorkItem, known: ContentHashes) -> set[str]:
    """Hashes of a source and, where it is a set, of its pictures; none where it cannot be read."""
    own = known.of(item)
    if own is None:
        return set()
    pictures = read_image_set(item.uri).images if item.uri.endswith(".json") else []
    return {own, *(sha256_bytes(read_bytes(picture.uri)) for picture in pictures)}


def _pictures_of(file: _File) -> Iterator[npt.NDArray[np.uint8]]:
    """A picture, or a video's frames, one a second."""
    try:
        if file.uri.lower().endswith(IMAGE_SUFFIXES):
            yield decode_image(read_bytes(file.uri), file.uri)
        else:
            with staged(file.uri) as path:
                yield from (frame.image for frame in sample_frames(str(path), 1.0))
    except (DecodeError, ValueError, OSError) as error:
        raise UserError(f"{file.setting}: {file.uri} cannot be read ({error}); take it out, or name its source by sha256") from error
