"""Perception on real photos and clips, and on synthetic people with known answers."""

import numpy as np
import pytest

from lato.edits import Expression
from lato.faces import FaceReader
from lato.faces.detect import Detection
from lato.faces.expression import EXPRESSIONS, classify, estimate_neutral, progress_along
from lato.faces.identity import similarity
from lato.pairs import decode_image


def photo(path):
    return decode_image(open(path, "rb").read(), path)


def test_all_six_faces_of_a_group_photo(reader, clip):
    image = photo(clip("t1"))
    found = reader.detector.detect(image)
    assert len(found) == 6
    for detection in found:
        mesh = reader.mesh.settle(image, detection)
        assert mesh is not None
        eyes = detection.points5[:2].mean(0)
        # landmarks sit on the face: the mesh's eyes are where the detector saw them
        assert np.linalg.norm(mesh.landmarks68[36:48].mean(0) - eyes) < 0.1 * detection.size


def test_a_face_reads_the_same_whoever_said_where_it_is(reader, clip):
    """A detector's small errors, and the place of a moment ago: one look differs with them, the settled reading does not."""
    image = photo(clip("obama"))
    found = reader.detector.detect(image)[0]
    shifts = [(0.0, 0.0, 1.0), (0.04, 0.0, 1.0), (-0.04, 0.03, 1.0), (0.0, -0.04, 1.05), (0.02, 0.02, 0.94), (-0.03, -0.03, 1.3)]
    once, settled = [], []
    for right, down, grown in shifts:
        centre, half = (found.box[:2] + found.box[2:]) / 2, (found.box[2:] - found.box[:2]) / 2 * grown
        centre = centre + found.size * np.array([right, down], np.float32)
        moved = Detection(np.concatenate([centre - half, centre + half]), found.score, found.points5)
        once.append(reader.mesh.observe(image, moved))
        settled.append(reader.mesh.settle(image, moved))
    assert all((mesh.landmarks68 == settled[0].landmarks68).all() for mesh in settled)
    assert all((mesh.blendshapes == settled[0].blendshapes).all() for mesh in settled)
    assert any((mesh.landmarks68 != once[0].landmarks68).any() for mesh in once)


def test_one_person_is_alike_and_another_is_not(reader, clip):
    obama, obama2, biden = (reader.read(photo(clip(name))).embedding for name in ("obama", "obama2", "biden"))
    assert similarity(obama, obama2) > reader.embedder.threshold > similarity(obama, biden)
    assert np.linalg.norm(obama) == pytest.approx(1)


@pytest.mark.parametrize(("axis", "value"), [("yaw", 30), ("yaw", -30), ("pitch", 30), ("pitch", -30), ("roll", 30), ("roll", -30)])
def test_pose_signs(reader, person, axis, value):
    draw = person(1)
    rest, turned = (reader.read(draw(**pose)).mesh for pose in ({}, {axis: value}))
    assert abs(getattr(turned, axis) - getattr(rest, axis) - value) < 16
    nose = turned.landmarks68[30] - rest.landmarks68[30]
    if axis == "yaw":
        assert np.sign(nose[0]) == np.sign(value)  # turned to image right, the nose goes right
    if axis == "pitch":
        assert np.sign(nose[1]) == -np.sign(value)  # looking up, it goes up


def test_expressions_are_read_against_the_persons_own_rest(reader, person):
    right, progress = 0, []
    for seed in range(6):
        draw = person(seed)
        rest = reader.read(draw()).mesh.blendshapes
        assert classify(rest, rest).label is Expression.NEUTRAL
        for expression in EXPRESSIONS[1:]:
            seen = reader.read(draw(expression, "strongly")).mesh.blendshapes
            right += classify(seen, rest).label is expression
            progress.append(progress_along(expression, seen - rest))
    assert right >= 31  # of 36
    assert np.mean(progress) > 0.7  # 1 is the mean strong expression
    assert min(progress) > 0  # brows of some people are up at rest already


def test_a_tracks_rest_is_its_calm_frames():
    frames = np.zeros((10, 52), np.float32)
    frames[3:, 44] = 0.9
    assert estimate_neutral(frames)[44] == 0


def test_the_moment_before_a_smile_is_not_rest():
    """Pressed lips are at work at rest; they part before the corners rise, so that the least active frame is neither."""
    frames = np.zeros((12, 52), np.float32)
    frames[:, 3:8] = 0.4
    frames[:3, 38] = 0.45
    frames[3, 44:46] = 0.2
    frames[4:, 44:46] = 0.9
    rest = estimate_neutral(frames)
    assert rest[38] == pytest.approx(0.45) and rest[44] == 0
    assert [classify(frame, rest).label for frame in (frames[0], frames[8])] == [Expression.NEUTRAL, Expression.HAPPY]


def test_a_picture_without_a_face_is_none(reader):
    assert reader.read(np.full((300, 400, 3), 127, np.uint8)) is None


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="face detector: no file at"):
        FaceReader.from_folder(tmp_path)
