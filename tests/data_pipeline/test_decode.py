"""Videos as they come: variable frame rate, HEVC, 10 bits, odd sizes, rotation, torn streams, cuts. Sampling and seeking must agree."""

import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError
from data_pipeline.seek import read_frames_at
from data_pipeline.worker import until_torn
from tests.data_pipeline.videos import lay, picture, write, write_with_sound

KINDS = {
    "plain": {},
    "variable rate": {"times": [n * 0.05 if n < 20 else 1.0 + (n - 20) * 0.2 for n in range(40)]},
    "hevc": {"codec": "libx265"},
    "ten bits": {"codec": "libx265", "pixels": "yuv420p10le"},
    "odd size": {"size": (121, 163), "pixels": "yuv444p"},
    "vp9 in webm": {"codec": "libvpx-vp9"},
    "open groups": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:keyint=10:bframes=4:b-adapt=0"}},
    "many keyframes, frames out of order": {"options": {"g": "8", "bf": "3"}},
    "transport stream": {"suffix": "ts", "options": {"g": "8"}},
    "no times": {"suffix": "h264", "count": 60},
}

DECORD_MISSES = ("open groups", "transport stream", "no times")
"""Here decord gives another frame than the one at the time, or makes up times."""


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_frames_can_be_sought(tmp_path, kind):
    settings = dict(KINDS[kind])
    path = write(tmp_path / f"x.{settings.pop('suffix', 'webm' if 'webm' in kind else 'mp4')}", **settings)
    frames = list(sample_frames(path, 5.0))
    assert len(frames) >= 10
    steps = np.diff([frame.pts for frame in frames])
    assert (steps >= 0.15).all()
    height, width = KINDS[kind].get("size", (120, 160))
    assert frames[0].image.shape == (height, width, 3)
    wanted = [frames[number] for number in (8, 1, 2, 4)]
    times = [frame.pts for frame in wanted]
    for seen, sought in zip(wanted, read_frames_at(path, times), strict=True):
        assert np.array_equal(seen.image, sought.image)
    if kind in DECORD_MISSES:
        return
    for seen, sought in zip(wanted, read_frames_at(path, times, seeker="decord"), strict=True):
        # another decoder rounds colours otherwise; a wrong frame differs by far more
        assert np.abs(seen.image.astype(int) - sought.image).mean() < 3, kind
    assert np.abs(frames[1].image.astype(int) - frames[4].image).mean() > 3


BURST = [0.0, 1.2, 1.7, 1.75, 1.8, 1.85, 1.9, *(30.0 * n for n in range(1, 9))]
"""Seconds: several frames within what one lasts at the average rate."""
PIECES = KINDS | {"less than a frame a second": {"times": BURST, "count": len(BURST)}}


@pytest.mark.parametrize("kind", PIECES)
def test_a_frame_has_a_number_of_its_own_in_whichever_piece_it_is_seen(tmp_path, kind):
    settings = dict(PIECES[kind])
    path = write(tmp_path / f"x.{settings.pop('suffix', 'webm' if 'webm' in kind else 'mp4')}", **settings)
    whole = list(sample_frames(path, 100.0))
    numbers = {frame.pts: frame.number for frame in whole}
    assert len(set(numbers.values())) == len(whole) == settings.get("count", 40)
    assert [frame.number for frame in whole] == sorted(numbers.values())
    piece = list(sample_frames(path, 100.0, 1.5))
    assert [frame.pts for frame in piece] == [pts for pts in numbers if pts >= 1.5]
    shown = {frame.number: frame.image for frame in whole}
    assert all(frame.number == numbers[frame.pts] and np.array_equal(frame.image, shown[frame.number]) for frame in piece)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_a_turned_video_comes_upright_from_both_decoders(tmp_path, matrix):
    """As telephones write them: the picture lies on its side and the header says how to turn it."""
    path = lay(write(tmp_path / "x.mp4"), matrix)
    frames = list(sample_frames(str(path), 5.0))
    assert frames[0].image.shape[:2] == ((120, 160) if matrix[0] else (160, 120))
    assert np.array_equal(read_frames_at(str(path), [frames[3].pts])[0].image, frames[3].image)
    sought = read_frames_at(str(path), [frames[3].pts], seeker="decord")[0].image
    assert sought.shape == frames[3].image.shape
    assert np.abs(sought.astype(int) - frames[3].image).mean() < 3


def test_only_the_span_is_looked_at(tmp_path):
    path = write(tmp_path / "x.mp4")
    frames = list(sample_frames(path, 10.0, 0.5, 1.2))
    assert (frames[0].pts, frames[-1].pts) == pytest.approx((0.5, 1.1), abs=0.06)  # the end is not in it


def test_a_torn_stream_gives_what_came_before(tmp_path):
    whole = Path(write(tmp_path / "x.mp4", count=100, faststart=True)).read_bytes()
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(whole[: len(whole) * 2 // 3])
    torn_by: list[DecodeError] = []
    frames = list(until_torn(sample_frames(str(torn), 5.0), torn_by, []))
    assert torn_by[0].kind == "truncated"
    assert "s of 5.0 s" in str(torn_by[0])
    assert 5 < len(frames) < 25


WHOLE = {
    "one frame a second": (range(10), 0, 1.0),
    "its last frame stays": ([n * 0.05 for n in range(20)], 0, 3.0),
    "ever slower": ([0.0, 0.1, 0.3, 0.7, 1.5, 3.1], 0, 3.0),
    "longer sound": ([n * 0.05 for n in range(60)], 4.5, None),
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_video_is_not_called_truncated(tmp_path, kind, suffix):
    times, sound, last = WHOLE[kind]
    path = write_with_sound(tmp_path / f"x.{suffix}", times, sound, last)
    assert len(list(sample_frames(str(path), 20.0))) == len(times)


@pytest.mark.parametrize(
    ("suffix", "sound"), [("mkv", 0), ("mkv", 5.0), ("mkv", 6.5), ("webm", 0), ("wmv", 0), ("mp4", 0), ("mp4", 5.0), ("ts", 0)]
)
def test_nor_one_whose_pictures_begin_late(tmp_path, suffix, sound):
    """Some containers say how long the pictures last, others when they end."""
    codec = {"webm": "libvpx-vp9", "wmv": "wmv2"}.get(suffix, "libx264")
    path = write_with_sound(tmp_path / f"x.{suffix}", [3.0 + n * 0.05 for n in range(40)], sound, codecs=(codec, "aac"))
    frames = list(sample_frames(str(path), 20.0))
    assert (len(frames), frames[0].pts, frames[-1].pts) == (40, 0.0, pytest.approx(1.95, abs=0.01))


def test_one_that_begins_late_may_be_torn(tmp_path):
    path = write_with_sound(tmp_path / "x.mkv", [3.0 + n * 0.05 for n in range(100)], 0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DecodeError, match=r"ends at 2\.\d s of 5\.0 s") as error:
        list(sample_frames(str(path), 5.0))
    assert error.value.kind == "truncated"


@pytest.mark.parametrize("kind", ["tags", "no tags", "written anew"])
def test_a_length_that_counts_from_the_first_picture_is_not_shortened(tmp_path, kind):
    """mkvmerge counts so, in its tags and in the file's header, and the header alone is left where a file is cut off (as its version 74 writes them). Who
    copies such a file with FFmpeg has its statistics, and a length that ends where the pictures do."""
    anew = kind == "written anew"
    statistics = {"BPS": "15366", "NUMBER_OF_BYTES": "9604"} if kind != "no tags" else {}  # of five seconds
    path = write_with_sound(tmp_path / "x.mkv", [3.0 + n * 0.05 for n in range(100)], 0, tags=statistics)
    content = path.read_bytes()
    if not anew:
        for old, new in (
            (b"00:00:08.000000000", b"00:00:05.000000000"),
            (b"\x44\x89\x88" + struct.pack(">d", 8000.0), b"\x44\x89\x88" + struct.pack(">d", 5000.0)),
        ):
            assert content.count(old) == 1
            content = content.replace(old, new)
    if kind == "no tags":
        content = content.replace(b"\x45\xa3\x88DURATION", b"\x45\xa3\x88D_RATION")
        written = re.findall(rb"Lavf[0-9.]+", content)[0]
        content = content.replace(written, b"libmatroska"[: len(written)].ljust(len(written)))
    path.write_bytes(content)
    assert len(list(sample_frames(str(path), 20.0))) == 100
    path.write_bytes(content[: int(len(content) * 0.8)])
    with pytest.raises(DecodeError, match=r"ends at [34]\.\d s of 5\.0 s") as error:
        list(sample_frames(str(path), 20.0))
    assert error.value.kind == "truncated"


@pytest.mark.parametrize("live", [False, True])
def test_an_mkv_that_lacks_its_end_is_called_torn_though_nothing_says_how_long_its_pictures_last(tmp_path, live):
    """As in one of mkvmerge's with sound: its tags lie at the end. What was written live has no size that it could lack."""
    path = tmp_path / "x.mkv"
    content = write_with_sound(path, [n * 0.05 for n in range(100)], 5.0).read_bytes().replace(b"\x88DURATION", b"\x88D_RATION")
    if live:
        at = content.index(b"\x18\x53\x80\x67") + 4
        content = content[:at] + b"\x01" + b"\xff" * 7 + content[at + 8 :]
    for share, found in ((1.0, range(100, 101)), (0.6, range(30, 70))):
        path.write_bytes(content[: int(len(content) * share)])
        torn: list[DecodeError] = []
        frames = len(list(until_torn(sample_frames(str(path), 20.0), torn, [])))
        assert frames in found
        assert [error.kind for error in torn] == (["truncated"] if share < 1 and not live else [])


def test_longer_sound_of_a_wmv(tmp_path):
    path = write_with_sound(tmp_path / "x.wmv", [n * 0.05 for n in range(40)], 4.5, codecs=("wmv2", "wmav2"))
    assert len(list(sample_frames(str(path), 20.0))) == 40


def test_a_length_that_a_cut_file_has_from_its_whole_is_not_its_own(tmp_path):
    """mkvmerge's tags have a language; who cuts its files copies them, and adds one without."""
    path = write_with_sound(tmp_path / "x.mkv", [n * 0.05 for n in range(40)], 0, tags={"DURATION-eng": "00:01:00.000000000"})
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["DURATION-eng"] == "00:01:00.000000000"
    assert len(list(sample_frames(str(path), 20.0))) == 40


@pytest.mark.parametrize("suffix", ["ts", "mpg", "mkv"])
@pytest.mark.parametrize("span", [(0.0, None), (0.5, 1.0), (1.5, None)])
def test_recordings_that_were_joined_as_bytes_are_refused(tmp_path, suffix, span):
    """A time tells a frame of each: what is sought would be the other's."""
    files = [Path(write(tmp_path / f"{count}.{suffix}", count, options={"g": "10"})) for count in (60, 80)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(file.read_bytes() for file in files))
    for file in files:
        assert list(sample_frames(str(file), 5.0, *span))
    with pytest.raises(DecodeError, match=r"its clock starts again after (2\.9|3\.0) s") as error:
        list(sample_frames(str(joined), 5.0, *span))
    assert error.value.kind == "decode"
    next(sample_frames(str(joined), 5.0, *span, one_clock=True))  # who knows that is believed: the file is not read whole


@pytest.mark.parametrize(("suffix", "sound"), [("mkv", 0), ("mkv", 4.5), ("mp4", 4.5)])
def test_a_torn_one_with_sound_is_called_so(tmp_path, suffix, sound):
    path = write_with_sound(tmp_path / f"x.{suffix}", [n * 0.05 for n in range(100)], sound)
    content = path.read_bytes()
    quarter = len(content) // 4
    if suffix == "mkv":
        path.write_bytes(content[: 2 * quarter])
    else:  # its index is at the end: bytes of the pictures are lost instead
        at = content.index(b"mdat") + 4 + quarter
        path.write_bytes(content[:at] + bytes(quarter) + content[at + quarter :])
    torn_by: list[DecodeError] = []
    frames = list(until_torn(sample_frames(str(path), 5.0), torn_by, []))
    assert [error.kind for error in torn_by] == ["truncated"]
    assert 3 < len(frames) < 25


def test_a_tear_at_the_very_end_is_told_too(tmp_path):
    """Less than half a second is missing: the length alone would not say so."""
    whole = Path(write(tmp_path / "x.mp4", count=100, faststart=True)).read_bytes()
    path = tmp_path / "torn.mp4"
    path.write_bytes(whole[:-40])
    torn_by: list[DecodeError] = []
    frames = list(until_torn(sample_frames(str(path), 5.0), torn_by, []))
    assert len(frames) >= 24
    assert "cannot be decoded" in str(torn_by[0])


def test_a_cut_begins_a_shot(tmp_path):
    def two_scenes(number, height=120, width=160):
        return picture(number) if number < 20 else picture(number) * np.array([1, 0, 0], np.uint8)

    frames = list(sample_frames(write(tmp_path / "x.mp4", make=two_scenes), 10.0))
    assert [frame.shot for frame in frames] == [0 if frame.pts < 0.99 else 1 for frame in frames]


@pytest.mark.parametrize("content", [b"", b"not a video", b"\x00" * 5000])
def test_what_is_no_video_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError) as error:
        list(sample_frames(str(path), 5.0))
    assert error.value.kind == "decode"


def test_a_time_between_frames_is_refused(tmp_path):
    path = write(tmp_path / "x.mp4")
    for seeker in ("pyav", "decord"):
        with pytest.raises(DecodeError, match=r"no frame at 0\.520 s"):
            read_frames_at(path, [0.1, 0.52], seeker=seeker)
