"""A contact sheet of samples: source and target with their landmarks, the instruction below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.decoder import DecodeError, MachineError
from data_pipeline.image_set import picture_uri
from data_pipeline.ledger import read_ledger
from data_pipeline.observations import read_chips
from data_pipeline.pair_columns import Ends, read_ends
from data_pipeline.pairing import AXES, crops_of
from data_pipeline.published import read_pair
from data_pipeline.render import crop_landmarks, cut
from data_pipeline.seek import read_frames_at
from data_pipeline.sources import ContentHashes, UnreadableNowError
from data_pipeline.staging import staged
from data_pipeline.worklist import WorkItem, read_worklist
from infra.addresses import is_local, join
from infra.backoff import passes
from infra.storage import read_bytes
from lato.landmarks import draw_landmarks
from lato.pairs import FacePair, decode_image

_SIDE = 224
_BUSY = 2
"""Sources that a server does not give before it is not asked for others: of one alone it may be that object's fault."""


def read_samples(folder: str, rows: Iterable[dict[str, Any]]) -> list[FacePair]:
    """Reads samples of a version by their manifest rows, each by its byte offsets. Raises UserError where a shard is missing or damaged."""
    return [read_pair(folder, row) for row in rows]


def draw_sheet(pairs: list[FacePair], columns: int = 4) -> npt.NDArray[np.uint8]:
    """The sheet as an RGB image: `columns` pairs a row."""
    cells = [_draw_pair(pair) for pair in pairs]
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])


class Unreadable(ValueError):
    """A face cannot be shown as it was looked at; the text says why in a few words, which fit on a picture."""


class _Hashes(ContentHashes):
    """What a build knows of its sources' contents, and what is hashed since, which is not kept: another build may be writing them now, or somebody is
    being forgotten."""

    def keep(self) -> None:
        """Writes nothing."""


class Sources:
    """A build's sources, of which judged pairs are drawn, each only while it is what was looked at.

    Args:
        work: The build's folder.

    Raises:
        UserError: Its work list or its cache of hashes is damaged.
    """

    def __init__(self, work: str) -> None:
        self.items = {item.source_id: item for item in read_worklist(join(work, "worklist.parquet"))}
        self.lost: dict[str, str] = {}
        """Source, or server that does not answer for two of them -> why nothing is drawn of it. It is not asked again: that may take seconds each time."""
        self._busy = Counter[str]()
        self._work, self._hashes = work, _Hashes(work)
        self._sets: dict[str, str | None] = {}

    def draw(self, row: dict[str, Any], side: int, landmarks: bool = True) -> npt.NDArray[np.uint8]:
        """Source and target of any judged pair with their landmarks, if asked, side by side.

        Args:
            row: Of the candidates, whole.
            side: Of a face, in pixels.
            landmarks: Whether they are drawn.

        Raises:
            Unreadable: A source is gone, has changed, or cannot be read.
            UserError: Scratch for remote sources cannot be written to, or a part is damaged.
        """
        pictures = []
        for end, crop in zip(self._ends(row), crops_of(row), strict=True):
            face = decode_image(cut(self._picture(end), crop), "crop")
            face = draw_landmarks(crop_landmarks(end, crop), face) if landmarks else face
            pictures.append(cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA))
        return np.hstack(pictures)

    def _ends(self, row: dict[str, Any]) -> Ends:
        try:
            ends = read_ends(row, self._work)
        except (FileNotFoundError, pa.ArrowIndexError) as error:
            raise Unreadable("what was seen of the source is gone") from error
        for side, end in zip(("from", "to"), ends, strict=True):
            # not the track, which may be one over several pieces (`joins`); the pose tells the faces of one frame apart
            if any(end[name] != row[f"{side}_{name}"] for name in ("frame", "pts", *AXES)):
                raise Unreadable("the source was looked at anew since")  # a part keeps its name then, and its rows may be others
        return ends

    def _picture(self, end: dict[str, Any]) -> npt.NDArray[np.uint8]:
        """The whole picture that a face was seen in."""
        name = end["source_id"]
        if name not in self.items:
            raise Unreadable("the source is not in the work list now")
        item = self.items[name]
        server = name if is_local(item.uri) else "/".join(item.uri.split("/")[:3])
        if known := self.lost.get(name) or self.lost.get(server):
            raise Unreadable(known)
        try:
            return self._read(end, item)
        except (DecodeError, MachineError, OSError, UnreadableNowError, ValueError) as error:
            told = str(error) if isinstance(error, Unreadable) else "the source can no longer be read"
            self.lost[name] = told
            self._busy[server] += passes(error)
            if self._busy[server] >= _BUSY:
                self.lost[server] = told
            raise Unreadable(told) from error

    def _read(self, end: dict[str, Any], item: WorkItem) -> npt.NDArray[np.uint8]:
        found = self._digest(item)
        if found is None:
            raise FileNotFoundError(self._hashes.unreadable[item.source_id][1])
        if found != end["source_sha256"]:
            raise Unreadable("the source has changed since")
        if end["image_uri"]:
            picture = picture_uri(item.uri, end["image_uri"])
            return decode_image(read_bytes(picture), picture)
        with staged(item.uri) as path:
            return read_frames_at(str(path), [end["pts"]])[0].image

    def _digest(self, item: WorkItem) -> str | None:
        """Of a file it is known while that does not change; a set is hashed with all its pictures, which may lie far away, once."""
        if not item.uri.endswith(".json"):
            return self._hashes.of(item)
        if item.source_id not in self._sets:
            self._sets[item.source_id] = self._hashes.of(item)
        return self._sets[item.source_id]


def draw_conflicts(conflicts: dict[str, list[str]], splits: Mapping[str, str], work: str) -> bytes:
    """A row for each new source that would tie people of different splits: a face of it, then one of each of them with its split. JPEG."""
    ledger = {row["source_id"]: row for row in read_ledger(work)}
    rows = []
    for source, others in sorted(conflicts.items())[:40]:
        said = [(source, f"would tie: {source}"), *((name, f"{splits.get(name, 'unknown')}: {name}") for name in others[:5])]
        faces = [_face_of(ledger.get(name, {"parts": []}), text, work) for name, text in said]
        rows.append(np.hstack(faces + [np.full_like(faces[0], 255)] * (6 - len(faces))))
    return cv2.imencode(".jpg", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))[1].tobytes()


def _face_of(source: dict[str, Any], text: str, work: str) -> npt.NDArray[np.uint8]:
    """The first chip of a source above a line of text; white where it has none any more."""
    face = np.full((256, 256, 3), 255, np.uint8)
    for part in source["parts"]:
        for _, chip, _ in read_chips(work, part)[:1]:
            face = chip.image().copy()
    face[232:] = 255
    cv2.putText(face, text[:36], (4, 249), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
    return face


def draw_faces(pair: FacePair, side: int) -> npt.NDArray[np.uint8]:
    """Source and target of a sample with their landmarks, side by side."""
    pictures = []
    for image, landmarks in ((pair.source_image(), pair.landmarks[0]), (pair.target_image(), pair.landmarks[1])):
        pictures.append(cv2.resize(draw_landmarks(landmarks, image), (side, side), interpolation=cv2.INTER_AREA))
    return np.hstack(pictures)


def _draw_pair(pair: FacePair) -> npt.NDArray[np.uint8]:
    caption = np.full((40, 2 * _SIDE, 3), 255, np.uint8)
    words, line = pair.meta.instruction.split(), ""
    lines: list[str] = []
    for word in words:
        if len(line) + len(word) > 62:
            lines, line = [*lines, line], ""
        line = f"{line} {word}".strip()
    for number, text in enumerate([*lines, line][:2]):
        cv2.putText(caption, text, (4, 15 + 17 * number), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
    cell = np.vstack([draw_faces(pair, _SIDE), caption])
    return cv2.copyMakeBorder(cell, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))  # type: ignore[return-value]
