"""Faces that come into a shot, and faces that wait for their chip: what looking less must not change."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline import perceive, tracks
from data_pipeline.chips import SIDE, chip_of, cut_chip, cut_piece
from data_pipeline.decoder import Frame
from data_pipeline.perceive import DETECT_EVERY, EMPTY_EVERY, GLANCES, watch_video
from lato.faces.quality import measure
from lato.pairs import decode_image

WIDE = 1280
"""Pixels; a glance shows an eighth of them."""


def photo_of(path):
    return decode_image(Path(path).read_bytes(), path)


@pytest.fixture(scope="module")
def portrait(clip, reader):
    """`portrait(name, face_px)` -> the photo, its face so large."""

    def make(name, face_px):
        photo = photo_of(clip(name))
        scale = face_px / reader.detector.detect(photo)[0].size
        return cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)

    return make


def scene(*portraits):
    """A grey picture with portraits beside each other."""
    picture = np.full((WIDE * 9 // 16, WIDE, 3), 110, np.uint8)
    for number, portrait in enumerate(portraits):
        height, width = min(portrait.shape[0], picture.shape[0]), min(portrait.shape[1], WIDE // 2)
        left = (portrait.shape[1] - width) // 2
        picture[:height, number * WIDE // 2 : number * WIDE // 2 + width] = portrait[:height, left : left + width]
    return picture


def watch(pictures, reader, box=None):
    """First frame of each track, and its frames."""
    rows, _ = watch_video((Frame(number, number / 5, picture) for number, picture in enumerate(pictures)), reader, box)
    found = {}
    for row in rows:
        found.setdefault(row["track"], []).append(row["frame"])
    return rows, [(frames[0], len(frames)) for frames in found.values()]


@pytest.mark.parametrize(("face_px", "looks"), [(150, 1), (90, GLANCES + 1)])
def test_who_walks_in_during_a_shot_is_seen_at_the_next_look(reader, portrait, face_px, looks):
    """A face of 144 px and more at a glance; a smaller one when the look is a whole one. The first one's track goes on."""
    alone, both = scene(portrait("obama", 200)), scene(portrait("obama", 200), portrait("biden", face_px))
    since, until = 3, looks * DETECT_EVERY
    found = watch([alone] * since + [both] * (until - since + 2), reader)[1]
    assert found == [(0, until + 2), (until, 2)]


def test_outside_the_box_of_a_source_nobody_is_seen(reader, portrait):
    both = scene(portrait("obama", 200), portrait("biden", 200))
    assert watch([both] * (DETECT_EVERY + 2), reader, (0.0, 0.0, 0.5, 1.0))[1] == [(0, DETECT_EVERY + 2)]


def test_a_face_that_is_gone_ends_its_track_and_the_other_goes_on(reader, portrait):
    both, alone = scene(portrait("obama", 200), portrait("biden", 200)), scene(portrait("obama", 200))
    assert sorted(watch([both] * 4 + [alone] * (DETECT_EVERY + 1), reader)[1]) == [(0, 4), (0, DETECT_EVERY + 5)]


@pytest.fixture
def looks(reader, monkeypatch):
    """How often the detector looked."""
    looks = []
    detect = reader.detector.detect
    monkeypatch.setattr(reader.detector, "detect", lambda image: (looks.append(None), detect(image))[1])
    return looks


@pytest.mark.parametrize("empty", range(EMPTY_EVERY, 2 * EMPTY_EVERY))
def test_of_who_comes_into_an_empty_picture_no_frame_is_lost(reader, portrait, empty):
    """Wherever the look falls, also where the video ends before it."""
    nobody, somebody = scene(), scene(portrait("obama", 200))
    assert watch([nobody] * empty + [somebody] * 2, reader)[1] == [(empty, 2)]


def test_while_nobody_is_there_few_looks_are_enough(reader, looks):
    assert watch([scene()] * (1 + 3 * EMPTY_EVERY), reader)[1] == []
    assert len(looks) == 1 + 3


def test_who_is_there_at_the_end_of_an_empty_shot_is_found(reader, portrait):
    """A cut, or the end, comes before the look; the next shot begins with one."""
    nobody, somebody = scene(), scene(portrait("obama", 200))
    pictures = [nobody, nobody, somebody, somebody, nobody, nobody]
    frames = [Frame(number, number / 5, picture, number // 3) for number, picture in enumerate(pictures)]
    rows, count = watch_video(iter(frames), reader)
    assert [(row["track"], row["frame"]) for row in rows] == [(0, 2), (1, 3)]
    assert count == len(pictures)


def test_large_pictures_do_not_wait_together(reader, monkeypatch, looks):
    nobody = scene()
    monkeypatch.setattr(perceive, "_WAITING_BYTES", nobody.nbytes)
    assert watch([nobody] * 4, reader)[1] == []
    assert len(looks) == 4


def test_a_face_that_waits_is_read_as_one_that_does_not(reader, clip, monkeypatch):
    """However many may wait: the same chips and scores. And no more wait than may."""
    pictures = [photo_of(clip("obama"))]
    pictures += [cv2.GaussianBlur(pictures[0], (0, 0), sigma) for sigma in (0.5, 1, 2, 4)]
    held = []
    add = tracks.Unread.add
    monkeypatch.setattr(tracks.Unread, "add", lambda self, kept: (add(self, kept), held.append((self._bytes, len(self._waiting)))))
    made = []
    for most in (tracks._UNREAD_BYTES, pictures[0].nbytes, 0):
        monkeypatch.setattr(tracks, "_UNREAD_BYTES", most)
        made.append([row for row in watch(pictures[::-1], reader)[0] if row["representative"]])
        assert all(size <= most for size, _ in held)
        assert (held[-1][1] > 0) == (most > 0)
        held.clear()
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == tracks.REPRESENTATIVES


@pytest.mark.parametrize("considered", [6, 2])
def test_of_every_face_that_goes_no_further_it_is_known_why(reader, clip, monkeypatch, considered):
    """With two kept of a bin no third is there to be chosen: those that were let go were passed by, and not because three are sharper."""
    monkeypatch.setattr(tracks, "_CONSIDERED", considered)
    sharp = photo_of(clip("obama"))
    rows, _ = watch([sharp, *(cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (0.5, 1, 1.5, 2, 3, 4, 5))], reader)
    assert len({tracks.bin_of(row) for row in rows}) == 1 and len(rows) == 8
    chosen = min(considered, tracks.REPRESENTATIVES)
    assert [row["representative"] for row in rows] == [True] * chosen + [False] * (8 - chosen)
    reason = tracks.NOT_SHARPEST if considered == 6 else tracks.PASSED_BY
    assert tracks.why_not_chosen(rows) == [None] * chosen + [reason] * (8 - chosen)


@pytest.mark.parametrize("grown", [1.0, 4.0])
def test_a_faces_piece_is_all_that_its_chip_and_quality_need(reader, clip, grown):
    photo = photo_of(clip("biden"))
    photo = cv2.resize(photo, None, fx=grown, fy=grown)
    points = reader.read(photo).mesh.landmarks68
    wide = cv2.copyMakeBorder(photo, 800, 800, 800, 800, cv2.BORDER_REFLECT)
    inside = points.astype(np.float64) + 800
    piece = cut_piece(wide, inside)
    assert piece.pixels.size < wide.size / 2
    assert piece.corner[0] % 8 == piece.corner[1] % 8 == 0
    chip = chip_of(piece, inside)
    scale = np.hypot(*chip.transform[0, :2])
    shrunk = wide if scale >= 0.5 else cv2.resize(wide, None, fx=2 * scale, fy=2 * scale, interpolation=cv2.INTER_AREA)
    transform = chip.transform * [wide.shape[1] / shrunk.shape[1], wide.shape[0] / shrunk.shape[0], 1]
    known = cv2.warpAffine(shrunk, transform, (SIDE, SIDE), borderValue=(128, 128, 128))
    assert np.abs(chip.image().astype(int) - known).mean() < 3  # of the JPEG, and of other places of the same pixels
    assert chip.jpg == cut_chip(wide, inside).jpg
    filled = np.zeros_like(wide)
    left, top = piece.corner
    height, width = piece.pixels.shape[:2]
    filled[top : top + height, left : left + width] = piece.pixels  # all else black: nothing looks there
    there, here = measure(filled, inside, bars=0.0), measure(piece.pixels, piece.place(inside), bars=0.0)
    whole = measure(wide, inside, bars=0.0)
    for name, value in whole.__dict__.items():
        if name != "phash":
            assert getattr(there, name) == value
            assert getattr(here, name) == pytest.approx(value, rel=1e-4)
    assert here.phash == there.phash == whole.phash
