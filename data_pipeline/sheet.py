"""A contact sheet of samples: source and target with their landmarks, the instruction below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data_pipeline.ledger import read_ledger
from data_pipeline.observations import read_chips
from data_pipeline.pairing import crops_of
from data_pipeline.published import read_members
from data_pipeline.render import crop_landmarks, cut
from data_pipeline.samples import read_ends
from data_pipeline.seek import read_frames_at
from data_pipeline.staging import staged
from infra.storage import read_bytes
from lato.landmarks import draw_landmarks
from lato.pairs import FacePair, decode_image, decode_pair

_SIDE = 224


def read_samples(folder: str, rows: Iterable[dict[str, Any]]) -> list[FacePair]:
    """Reads samples of a version by their manifest rows, each by its byte offsets."""
    return [decode_pair(str(row["key"]), read_members(folder, row)) for row in rows]


def draw_sheet(pairs: list[FacePair], columns: int = 4) -> npt.NDArray[np.uint8]:
    """The sheet as an RGB image: `columns` pairs a row."""
    cells = [_draw_pair(pair) for pair in pairs]
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])


def draw_candidate(row: dict[str, Any], uris: dict[str, str], work: str, side: int, landmarks: bool = True) -> npt.NDArray[np.uint8]:
    """Source and target of any judged pair with their landmarks, if asked, side by side, read from the sources.

    Raises:
        DecodeError, FileNotFoundError, ValueError: A source can no longer be read.
    """
    pictures = []
    for end, crop in zip(read_ends([row], work)[row["key"]], crops_of(row), strict=True):
        if end["image_uri"]:
            image = decode_image(read_bytes(end["image_uri"]), end["image_uri"])
        else:
            with staged(uris[end["source_id"]]) as path:
                image = read_frames_at(str(path), [end["pts"]])[0].image
        face = decode_image(cut(image, crop), "crop")
        face = draw_landmarks(crop_landmarks(end, crop), face) if landmarks else face
        pictures.append(cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA))
    return np.hstack(pictures)


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
