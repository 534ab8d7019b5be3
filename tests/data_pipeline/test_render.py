"""Cutting crops: memory of a worker does not grow with how many are cut of a source, and none stands under the name of another content."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline import render
from data_pipeline.image_set import ImageSet, SetImage, content_sha256, encode_image_set
from data_pipeline.render import Crop, RenderConfig, render_crops
from infra.errors import UserError
from infra.storage import sha256_file
from tests.data_pipeline.videos import picture, write

SIZE = (1080, 1920)
"""Height and width: a picture is 6 MB."""
_PEAK = """
import sys
from pathlib import Path
from data_pipeline.render import Crop, RenderConfig, render_crops
from infra.storage import sha256_file

path, work = sys.argv[1:]
content = sha256_file(path)
crops = [Crop("a", content, f"{number}.jpg", None, number * 0.05, (0.0, 0.0, 600.0)) for number in range(80)]
for some in (crops[:2], crops):
    assert render_crops(some, {"a": path}, work, 0, RenderConfig()) == {}
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))  # KB at most
"""


def crops_of(path, times):
    return [Crop("a", sha256_file(str(path)), f"{time}.jpg", None, time, (10.0, 10.0, 60.0)) for time in times]


def test_memory_does_not_grow_with_the_pictures_that_are_cut(tmp_path):
    path = write(tmp_path / "a.mp4", 80, SIZE, options={"preset": "ultrafast"})
    done = subprocess.run([sys.executable, "-c", _PEAK, path, str(tmp_path / "w")], capture_output=True, text=True, check=True)
    two, all_of_them = (int(line.split()[1]) / 1024 for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    assert len(os.listdir(tmp_path / "w/renders")) == 80
    assert all_of_them - two < 60, "MB; all pictures are 500"


def test_a_video_that_changes_while_it_is_cut_is_told_and_leaves_no_crop_of_another_content(tmp_path, monkeypatch):
    """The decoder may still read the old pictures: who knows which they are."""
    path, work = write(tmp_path / "a.mp4"), tmp_path / "w"
    other = write(tmp_path / "b.mp4", make=lambda number, *size: 255 - picture(number, *size))
    cut = render.cut

    def meanwhile(*given):
        if os.path.exists(other):
            os.replace(other, path)
        return cut(*given)

    monkeypatch.setattr(render, "cut", meanwhile)
    times = [0.0, 0.5, 1.0]
    failed = render_crops(crops_of(path, times), {"a": path}, str(work), 0, RenderConfig())
    assert failed["a"].endswith("changed while it was cut")
    assert os.listdir(work / "renders") == ["0.0.jpg"]  # its picture was read before


@pytest.mark.parametrize("of_set", [False, True])
def test_a_picture_that_changes_between_hash_and_reading_leaves_no_crop_of_another_content(tmp_path, monkeypatch, of_set):
    names, work = [str(tmp_path / name) for name in ("a.png", "b.png")], tmp_path / "w"
    for name in names:
        cv2.imwrite(name, np.full((120, 160, 3), 200, np.uint8))
    uri = names[0]
    if of_set:
        uri = str(tmp_path / "set.json")
        Path(uri).write_bytes(encode_image_set(ImageSet(images=[SetImage(uri="a.png"), SetImage(uri="b.png")])))
    content = content_sha256(uri)
    crops = [Crop("a", content, f"{name[-5]}{n}.jpg", name, 0.0, (0.0, 0.0, 90.0)) for name in names[: 2 if of_set else 1] for n in (0, 1)]
    assert render_crops(crops, {"a": uri}, str(work), 0, RenderConfig()) == {}
    assert len(os.listdir(work / "renders")) == len(crops)
    read = render.read_bytes

    def meanwhile(name):
        cv2.imwrite(names[-1 if of_set else 0], np.zeros((120, 160, 3), np.uint8))
        return read(name)

    monkeypatch.setattr(render, "read_bytes", meanwhile)  # all hashing that comes before has seen what is wanted
    failed = render_crops(crops, {"a": uri}, str(tmp_path / "v"), 0, RenderConfig())
    assert "changed after it was looked at" in failed["a"]
    kept = list((tmp_path / "v").glob("renders/*"))
    assert [path.name for path in sorted(kept)] == (["a0.jpg", "a1.jpg"] if of_set else [])
    assert all(cv2.imread(str(path)).mean() > 190 for path in kept)


@pytest.mark.parametrize("seeker", ["pyav", "decord"])
def test_crops_are_those_of_their_times(tmp_path, seeker):
    """In whichever order they are asked for, and several of one picture."""
    path, work = write(tmp_path / "a.mp4"), tmp_path / "w"
    alone = {}
    for time in (1.0, 0.25, 0.5):
        assert render_crops(crops_of(path, [time]), {"a": path}, str(tmp_path / f"{time}"), 0, RenderConfig(seeker=seeker)) == {}
        alone[time] = (tmp_path / f"{time}/renders/{time}.jpg").read_bytes()
    crops = crops_of(path, alone)
    twice = crops[0]._replace(name="again.jpg")
    assert render_crops([*crops, twice], {"a": path}, str(work), 0, RenderConfig(seeker=seeker)) == {}
    assert {time: (work / f"renders/{time}.jpg").read_bytes() for time in alone} == alone
    assert (work / "renders/again.jpg").read_bytes() == alone[1.0]
    assert len(set(alone.values())) == 3


def test_pictures_are_cut_from_where_they_lie_now(tmp_path):
    """A folder that was moved, or copied: what lies at the old place is no part of the source any more."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, shade in ((old, 0), (new, 200)):
        folder.mkdir()
        for name in ("a.png", "b.png"):
            cv2.imwrite(str(folder / name), np.full((120, 160, 3), shade, np.uint8))
        (folder / "set.json").write_bytes(encode_image_set(ImageSet(images=[SetImage(uri="a.png"), SetImage(uri="b.png")])))
    for there in (True, False):
        for name in ("set.json", "a.png"):
            uri, work = str(new / name), tmp_path / f"{name}{there}"
            crop = Crop("a", content_sha256(uri), "x.jpg", str(old / "a.png"), 0.0, (0.0, 0.0, 90.0))
            assert render_crops([crop], {"a": uri}, str(work), 0, RenderConfig()) == {}
            assert cv2.imread(str(work / "renders/x.jpg")).mean() > 190
        if there:
            shutil.rmtree(old)


def test_a_video_that_is_touched_or_copied_anew_while_it_is_cut_is_no_other(tmp_path, monkeypatch):
    path, work, cut = write(tmp_path / "a.mp4"), tmp_path / "w", render.cut

    def meanwhile(*given):
        shutil.copyfile(path, tmp_path / "again.mp4")
        os.replace(tmp_path / "again.mp4", path)
        return cut(*given)

    monkeypatch.setattr(render, "cut", meanwhile)
    assert render_crops(crops_of(path, [0.0, 0.5, 1.0]), {"a": path}, str(work), 0, RenderConfig()) == {}
    assert len(os.listdir(work / "renders")) == 3


@pytest.mark.parametrize("of_video", [False, True])
def test_a_disk_that_fails_while_crops_are_cut_is_told_with_the_source(tmp_path, monkeypatch, of_video):
    def fail(uri):
        raise OSError(errno.EIO, "Input/output error")

    path = str(tmp_path / ("a.mp4" if of_video else "a.png"))
    Path(path).write_bytes(b"x")
    monkeypatch.setattr(render, "sha256_file" if of_video else "read_bytes", fail)
    crop = Crop("a", "0" * 64, "x.jpg", None if of_video else path, 0.0, (0.0, 0.0, 90.0))
    with pytest.raises(UserError, match=r"a\.(mp4|png) cannot be read now.*Input/output error"):
        render_crops([crop], {"a": path}, str(tmp_path / "w"), 0, RenderConfig())


def test_a_disk_that_fails_under_the_crops_is_not_laid_to_the_source(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    path = write(tmp_path / "a.mp4")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        render_crops(crops_of(path, [0.0]), {"a": path}, str(tmp_path / "w"), 0, RenderConfig())
