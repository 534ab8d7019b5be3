"""FacePair: the one definition of a training sample, and how it lies in a WebDataset shard.

A sample is four members: `<key>.source.jpg`, `<key>.target.jpg` (square crops, 512 x 512; two faces of one source share theirs), `<key>.landmarks.npy`
float32 `(2, 68, 2)` on the 512 canvas (source, target), and `<key>.json` (`PairMeta`).
"""

from __future__ import annotations

import io
import json
import re
import threading
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from lato.edits import Edit, Expression, Rewriting
from lato.landmarks import Landmarks, validate_landmarks

MEMBERS = ("json", "landmarks.npy", "source.jpg", "target.jpg")
"""Members of every sample, in the order in which they lie in the tar."""
_ONE_PARSES = threading.Lock()

Split = Literal["train", "val", "test"]

_KEY = re.compile(r"[a-z0-9_]+")


class FaceState(BaseModel):
    """Pose and expression of one of the two faces, as measured. Angles in degrees, signs as in docs/architecture.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    yaw: float
    pitch: float
    roll: float
    expression: Expression
    expression_intensity: float
    frame: int
    """Its number in its source: of a video its time in the stream's own ticks, of a set its place."""
    pts: float


class Provenance(BaseModel):
    """Where a pair comes from and what made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_id: str
    source_sha256: str
    kind: Literal["video", "image", "synthetic"]
    identity: str
    licence: str
    scope: Literal["same_track", "same_person"]
    models: dict[str, str]
    """Perception model name -> sha256."""
    consent: str | None = None
    """As the work list has it; None in samples of older versions."""
    url: str | None = None
    """Where it was published, where that is known."""
    target_id: str | None = None
    """These five say the same of the target, where it is of another source."""
    target_sha256: str | None = None
    target_licence: str | None = None
    target_consent: str | None = None
    target_url: str | None = None


class PairMeta(BaseModel):
    """Everything about a pair that is not pixels or coordinates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instruction: str
    template: str
    """Ids of the templates it was written with."""
    edit: Edit
    source: FaceState
    target: FaceState
    identity_similarity: float | None
    quality: dict[str, float]
    crop: tuple[float, float, float]
    """The square crop in pixels of the source's picture: left, top, side. Canvas = (pixel - (left, top)) * 512 / side. The target's picture is cut by the same,
    unless `target_crop` says otherwise."""
    split: Split
    provenance: Provenance
    reasoning: str | None = None
    """Chain of thought for the landmark predictor, where one was written."""
    template_seed: str | None = None
    """What templates and words were drawn by; None in samples of older versions."""
    rewriting: Rewriting | None = None
    """By which model the template's text was rewritten, and how it was asked; None where it stands as it was written."""
    target_crop: tuple[float, float, float] | None = Field(default=None, exclude_if=lambda value: value is None)
    """The target's own crop, in pixels of its picture, where each is cut by its own eyes (scope same_person); samples of older versions lack it."""


@dataclass(frozen=True)
class FacePair:
    """A source face, the same face edited, their landmarks and the instruction that leads from one to the other."""

    key: str
    source_jpg: bytes
    target_jpg: bytes
    landmarks: Landmarks
    meta: PairMeta

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"key: expected [a-z0-9_]+ (WebDataset splits names at dots), given {self.key!r}")
        if self.landmarks.shape != (2, 68, 2):
            raise ValueError(f"{self.key}: landmarks: expected shape (2, 68, 2), given {self.landmarks.shape}")
        validate_landmarks(self.landmarks, f"{self.key}: landmarks")

    def source_image(self) -> npt.NDArray[np.uint8]:
        """The source, `(512, 512, 3)` RGB."""
        return decode_image(self.source_jpg, f"{self.key}.source.jpg")

    def target_image(self) -> npt.NDArray[np.uint8]:
        """The target, `(512, 512, 3)` RGB."""
        return decode_image(self.target_jpg, f"{self.key}.target.jpg")


def decode_image(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """JPEG or PNG bytes -> `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: The bytes are not an image, or one of more pixels than OpenCV reads; names it.
        MemoryError: There is none left for it.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"{name}: {error.err}") from error
        if "CV_IO_MAX_IMAGE" in error.err:  # asked of the header, before a pixel is decoded
            raise ValueError(f"{name}: cannot be read as an image: it claims more pixels than are ever decoded ({error.err})") from error
        raise ValueError(f"{name}: cannot be read as an image: {error.err}") from error
    if image is None:
        raise ValueError(f"{name}: {len(data)} bytes that are not a readable image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def encode_pair(pair: FacePair) -> dict[str, bytes]:
    """The members of a sample by name (`MEMBERS`), as they are written. Equal pairs give equal bytes."""
    array = io.BytesIO()
    np.save(array, np.ascontiguousarray(pair.landmarks, dtype="<f4"), allow_pickle=False)
    meta = json.dumps(pair.meta.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    members = {
        "json": meta.encode(),
        "landmarks.npy": array.getvalue(),
        "source.jpg": pair.source_jpg,
        "target.jpg": pair.target_jpg,
    }
    return {name: members[name] for name in MEMBERS}


def read_npy(data: bytes) -> npt.NDArray[Any]:
    """The array of a `.npy` file, in one thread at a time: numpy parses its header as Python, and in CPython 3.11 a thread that does so while another does
    may end in `SystemError: AST constructor recursion depth mismatch`.

    Raises:
        ValueError: It is none, or holds objects.
        EOFError: It is empty.
    """
    with _ONE_PARSES:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def decode_pair(key: str, members: dict[str, Any]) -> FacePair:
    """Rebuilds a pair from its members' bytes (a WebDataset sample without its dunder keys will do).

    Raises:
        ValueError: A member is missing or unreadable; names the sample and the member.
    """
    missing = [name for name in MEMBERS if name not in members]
    if missing:
        raise ValueError(f"sample {key}: expected members {', '.join(MEMBERS)}, missing {', '.join(missing)}")
    try:
        landmarks = read_npy(members["landmarks.npy"])
    except (ValueError, EOFError) as error:
        raise ValueError(f"sample {key}: landmarks.npy: {error}") from error
    try:
        meta = PairMeta.model_validate_json(members["json"])
    except ValueError as error:
        raise ValueError(f"sample {key}: json: {error}") from error
    return FacePair(key, members["source.jpg"], members["target.jpg"], landmarks.astype(np.float32), meta)
