"""Videos as they come: variable frame rate, HEVC, 10 bits, odd sizes, rotation, torn streams, cuts. Sampling and seeking must agree."""

import errno
import multiprocessing.forkserver
import os
import signal
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import data_pipeline.decoder as decoder_module
from data_pipeline.decode import _send_sampled, sample_frames
from data_pipeline.decoder import DecodeError, Decoder, MachineError, run_decoder
from data_pipeline.seek import _send_at, read_frames_at
from data_pipeline.worker import until_torn


def picture(number, height=120, width=160):
    """A gradient with a white square that moves: every frame differs from every other."""
    image = np.linspace(40, 200, width)[None, :, None].repeat(height, 0).repeat(3, 2).astype(np.uint8)
    left = 4 + (number * 7) % (width - 40)
    image[20:50, left : left + 30] = (250, 250, 250)
    return image


def write(path, count=40, size=(120, 160), codec="libx264", pixels="yuv420p", times=None, make=picture, faststart=False, options=None):
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=20, options=options or quiet)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(make(number, *size), format="rgb24")
            frame.pts, frame.time_base = int(times[number] * 1000) if times else number * 50, Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return str(path)


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


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_a_turned_video_comes_upright_from_both_decoders(tmp_path, matrix):
    """As telephones write them: the picture lies on its side and the header says how to turn it."""
    path = Path(write(tmp_path / "x.mp4"))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[at + place : at + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
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


def write_with_sound(path, times, sound, last=None):
    """Pictures at those times (seconds), the last one shown for `last` seconds, and so many seconds of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        voice = container.add_stream("aac", rate=48000) if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            if last is not None:
                packet.duration = round(last / packet.time_base)
            container.mux(packet)
        for number in range(int(sound * 48000) // 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, number * 1024, Fraction(1, 48000)
            for packet in voice.encode(frame):
                container.mux(packet)
        for packet in voice.encode() if voice else ():
            container.mux(packet)
    return path


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


def _lacks_a_library(sender, path, argument):
    raise ModuleNotFoundError("No module named 'decoder'")


def test_a_missing_library_is_no_verdict_on_the_source():
    with pytest.raises(MachineError, match="No module named 'decoder'"):
        list(run_decoder(None, _lacks_a_library, "x.mp4", None))


def _raises(sender, path, error):
    raise error


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ESTALE])
def test_an_error_of_the_machine_is_no_verdict_on_the_source(number):
    with pytest.raises(MachineError, match=os.strerror(number)):
        list(run_decoder(None, _raises, "x.mp4", OSError(number, os.strerror(number))))


def _ffmpeg_fails(sender, path, number):
    av.error.err_check(-number)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, "decode"), (errno.EINVAL, "decode"), (errno.ENOENT, "missing"), (errno.EACCES, "missing"), (errno.ENOMEM, "memory")],
)
def test_what_ffmpeg_says_of_a_file_that_can_be_read_is_the_files(tmp_path, number, kind):
    path = write(tmp_path / "x.mp4")
    with pytest.raises(DecodeError) as error:
        list(run_decoder(None, _ffmpeg_fails, path, number))
    assert error.value.kind == kind
    if number == errno.EIO:
        with pytest.raises(MachineError):
            list(run_decoder(None, _ffmpeg_fails, str(tmp_path / "cannot be read"), number))


def _hangs(sender, path, seconds):
    sender.send(("frame", "before"))
    time.sleep(seconds)


def test_a_child_that_hangs_is_killed(monkeypatch, tmp_path):
    with Decoder() as decoder:
        assert len(list(sample_frames(write(tmp_path / "x.mp4"), 5.0, decoder=decoder))) == 10
        child = decoder._child
        frames = decoder.frames(_hangs, "x.mp4", 600.0)
        assert next(frames) == "before"  # with usual patience: a busy machine takes its time
        monkeypatch.setattr(decoder_module, "NO_PROGRESS_SECONDS", 0.5)
        with pytest.raises(DecodeError, match="no frame for") as error:
            next(frames)
        assert error.value.kind == "hang"
        assert not child.is_alive()


def _says_that_it_lives(sender, path, times):
    sender.send(("frame", "before"))
    for _ in range(times):
        time.sleep(0.5)
        sender.send(("alive", None))


def test_a_child_that_says_it_lives_does_not_hang(monkeypatch, tmp_path):
    with Decoder() as decoder:
        frames = decoder.frames(_says_that_it_lives, "x.mp4", 16)
        assert next(frames) == "before"
        monkeypatch.setattr(decoder_module, "NO_PROGRESS_SECONDS", 6.0)
        assert list(frames) == []


class _Pipe(list):
    send = list.append


@pytest.mark.parametrize("look", [_send_sampled, _send_at])
def test_frames_that_are_passed_over_are_signs_of_life(tmp_path, monkeypatch, look):
    monkeypatch.setattr(decoder_module, "_ALIVE_SECONDS", -1.0)
    pipe = _Pipe()
    look(pipe, write(tmp_path / "x.mp4"), (20.0, 1.5, None) if look is _send_sampled else [0.9])
    kinds = [kind for kind, _ in pipe]
    assert kinds[: kinds.index("frame")].count("alive") >= 10  # one a frame, before the first that is asked for


def _takes_memory(sender, path, block):
    """As much as it can have, in written blocks; says after each how much it holds."""
    held = []
    while True:
        held.append(np.ones(block, np.uint8))
        sender.send(("frame", len(held) * block))


def test_a_child_gets_so_much_memory_and_no_more(tmp_path, monkeypatch):
    block = 64 * 1024**2
    monkeypatch.setattr(decoder_module, "MEMORY_BYTES", 16 * block)
    with Decoder() as decoder:
        held = 0
        with pytest.raises(DecodeError, match="more memory than the 1,024 MB") as error:
            for held in decoder.frames(_takes_memory, "x.mp4", block):  # noqa: B007
                pass
        assert error.value.kind == "memory"
        assert 8 * block < held < 16 * block
        assert len(list(sample_frames(write(tmp_path / "x.mp4"), 5.0, decoder=decoder))) == 10  # in a new child


def test_the_fork_server_may_die(tmp_path):
    path = write(tmp_path / "x.mp4")
    assert len(list(sample_frames(path, 5.0))) == 10
    os.kill(multiprocessing.forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert len(list(sample_frames(path, 5.0))) == 10


def _dies_in_the_middle_of_a_message(sender, path, argument):
    sender.send(("frame", 1))
    os.write(sender.fileno(), struct.pack("!i", 1000) + b"the first bytes of a thousand")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_dies_in_the_middle_of_a_frame_has_crashed(tmp_path):
    with Decoder() as decoder:
        frames = decoder.frames(_dies_in_the_middle_of_a_message, "x.mp4", None)
        assert next(frames) == 1
        with pytest.raises(DecodeError, match="the decoder died") as error:
            next(frames)
        assert error.value.kind == "crash"
        assert len(list(sample_frames(write(tmp_path / "x.mp4"), 5.0, decoder=decoder))) == 10


def test_a_child_that_dies_as_it_starts_has_crashed(tmp_path, monkeypatch):
    real = decoder_module._start

    def start_and_kill(context, pipe):
        child = real(context, pipe)
        child.kill()
        child.join()
        return child

    monkeypatch.setattr(decoder_module, "_start", start_and_kill)
    with pytest.raises(DecodeError, match="before it was given the video") as error:
        list(sample_frames(write(tmp_path / "x.mp4"), 5.0))
    assert error.value.kind == "crash"
