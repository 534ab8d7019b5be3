"""The child that decodes: it hangs, dies, eats memory, lacks a library; whose fault each is."""

import errno
import multiprocessing.forkserver
import os
import signal
import struct
import threading
import time

import av
import numpy as np
import psutil
import pytest

import data_pipeline.decoder as decoder_module
import data_pipeline.patience as patience_module
from data_pipeline.decode import _send_sampled, sample_frames
from data_pipeline.decoder import DecodeError, Decoder, MachineError, explain, run_decoder
from data_pipeline.plan import _first_frames
from data_pipeline.seek import _send_at
from data_pipeline.worklist import item_for
from tests.data_pipeline.videos import write


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
        monkeypatch.setattr(patience_module, "IDLE_SECONDS", 0.5)
        with pytest.raises(DecodeError, match=r"no frame for .* did nothing") as error:
            next(frames)
        assert error.value.kind == "hang"
        assert not child.is_alive()


def _works_for_ever(sender, path, argument):
    sender.send(("frame", "before"))
    while True:
        pass


def test_a_child_that_works_and_gives_no_frame_hangs(monkeypatch):
    with Decoder() as decoder:
        frames = decoder.frames(_works_for_ever, "x.mp4", None)
        assert next(frames) == "before"
        monkeypatch.setattr(patience_module, "CPU_SECONDS", 0.5)
        with pytest.raises(DecodeError, match=r"no frame for .* s of CPU") as error:
            next(frames)
        assert error.value.kind == "hang"


def _is_stopped(sender, path, argument):
    sender.send(("frame", "before"))
    os.kill(os.getpid(), signal.SIGSTOP)
    sender.send(("frame", "after"))


def _wake(child):
    while child.status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    time.sleep(3.0)
    child.resume()


@pytest.mark.parametrize("for_good", [False, True])
def test_a_child_that_is_kept_from_working_is_not_judged(monkeypatch, for_good):
    """A stopped one stands for all that the machine gives no CPU. Held to be a hang, the source would be failed for good after the second time."""
    with Decoder() as decoder:
        frames = decoder.frames(_is_stopped, "x.mp4", None)
        assert next(frames) == "before"
        monkeypatch.setattr(patience_module, "CPU_SECONDS", 0.5)
        monkeypatch.setattr(patience_module, "IDLE_SECONDS", 1.5)  # it may be seen once before it stops
        if for_good:
            monkeypatch.setattr(patience_module, "MACHINE_SECONDS", 3.0)
            with pytest.raises(MachineError, match="it was stopped, or a disk does not answer"):
                next(frames)
        else:
            threading.Thread(target=_wake, args=(psutil.Process(decoder._child.pid),)).start()
            assert list(frames) == ["after"]


def _says_that_it_lives(sender, path, times):
    sender.send(("frame", "before"))
    for _ in range(times):
        time.sleep(0.5)
        sender.send(("alive", None))


def test_a_child_that_says_it_lives_does_not_hang(monkeypatch, tmp_path):
    with Decoder() as decoder:
        frames = decoder.frames(_says_that_it_lives, "x.mp4", 16)
        assert next(frames) == "before"
        monkeypatch.setattr(patience_module, "IDLE_SECONDS", 6.0)
        assert list(frames) == []


def test_what_the_children_took_is_counted_also_of_those_that_were_stopped(tmp_path):
    """Noise of 1080p costs something to decode, and all of it in a child. It is what a plan's probe is made of."""
    noise = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), np.uint8)
    path = write(tmp_path / "x.mp4", count=20, size=(1080, 1920), codec="mpeg4", make=lambda number, *_: np.roll(noise, 9 * number, axis=1))
    with Decoder() as decoder:
        whole = sum(1 for _ in sample_frames(path, 20.0, decoder=decoder))
    stopped = Decoder()
    assert len(_first_frames(item_for(path), 20.0, 12, stopped)) == 12 < whole
    assert 0.02 < stopped.cpu_seconds < 60 and 0.02 < decoder.cpu_seconds < 60
    before = stopped.cpu_seconds
    stopped.close()
    assert stopped.cpu_seconds == before  # its child is killed already


class _Pipe(list):
    send = list.append


@pytest.mark.parametrize("look", [_send_sampled, _send_at])
def test_frames_that_are_passed_over_are_signs_of_life(tmp_path, monkeypatch, look):
    monkeypatch.setattr(patience_module, "_ALIVE_SECONDS", -1.0)
    pipe = _Pipe()
    look(pipe, write(tmp_path / "x.mp4"), (20.0, 1.5, None, False) if look is _send_sampled else [0.9])
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


def test_what_a_decoder_says_is_told_in_plain_words(tmp_path):
    for name, content in (("text.mp4", b"hello"), ("zeros.mkv", bytes(5000)), ("picture.mp4", b"GIF89a")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError) as error:
            list(sample_frames(str(tmp_path / name), 5.0))
        said = "what is in it is no video, or is damaged (FFmpeg: Invalid data found when processing input)"
        assert (error.value.kind, str(error.value)) == ("decode", said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (av.error.EOFError(541478725, "End of file", "/x/y.mp4"), "it ends before a picture is whole (FFmpeg: End of file)"),
        (
            av.error.DecoderNotFoundError(1128613112, "Decoder not found"),
            "there is no decoder here for the codec of its pictures (FFmpeg: Decoder not found)",
        ),
        (av.error.FFmpegError(1, "Something"), "FFmpeg cannot read it (FFmpeg: Something)"),
        (OSError(5, "Input/output error", "/x/y.mp4"), "it cannot be read (OSError: Input/output error)"),
        (
            RuntimeError("[12:00] Check failed: st_nb >= 0\nStack trace:\n  [bt] ..."),
            "it cannot be decoded (RuntimeError: [12:00] Check failed: st_nb >= 0)",
        ),
        (ZeroDivisionError(), "it cannot be decoded (ZeroDivisionError: ZeroDivisionError)"),
    ],
)
def test_each_error_is_one_line_with_the_librarys_words_in_brackets(error, said):
    assert explain(error) == said
