"""From frames of one source to observation rows: who is in them, and which faces belong to one track. A track ends at a cut.

Frames are let go as soon as they were looked at. The detector looks every other second; between, a track's next crop is where its mesh was last, and every
model looks at each frame anew. While nobody is there, frames wait, and the last one that waits is looked at for all: where it shows a face, all are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.decoder import Frame
from data_pipeline.tracks import Track, Unread
from lato.faces import FaceReader
from lato.faces.detect import Box, Detection, face_box, within
from lato.faces.mesh import MeshObservation

_SAME_FACE_IOU = 0.3
_TWIN_IOU = 0.6
DETECT_EVERY = 10
"""Sampled frames from one look of the detector to the next; it also looks when a track is lost, and after a cut."""
GLANCES = 2
"""So many of these looks are glances, then one is whole: a face that is too small for a glance is found by that. A glance that sees anything but the
faces that are followed is followed by a whole look at once."""
EMPTY_EVERY = 5
"""While nobody is there, this many frames have one look. Who comes and goes between two looks is not seen; of who stays no frame is lost."""
_WAITING_BYTES = 128 * 1024**2
"""Of frames that wait for such a look; where it is reached the look comes sooner (four pictures of 4K have 100 MB)."""


def watch_video(frames: Iterable[Frame], reader: FaceReader, box: Box | None = None) -> tuple[list[dict[str, Any]], int]:
    """Finds and follows every face of a video.

    Args:
        frames: In order of time.
        reader: The perception models.
        box: Where faces must be; None for all faces.

    Returns:
        Rows (columns of `observations.SCHEMA` but the source's own), and the number of frames seen.
    """
    watch = _Watch(reader, box)
    waiting: list[Frame] = []
    count = 0
    for frame in frames:
        count += 1
        if waiting and frame.shot != waiting[-1].shot:
            watch.look_at_all_or_none(waiting)
        if not watch.expects_nobody(frame):
            watch.look(frame)
            continue
        waiting.append(frame)
        if len(waiting) == EMPTY_EVERY or sum(one.image.nbytes for one in waiting) >= _WAITING_BYTES:
            watch.look_at_all_or_none(waiting)
    watch.look_at_all_or_none(waiting)
    return [row for track in watch.tracks for row in track.describe()], count


def watch_images(
    images: Iterable[tuple[Frame, str, str | None]], reader: FaceReader, box: Box | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Reads the largest face (that the box allows) of every image of a set; the set is one track. Images come with their uri and what is declared of them."""
    track, count = Track(0, Unread()), 0
    for frame, uri, declared in images:
        count += 1
        for detection in within(reader.detector.detect(frame.image), frame.image, box)[:1]:
            mesh = reader.mesh.settle(frame.image, detection)
            if mesh is not None:
                track.see(frame, detection, mesh, detection.score, uri, declared)
    return track.describe() if track.rows else [], count


class _Watch:
    """Who is followed, from frame to frame."""

    def __init__(self, reader: FaceReader, box: Box | None) -> None:
        self._reader, self._box = reader, box
        self.tracks: list[Track] = []
        self._alive: list[Track] = []
        self._unread = Unread()
        self._shot, self._since, self._glances = -1, DETECT_EVERY, 0

    def expects_nobody(self, frame: Frame) -> bool:
        """Whether the last look at its shot found nobody."""
        return frame.shot == self._shot and not self._alive

    def look_at_all_or_none(self, waiting: list[Frame]) -> None:
        """At frames of a shot in which nobody was: where the last shows somebody, at each of them. None waits any more then."""
        if waiting and self._find(waiting[-1]):
            for frame in waiting:
                self.look(frame)
        waiting.clear()

    def look(self, frame: Frame) -> None:
        """Takes in one frame."""
        if frame.shot != self._shot:  # no track goes on over a cut
            self._alive, self._shot = [], frame.shot
        seen = [track.last for track in self._alive if track.last is not None]
        if seen and self._since >= DETECT_EVERY:
            seen = self._glance(frame, seen) if self._glances < GLANCES else []
            self._glances += 1
            self._since = 0
        followed = self._follow(frame) if seen else None
        if followed is None:
            self._alive = self._detect(frame)
            self._since, self._glances = 1, 0
            return
        for (track, mesh), where in zip(followed, seen, strict=True):
            track.see(frame, where, mesh, where.score, None, None)
        self._since += 1

    def _find(self, frame: Frame) -> list[Detection]:
        """All faces that the source's box allows."""
        return within(self._reader.detector.detect(frame.image), frame.image, self._box)

    def _follow(self, frame: Frame) -> list[tuple[Track, MeshObservation]] | None:
        """The next mesh of every track where it was last; None if one is lost or two have met: then the detector must look."""
        found: list[tuple[Track, MeshObservation]] = []
        for track in self._alive:
            assert track.last is not None, "a track that is alive was seen"
            mesh = self._reader.mesh.settle(frame.image, track.last)
            if mesh is None or _iou(face_box(mesh.landmarks68), track.last.box) < _SAME_FACE_IOU:
                return None
            if any(_iou(face_box(mesh.landmarks68), face_box(other.landmarks68)) > _TWIN_IOU for _, other in found):
                return None
            found.append((track, mesh))
        return found

    def _glance(self, frame: Frame, known: list[Detection]) -> list[Detection]:
        """The detections of a glance, in the order of the faces that are followed, by where those were last; none where it sees others, or fewer."""
        found = within(self._reader.detector.glance(frame.image), frame.image, self._box)
        matched = [max(found, key=lambda one: _iou(one.box, last.box), default=last) for last in known]
        alike = all(_iou(one.box, last.box) >= _SAME_FACE_IOU for one, last in zip(matched, known, strict=True))
        return matched if alike and len(found) == len(known) == len({id(one) for one in matched}) else []

    def _detect(self, frame: Frame) -> list[Track]:
        """Looks for all faces and gives each to the track that was there, or to a new one."""
        continued: list[Track] = []
        for detection in self._find(frame):
            mesh = self._reader.mesh.settle(frame.image, detection)
            if mesh is None:
                continue
            face = face_box(mesh.landmarks68)
            if any(_iou(face, track.last.box) > _TWIN_IOU for track in continued if track.last is not None):
                continue
            scored = [(_iou(face, track.last.box), -track.number, track) for track in self._alive if track not in continued and track.last]
            overlap, _, track = max(scored, default=(0.0, 0, None), key=lambda entry: entry[:2])
            if track is None or overlap < _SAME_FACE_IOU:
                track = Track(len(self.tracks), self._unread)
                self.tracks.append(track)
            track.see(frame, detection, mesh, detection.score, None, None)
            continued.append(track)
        return continued


def _iou(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    extent = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    shared = float(extent.prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared + 1e-9)
