"""Render: the crops of accepted pairs, each stored once under what it is made of. Grouped by source, so that each video is opened once."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from data_pipeline.decoder import PERHAPS_THE_MACHINE, DecodeError, Decoder
from data_pipeline.image_set import content_digests, picture_uri
from data_pipeline.places import crops as crops_place
from data_pipeline.seek import Seeker, frames_at
from data_pipeline.sources import is_gone, naming
from data_pipeline.staging import staged
from infra.addresses import is_local, join
from infra.config import Config
from infra.console import Progress
from infra.pool import run_all
from infra.storage import commit, file_names, read_bytes, sha256_bytes, sha256_file, sha256_json
from lato.landmarks import CANVAS, Landmarks
from lato.pairs import decode_image

SIZE = int(CANVAS.width)
_QUALITY = 92
VERSION = 3
"""Raise it when the pixels of a crop change."""
_BUNDLE = 30


class RenderConfig(Config):
    """How crops are cut."""

    seeker: Seeker = "pyav"
    """Library that seeks in videos; decord gives another frame in some of them (docs/decisions.md, Decoders)."""


def crop_name(row: dict[str, Any], crop: tuple[float, float, float], seeker: Seeker) -> str:
    """File name of a crop: the digest of all that its pixels depend on."""
    made_of = [VERSION, row["source_sha256"], row["frame"], round(row["pts"], 6), crop, SIZE, "jpeg", _QUALITY, seeker]
    return sha256_json(made_of) + ".jpg"


def crop_landmarks(row: dict[str, Any], crop: tuple[float, float, float]) -> Landmarks:
    """Landmarks of an observation on the canvas of its crop, (68, 2)."""
    points = np.asarray(row["landmarks"], np.float64).reshape(68, 2)
    return ((points - crop[:2]) * (SIZE / crop[2])).astype(np.float32)


class Crop(NamedTuple):
    """A crop to be made."""

    source_id: str
    source_sha256: str
    name: str
    image_uri: str | None
    """Where its picture lay when it was looked at: `picture_uri` says where it lies now. None of a video."""
    pts: float
    square: tuple[float, float, float]
    """Left, top, side in image pixels."""


Pictures = Iterator[tuple[npt.NDArray[np.uint8], list[Crop]]]
"""Pictures of a source, each once, and what is cut of it."""


def render_crops(crops: Iterable[Crop], uris: dict[str, str], work: str, workers: int, config: RenderConfig) -> dict[str, str]:
    """Makes the crops that are not there yet.

    Args:
        crops: Of accepted pairs.
        uris: Source id -> uri.
        work: The build's folder.
        workers: Ray actors; 0 works here.
        config: How they are cut.

    Returns:
        Source id -> why its crops could not be made, for those: its source is gone, changed or can no longer be read.

    Raises:
        UnreadableNowError: A source cannot be read, and it is the machine's fault, or that of a server that stays busy.
    """
    have = set(file_names(join(work, "renders"), ".jpg"))
    todo: dict[str, list[Crop]] = defaultdict(list)
    for crop in crops:
        if crop.name not in have:
            todo[crop.source_id].append(crop)
    names = sorted(todo)
    bundles = [names[start : start + _BUNDLE] for start in range(0, len(names), _BUNDLE)]
    jobs = [[(uris[name], todo[name]) for name in bundle] for bundle in bundles]
    progress = Progress("render", len(names), "sources")
    failed: dict[str, str] = {}
    for done in run_all(functools.partial(_Worker, work, config.seeker), jobs, workers, crops_place()):
        failed |= done.result
        progress.advance(len(done.job))
    return failed


class _Worker:
    def __init__(self, work: str, seeker: Seeker) -> None:
        cv2.setNumThreads(1)
        self._work, self._seeker = work, seeker
        self._decoder = Decoder()

    def run(self, sources: list[tuple[str, list[Crop]]]) -> dict[str, str]:
        """Makes the crops of some sources; returns why not, by source."""
        failed = {}
        with self._decoder:
            for uri, crops in sources:
                try:
                    self._render(uri, crops)
                except (DecodeError, OSError, ValueError) as error:
                    if isinstance(error, OSError) and not is_gone(error):
                        raise
                    failed[crops[0].source_id] = f"{type(error).__name__}: {error}"
        return failed

    def _render(self, uri: str, crops: list[Crop]) -> None:
        try:
            _render_source(uri, crops, self._work, self._decoder, self._seeker)
        except DecodeError as error:
            if error.kind not in PERHAPS_THE_MACHINE:
                raise
            _render_source(uri, crops, self._work, self._decoder, self._seeker)  # once may be the machine's doing


def _render_source(uri: str, crops: list[Crop], work: str, decoder: Decoder, seeker: Seeker) -> None:
    """One opening of the source for all its crops, one picture held at a time; a source that is no longer what was looked at gives none."""
    of_video = crops[0].image_uri is None
    for image, of_image in _read_frames(uri, crops, decoder, seeker) if of_video else _read_images(uri, crops):
        for crop in of_image:
            commit(join(work, "renders", crop.name), cut(image, crop.square), exclusive=True)


def _read_images(uri: str, crops: list[Crop]) -> Pictures:
    """What is cut are the bytes that were hashed: a picture that another took the place of meanwhile gives none."""
    wanted: dict[str, list[Crop]] = defaultdict(list)
    for crop in crops:
        assert crop.image_uri is not None, "of a source all are pictures, or none is"
        wanted[picture_uri(uri, crop.image_uri)].append(crop)
    digests: dict[str, str] = {}
    with naming(uri):
        if uri.endswith(".json"):  # of one picture the bytes that are read are all that there is to hash
            content, digests = content_digests(uri)
            _check_content(content, crops[0].source_sha256, uri)
        for image_uri, of_image in wanted.items():
            data = read_bytes(image_uri)
            _check_content(sha256_bytes(data), digests.get(image_uri.rsplit("/", 1)[-1], crops[0].source_sha256), image_uri)
            yield decode_image(data, image_uri), of_image


def _read_frames(uri: str, crops: list[Crop], decoder: Decoder, seeker: Seeker) -> Pictures:
    """A file of this machine that changes while it is read is hashed again: one that was only touched, or copied to its place anew, is no other."""
    wanted: dict[float, list[Crop]] = defaultdict(list)
    for crop in crops:
        wanted[crop.pts].append(crop)
    content = crops[0].source_sha256
    with naming(uri), staged(uri) as path:
        state = _state(path)
        _check_content(sha256_file(str(path)), content, uri)
        for frame in frames_at(str(path), list(wanted), decoder, seeker):
            if is_local(uri) and _state(path) != state:  # a copy in scratch is nobody else's to change
                state = _state(path)
                if sha256_file(str(path)) != content:
                    raise ValueError(f"{uri} changed while it was cut")
            yield frame.image, wanted[frame.pts]


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does: a crop stands under its content's name for good, so that none may be of another."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check_content(found: str, wanted: str, uri: str) -> None:
    if found != wanted:
        raise ValueError(f"{uri} changed after it was looked at (sha256 {found[:12]}, was {wanted[:12]})")


def cut(image: npt.NDArray[np.uint8], crop: tuple[float, float, float]) -> bytes:
    """The crop of an RGB image as a `SIZE` x `SIZE` JPEG; what lies outside the frame repeats its edge."""
    left, top, side = crop
    scale = SIZE / side
    if scale < 0.7:  # a large crop: average before sampling
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        left, top, scale = left * scale, top * scale, 1.0
    matrix = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]], np.float64)
    picture = cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
