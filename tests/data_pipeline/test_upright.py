"""Pictures as players show them: pixels that are not square, pictures that are turned or mirrored. Sampling and seeking must agree."""

import io
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError
from data_pipeline.public_lists import _shape
from data_pipeline.seek import read_frames_at
from tests.data_pipeline.videos import lay, picture, squeezed, write

MIRRORED = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]
TURNED = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]


def shown(image, matrix):
    """A picture as a player lays it: each pixel is led to its place by the matrix."""
    height, width = image.shape[:2]
    a, b, c, d = matrix
    rows, columns = np.mgrid[:height, :width]
    right, down = a * columns + c * rows, b * columns + d * rows
    laid = np.zeros((int(np.ptp(down)) + 1, int(np.ptp(right)) + 1, 3), np.uint8)
    laid[down - down.min(), right - right.min()] = image
    return laid


def apart(one, other):
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other).mean()


@pytest.mark.parametrize("shape", [None, Fraction(4, 3), Fraction(3, 4)])
@pytest.mark.parametrize("matrix", MIRRORED + TURNED)
def test_a_picture_comes_as_it_is_shown_from_both_decoders(tmp_path, matrix, shape):
    """Mirrored ones came upside down, or not mirrored."""
    given = write(tmp_path / "plain.mp4", shape=shape)
    plain = list(sample_frames(given, 5.0))
    assert plain[0].image.shape == {None: (120, 160, 3), Fraction(4, 3): (120, 213, 3), Fraction(3, 4): (160, 160, 3)}[shape]
    path = lay(shutil.copyfile(given, tmp_path / "x.mp4"), matrix)
    frames = list(sample_frames(path, 5.0))
    assert len(frames) == len(plain)
    assert all(np.array_equal(frame.image, shown(one.image, matrix)) for frame, one in zip(frames, plain, strict=True))
    assert np.array_equal(read_frames_at(path, [frames[3].pts])[0].image, frames[3].image)
    assert apart(read_frames_at(path, [frames[3].pts], seeker="decord")[0].image, frames[3].image) < 3
    assert apart(frames[3].image, frames[1].image) > 3


@pytest.mark.parametrize(
    ("name", "size", "shape"), [("franck", (270, 288), (4, 3)), ("franck", (360, 216), (3, 4)), ("single_face", (480, 360), (4, 3))]
)
def test_a_squeezed_face_is_read_as_the_face(clip, reader, tmp_path, name, size, shape):
    path = squeezed(clip(name), tmp_path / "x.mp4", size, Fraction(*shape))
    frame, original = (next(iter(sample_frames(file, 5.0))) for file in (path, clip(name)))
    assert frame.image.shape == original.image.shape and apart(frame.image, original.image) < 4
    assert _shape(path) == frame.image.shape[1::-1]
    found, wanted = (reader.read(one.image).mesh for one in (frame, original))
    face = np.ptp(wanted.landmarks68, axis=0)
    assert np.abs(found.landmarks68 - wanted.landmarks68).mean() < 0.01 * face.max()
    assert np.ptp(found.landmarks68, axis=0) == pytest.approx(face, rel=0.02)
    assert (found.yaw, found.pitch, found.roll) == pytest.approx((wanted.yaw, wanted.pitch, wanted.roll), abs=1.5)


@pytest.mark.parametrize("shape", [Fraction(1), Fraction(320, 321), Fraction(199, 200)])
def test_a_pixel_that_is_all_but_square_is_left_as_it_is(tmp_path, shape):
    alike = {"threads": "1", "bf": "0"}  # else x264 gives other bytes in each run
    files = [write(tmp_path / f"{number}.mp4", shape=one, options=alike) for number, one in enumerate((None, shape))]
    plain, other = (list(sample_frames(file, 5.0)) for file in files)
    assert all(np.array_equal(one.image, two.image) for one, two in zip(plain, other, strict=True))


def test_a_shape_that_cannot_be_is_told(tmp_path):
    path = write(tmp_path / "x.mp4", shape=Fraction(64))
    for read in (
        lambda: list(sample_frames(path, 5.0)),
        lambda: read_frames_at(path, [0.0]),
        lambda: read_frames_at(path, [0.0], seeker="decord"),
    ):
        with pytest.raises(DecodeError, match="pixels are 64 times as wide as tall"):
            read()


def test_a_recording_of_two_shapes_is_told(tmp_path):
    """No picture of it is taken for what it is not."""
    for number, shape in enumerate((Fraction(4, 3), Fraction(1))):
        write(tmp_path / f"{number}.h264", shape=shape)
    both = tmp_path / "both.h264"
    both.write_bytes((tmp_path / "0.h264").read_bytes() + (tmp_path / "1.h264").read_bytes())
    with pytest.raises(DecodeError, match=r"changes from 1.33 to 1 in the middle"):
        list(sample_frames(str(both), 5.0))


@pytest.mark.parametrize("name", ["x.ts", "x.mkv"])
def test_what_begins_after_a_change_of_shape_is_told_too(tmp_path, name):
    """A broadcast that turns from 4:3 pixels to square ones at 3 s: its header has the first shape, by which the others would be as much too wide."""
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 160, 120, "yuv420p", Fraction(1, 20)
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for first, shape in ((0, Fraction(4, 3)), (60, Fraction(1))):
            coder = av.CodecContext.create("libx264", "w")
            coder.width, coder.height, coder.pix_fmt, coder.framerate, coder.time_base = 160, 120, "yuv420p", 20, Fraction(1, 20)
            coder.sample_aspect_ratio, coder.options = shape, {"g": "20", "bf": "0", "sc_threshold": "0"}
            for number in range(first, first + 60):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 20)
                for packet in coder.encode(frame):
                    packet.stream, packet.time_base = stream, Fraction(1, 20)
                    container.mux(packet)
            for packet in coder.encode():
                packet.stream, packet.time_base = stream, Fraction(1, 20)
                container.mux(packet)
    path = str(tmp_path / name)
    assert {frame.image.shape for frame in sample_frames(path, 5.0, 1.5, 2.5)} == {(120, 213, 3)}
    for start in (2.0, 4.5):
        with pytest.raises(DecodeError, match=r"changes from 1.33 to 1 in the middle"):
            list(sample_frames(path, 5.0, start))


def test_a_picture_is_turned_beside_what_pyav_does_not_know(tmp_path):
    """A camera's frames with EXIF: FFmpeg hands it on, in a kind that PyAV has no name for."""
    exif, content = Image.Exif(), io.BytesIO()
    exif[274] = 6  # to be turned to the right
    Image.fromarray(picture(3)).save(content, "jpeg", exif=exif, quality=95)
    with av.open(str(tmp_path / "x.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        for number in range(5):
            packet = av.Packet(content.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 5), stream, True
            container.mux(packet)
    (frame, *_) = sample_frames(str(tmp_path / "x.avi"), 5.0)
    assert apart(frame.image, np.rot90(picture(3), -1)) < 5
