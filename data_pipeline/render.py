"""Render: the crops of accepted pairs, each stored once under what it is made of. Grouped by source, so that each video is opened once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data_pipeline.decode import DecodeError, read_frames_at
from data_pipeline.pairing import Candidate
from infra.console import Progress
from infra.storage import commit, exists, join, read_bytes, sha256_json
from lato.landmarks import CANVAS, Landmarks
from lato.pairs import decode_image

SIZE = int(CANVAS.width)
_QUALITY = 92
VERSION = 1
"""Raise it when the pixels of a crop change."""
_BUNDLE = 40


def crop_name(row: dict[str, Any], crop: tuple[float, float, float]) -> str:
    """File name of a crop: the digest of all that its pixels depend on."""
    made_of = [VERSION, row["source_sha256"], row["frame"], round(row["pts"], 6), crop, SIZE, "jpeg", _QUALITY]
    return sha256_json(made_of) + ".jpg"


def crop_landmarks(row: dict[str, Any], crop: tuple[float, float, float]) -> Landmarks:
    """Landmarks of an observation on the canvas of its crop, (68, 2)."""
    points = np.asarray(row["landmarks"], np.float64).reshape(68, 2)
    return ((points - crop[:2]) * (SIZE / crop[2])).astype(np.float32)


def render_crops(candidates: Iterable[Candidate], uris: dict[str, str], work: str) -> dict[str, str]:
    """Makes the crops that are not there yet, on Ray.

    Args:
        candidates: Accepted pairs.
        uris: Source id -> uri of videos.
        work: The build's folder.

    Returns:
        Source id -> why its crops could not be made, for those.
    """
    import ray

    jobs: dict[str, dict[str, tuple[Any, ...]]] = defaultdict(dict)
    for candidate in candidates:
        for row, crop in ((candidate.source, candidate.crops[0]), (candidate.target, candidate.crops[1])):
            name = crop_name(row, crop)
            jobs[row["source_id"]][name] = (name, row["image_uri"], row["pts"], crop)
    todo = {}
    for source_id, crops in jobs.items():
        missing = [crop for name, crop in crops.items() if not exists(join(work, "renders", name))]
        if missing:
            todo[source_id] = missing
    names = sorted(todo)
    progress = Progress("render", len(names), "sources")
    task = ray.remote(num_cpus=1, max_retries=1)(_render_sources)
    bundles = [names[start : start + _BUNDLE] for start in range(0, len(names), _BUNDLE)]
    waiting = {task.remote([(name, uris[name], todo[name]) for name in bundle], work): bundle for bundle in bundles}
    failed: dict[str, str] = {}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        bundle = waiting.pop(ready[0])
        failed |= ray.get(ready[0])
        progress.advance(len(bundle))
    return failed


def _render_sources(sources: list[tuple[str, str, list[tuple[Any, ...]]]], work: str) -> dict[str, str]:
    cv2.setNumThreads(1)
    failed = {}
    for source_id, uri, crops in sources:
        try:
            _render_source(uri, crops, work)
        except (DecodeError, FileNotFoundError, ValueError) as error:
            failed[source_id] = f"{type(error).__name__}: {error}"
    return failed


def _render_source(uri: str, crops: list[tuple[Any, ...]], work: str) -> None:
    images: dict[Any, npt.NDArray[np.uint8]] = {}
    times = sorted({pts for _, image_uri, pts, _ in crops if image_uri is None})
    if times:
        images = {("pts", time): frame.image for time, frame in zip(times, read_frames_at(uri, times), strict=True)}
    for name, image_uri, pts, crop in crops:
        image = decode_image(read_bytes(image_uri), image_uri) if image_uri else images[("pts", pts)]
        commit(join(work, "renders", name), cut(image, crop), exclusive=True)


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
