"""From frames of one source to observation rows: faces, tracks that end at cuts, expression against the person's own rest, representatives."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.decode import Frame
from lato.faces import FaceReader
from lato.faces.detect import Detection
from lato.faces.expression import classify, estimate_neutral
from lato.faces.mesh import MeshObservation
from lato.faces.quality import measure

_SAME_FACE_IOU = 0.3
REPRESENTATIVES = 3
"""At most this many observations a pose bin and expression of a track go on to pairing."""
_POSE_BIN = 10.0


@dataclass
class Sighting:
    """One face in one frame."""

    frame: Frame
    detection: Detection
    mesh: MeshObservation
    track: int
    declared: str | None = None
    image_uri: str | None = None
    row: dict[str, Any] = field(default_factory=dict)


def watch_video(
    frames: Iterable[Frame], reader: FaceReader, box: tuple[float, float, float, float] | None = None
) -> tuple[list[Sighting], int]:
    """Finds and follows every face of a video.

    Args:
        frames: In order of time.
        reader: The perception models.
        box: Shares of the picture within which the centre of a face must lie; None for all faces.

    Returns:
        Sightings, and the number of frames seen.
    """
    sightings: list[Sighting] = []
    open_tracks: dict[int, Detection] = {}
    next_track = count = shot = 0
    for frame in frames:
        count += 1
        if frame.shot != shot:  # no track goes on over a cut
            open_tracks, shot = {}, frame.shot
        continued: dict[int, Detection] = {}
        for detection in reader.detector.detect(frame.image):
            observation = reader.mesh.observe(frame.image, detection) if box is None or _lies_in(detection, frame.image, box) else None
            if observation is None:
                continue
            track = _best_track(detection, {k: v for k, v in open_tracks.items() if k not in continued})
            if track is None:
                track, next_track = next_track, next_track + 1
            continued[track] = detection
            sightings.append(Sighting(frame, detection, observation, track))
        open_tracks = continued
    return sightings, count


def watch_images(images: Iterable[tuple[Frame, str, str | None]], reader: FaceReader) -> tuple[list[Sighting], int]:
    """Reads the largest face of every image of a set; the set is one track. Images come with their uri and what is declared of them."""
    sightings, count = [], 0
    for frame, uri, declared in images:
        count += 1
        for detection in reader.detector.detect(frame.image)[:1]:
            observation = reader.mesh.observe(frame.image, detection)
            if observation is not None:
                sightings.append(Sighting(frame, detection, observation, 0, declared, uri))
    return sightings, count


def describe(sightings: list[Sighting], reader: FaceReader) -> list[dict[str, Any]]:
    """Rows of all sightings (columns of `observations.SCHEMA` but the source's own), representatives with identity and quality."""
    tracks: dict[int, list[Sighting]] = defaultdict(list)
    for sighting in sightings:
        tracks[sighting.track].append(sighting)
    for track in tracks.values():
        neutral = _neutral_of(track)
        for sighting in track:
            sighting.row = _row(sighting, neutral)
        _choose_representatives(track, reader)
    return [sighting.row for sighting in sightings]


def _neutral_of(track: list[Sighting]) -> npt.NDArray[np.float32]:
    declared = [s.mesh.blendshapes for s in track if s.declared and json.loads(s.declared)["expression"] == "neutral"]
    return np.mean(declared, axis=0) if declared else estimate_neutral(np.stack([s.mesh.blendshapes for s in track]))


def _row(sighting: Sighting, neutral: npt.NDArray[np.float32]) -> dict[str, Any]:
    mesh, detection, image = sighting.mesh, sighting.detection, sighting.frame.image
    reading = classify(mesh.blendshapes, neutral)
    return {
        "track": sighting.track,
        "frame": sighting.frame.index,
        "pts": sighting.frame.pts,
        "image_uri": sighting.image_uri,
        "width": image.shape[1],
        "height": image.shape[0],
        "detection_score": detection.score,
        "box": detection.box.tolist(),
        "points5": detection.points5.reshape(-1).tolist(),
        "landmarks": mesh.landmarks68.reshape(-1).tolist(),
        "blendshapes": mesh.blendshapes.tolist(),
        "yaw": mesh.yaw,
        "pitch": mesh.pitch,
        "roll": mesh.roll,
        "expression": reading.label.value,
        "expression_intensity": reading.intensity,
        "expression_scores": reading.scores.tolist(),
        "representative": False,
        "declared": sighting.declared,
    }


def _choose_representatives(track: list[Sighting], reader: FaceReader) -> None:
    bins: dict[tuple[Any, ...], list[Sighting]] = defaultdict(list)
    for sighting in track:
        pose = tuple(round(getattr(sighting.mesh, axis) / _POSE_BIN) for axis in ("yaw", "pitch", "roll"))
        declared = sighting.declared or ""  # declared pictures are few and each is wanted
        bins[(*pose, sighting.row["expression"], declared)].append(sighting)
    for group in bins.values():
        group.sort(key=lambda s: (-s.detection.score, s.frame.pts))
        for sighting in group[:REPRESENTATIVES]:
            quality = measure(sighting.frame.image, sighting.detection, sighting.mesh.landmarks68)
            embedding = reader.embedder.embed(sighting.frame.image, sighting.detection.points5)
            sighting.row |= {"representative": True, "embedding": embedding.tolist(), **quality.__dict__}


def _lies_in(detection: Detection, image: npt.NDArray[np.uint8], box: tuple[float, float, float, float]) -> bool:
    centre = (detection.box[:2] + detection.box[2:]) / 2 / [image.shape[1], image.shape[0]]
    return bool(box[0] <= centre[0] <= box[2] and box[1] <= centre[1] <= box[3])


def _best_track(detection: Detection, tracks: dict[int, Detection]) -> int | None:
    scored = [(_iou(detection.box, other.box), -track) for track, other in tracks.items()]
    best = max(scored, default=(0.0, 0))
    return -best[1] if best[0] >= _SAME_FACE_IOU else None


def _iou(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    extent = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = float(extent.prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared + 1e-9)
