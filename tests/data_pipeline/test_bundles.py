"""Short sources go in bundles; bytes, verdicts and blame stay each source's own."""

import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

import data_pipeline.analyze as module
import data_pipeline.attempts as attempts_module
import data_pipeline.segments as segments_module
import data_pipeline.sources as sources_module
import data_pipeline.worker as worker_module
from data_pipeline.analyze import analyze, write_ledger
from data_pipeline.attempts import in_flight, take_marked
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError, Decoder
from data_pipeline.retry import reopen
from data_pipeline.seek import read_frames_at
from data_pipeline.segments import AnalyzeConfig, Segment, Try, bundle
from data_pipeline.worklist import WorkItem, item_for
from infra.errors import UserError
from tests.data_pipeline.videos import write


def tries(seconds, attempts=0):
    item = WorkItem(source_id="x", uri="x.mp4", kind="video")
    return [Try(Segment(item, 0.0, None, "c", f"{attempts}/{number}", length), attempts) for number, length in enumerate(seconds)]


def test_bundles_are_of_five_minutes_and_enough_for_all():
    many = bundle(tries([0.5] * 60_000), 2)
    assert {len(found) for found in many[:-1]} == {600}
    assert sum(map(len, many)) == 60_000
    assert len(bundle(tries([0.5] * 500), 2)) == 32  # less than five minutes each: both workers have work to the end
    assert [len(found) for found in bundle(tries([300.0, 250.0, 2.0, 1.0]), 2)] == [1, 1, 2]  # longest first
    assert len(bundle(tries([0.0] * 16), 1)) == 16  # pictures
    assert bundle([], 2) == []


def test_what_was_in_flight_at_two_deaths_goes_alone():
    found = bundle(tries([0.5] * 200) + tries([0.5] * 3, attempts=2) + tries([0.5] * 200, attempts=1), 1)
    alone = [jobs for jobs in found if jobs[0].attempts >= 2]
    assert [len(jobs) for jobs in alone] == [1, 1, 1]
    assert sum(map(len, found)) == 403


def test_the_parts_are_the_same_in_any_bundle(models, clip, tmp_path, monkeypatch):
    items = [item_for(clip(name)) for name in ("carphone", "no_face", "single_face", "obama", "face_noface")]
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(Path(clip("single_face")).read_bytes()[:20_000])
    items.insert(2, item_for(str(torn)))
    parts, ledgers = [], []
    for number, (seconds, each) in enumerate(((0.0, 1), (1e9, 1), (9.0, 1))):
        monkeypatch.setattr(segments_module, "SEGMENT_SECONDS", seconds)
        monkeypatch.setattr(segments_module, "_BUNDLES_A_WORKER", 1e-9 if seconds else each)
        work = tmp_path / str(number)
        assert len(bundle(tries([1.0] * 20), 0)) == (20, 1, 3)[number]
        ledgers.append(analyze(items, AnalyzeConfig(workers=0, fps=2.0), models, str(work)).rows)
        parts.append({path.name: path.read_bytes() for path in (work / "parts").iterdir()})
        assert not list((work / "attempts").iterdir())  # let go when all have their verdict
    assert parts[0] == parts[1] == parts[2]
    assert ledgers[0] == ledgers[1] == ledgers[2]
    assert {row["status"] for row in ledgers[0]} == {"ok", "rejected", "failed"}


class Poisoned(worker_module.Worker):
    """One source ends its process; which are looked at is written down."""

    def _watch(self, segment, *told):
        with open(f"{self._work}.seen", "a") as file:
            file.write(segment.item.source_id + "\n")
        if segment.item.source_id == "c":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._watch(segment, *told)


def five_sources(clip, folder):
    items = []
    for name in "abcde":
        shutil.copy(clip("no_face" if name != "b" else "single_face"), folder / f"{name}.mp4")
        with (folder / f"{name}.mp4").open("ab") as file:
            file.write(name.encode())  # contents differ
        items.append(item_for(str(folder / f"{name}.mp4")))
    return items


@pytest.mark.slow
@pytest.mark.parametrize("names", ["abcde", "c"])
def test_one_that_ends_its_worker_three_times_is_failed_and_its_bundle_goes_on(ray_session, models, clip, tmp_path, monkeypatch, names):
    monkeypatch.setattr(module, "Worker", Poisoned)
    monkeypatch.setattr(segments_module, "_BUNDLES_A_WORKER", 1)
    items = [item for item in five_sources(clip, tmp_path) if item.source_id in names]
    ledger = analyze(items, AnalyzeConfig(workers=1, fps=1.0), models, str(tmp_path / "work"))
    rows = {row["source_id"]: (row["status"], row["reason"], row.get("message")) for row in ledger.rows}
    assert rows.pop("c") == ("failed", "crash", "ended its worker 3 times")
    assert {name: row[:2] for name, row in rows.items()} == {
        name: ("ok", None) if name == "b" else ("rejected", "no face") for name in names if name != "c"
    }
    seen = Path(f"{tmp_path}/work.seen").read_text().split()
    assert {name: seen.count(name) for name in names} == {
        name: 3 if name == "c" else 1 for name in names
    }  # nothing that was done is done again
    assert not list((tmp_path / "work" / "attempts").iterdir())


class Stuck(worker_module.Worker):
    """The networks never return from one source's first frame: native code that lets no other Python run."""

    def _watch(self, segment, *told):
        if segment.item.source_id == "c":
            worker_module.STALLED_SECONDS = 1.0
            self._reader = SimpleNamespace(detector=SimpleNamespace(detect=lambda _: re.match("(a+)+$", "a" * 100 + "b")))
        return super()._watch(segment, *told)


@pytest.mark.slow
def test_networks_that_hang_end_their_worker_and_the_others_go_on(ray_session, models, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Worker", Stuck)
    items = [item for item in five_sources(clip, tmp_path) if item.source_id in "bc"]
    rows = analyze(items, AnalyzeConfig(workers=1, fps=1.0), models, str(tmp_path / "work")).rows
    assert [(row["source_id"], row["status"], row["reason"]) for row in rows] == [("b", "ok", None), ("c", "failed", "crash")]


@pytest.mark.parametrize("how", [KeyboardInterrupt, "kill -9"])
def test_a_driver_that_is_stopped_or_killed_is_no_sources_fault(models, clip, tmp_path, monkeypatch, how):
    """Five times, with one photo in flight each time."""
    items, config = [item_for(clip("obama"))], AnalyzeConfig(workers=0)

    def end(self, segment):
        if how is KeyboardInterrupt:  # what SIGTERM becomes
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as ending:
        ending.setattr(worker_module.Worker, "_observe", end)
        for _ in range(5):
            if how is KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    analyze(items, config, models, str(tmp_path / "work"))
                assert not list((tmp_path / "work" / "attempts").iterdir())
            else:
                child = multiprocessing.get_context("fork").Process(target=analyze, args=(items, config, models, str(tmp_path / "work")))
                child.start()
                child.join()
                assert child.exitcode == -signal.SIGKILL
    (row,) = analyze(items, config, models, str(tmp_path / "work")).rows
    assert row["status"] == "ok"
    assert not list((tmp_path / "work" / "attempts").iterdir())


@pytest.mark.parametrize("kind", ["hang", "changed"])
def test_what_the_other_segments_saw_goes_on_unless_the_file_changed(models, tmp_path, monkeypatch, clip, kind):
    """Three segments of one video, of which the middle one fails."""
    path = write(
        tmp_path / "x.mp4", count=120, make=lambda number, height, width: face_picture(clip, number), size=(320, 320), options={"g": "20"}
    )
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    real = worker_module.Worker._observe

    def observe(self, segment):
        if segment.start and segment.end:
            return [], {"status": "failed", "reason": kind, "message": "as the test wants it"}
        return real(self, segment)

    monkeypatch.setattr(worker_module.Worker, "_observe", observe)
    ledger = analyze([item_for(path)], AnalyzeConfig(workers=0, fps=1.0), models, str(tmp_path / "work"))
    (row,) = ledger.rows
    assert (row["status"], row["reason"], len(row["parts"])) == ("failed", kind, 3)
    assert row["faces"] == 4  # of six seconds, two are lost
    assert ledger.usable() == ([row] if kind == "hang" else [])


@pytest.mark.parametrize("second", ["hang", "changed"])
def test_pieces_that_fail_for_two_reasons_are_told_and_reopened_by_either(models, tmp_path, monkeypatch, clip, second):
    path = write(
        tmp_path / "x.mp4", count=120, make=lambda number, height, width: face_picture(clip, number), size=(320, 320), options={"g": "20"}
    )
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    real, work = worker_module.Worker._observe, str(tmp_path / "work")

    def observe(self, segment):
        if segment.start:
            reason = second if segment.end is None else "crash"
            return [], {"status": "failed", "reason": reason, "message": f"{reason}, as the test wants it"}
        return real(self, segment)

    monkeypatch.setattr(worker_module.Worker, "_observe", observe)
    ledger = analyze([item_for(path)], AnalyzeConfig(workers=0, fps=1.0), models, work)
    (row,) = ledger.rows
    assert (row["reason"], row["reasons"], row["faces"]) == ("crash", sorted(["crash", second]), 2)
    assert all(f"{reason}: {reason}, as the test wants it" in row["message"] for reason in row["reasons"])
    assert ledger.usable() == ([row] if second == "hang" else [])  # whichever piece it is that saw another file
    for reason in ("crash", second):
        write_ledger(ledger, f"{work}/ledger.jsonl")
        with pytest.raises(UserError, match=f"reasons in this build: {', '.join(row['reasons'])}"):
            reopen(work, "memory")
        assert reopen(work, reason) == ["x"]
        assert not list((tmp_path / "work/parts").iterdir())
        assert analyze([item_for(path)], AnalyzeConfig(workers=0, fps=1.0), models, work).rows == [row]


def face_picture(clip, number):
    image = np.asarray(Image.open(clip("obama")).convert("RGB").resize((320, 320)))
    return np.ascontiguousarray(np.roll(image, number % 3, axis=1))


def test_a_worker_takes_one_thread(models, tmp_path):
    cv2.setNumThreads(2)
    worker_module.Worker(models, AnalyzeConfig(), {}, str(tmp_path), "run")
    assert cv2.getNumThreads() == 1


def test_marks_of_this_run_alone_are_taken_and_once(tmp_path):
    work = str(tmp_path)
    with pytest.raises(ZeroDivisionError), in_flight(work, "mine", ["a", "b"]):
        1 / 0  # noqa: B018
    assert take_marked(work, "mine", {"a", "b"}) == set()  # its end was seen
    left = [in_flight(work, run, names) for run, names in (("mine", ["a", "b"]), ("other", ["c"]), ("mine", ["d"]))]
    for mark in left:
        mark.__enter__()
    assert take_marked(work, "mine", {"a", "c", "e"}) == {"a"}
    assert take_marked(work, "mine", {"a", "c", "d"}) == {"d"}


def test_a_mark_that_goes_between_listing_and_reading_is_nobodys(tmp_path, monkeypatch):
    """On a store a listing takes its time, and the living end their bundles meanwhile."""
    work = str(tmp_path)
    dead, alive = in_flight(work, "run", ["dead"]), in_flight(work, "run", ["alive"])
    dead.__enter__()
    alive.__enter__()
    listed = attempts_module.list_files

    def meanwhile(*given):
        found = listed(*given)
        alive.__exit__(None, None, None)
        return found

    monkeypatch.setattr(attempts_module, "list_files", meanwhile)
    assert take_marked(work, "run", {"dead", "alive"}) == {"dead"}
    assert not list((tmp_path / "attempts").iterdir())


def _die(pipe, path, argument):
    import os

    os._exit(9)


def test_a_decoder_goes_on_from_video_to_video_and_a_new_one_follows_a_bad_one(tmp_path):
    path, bad = write(tmp_path / "x.mp4"), tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video")
    alone = [frame.image.tobytes() for frame in sample_frames(path, 5.0)]
    with Decoder() as decoder:

        def look():
            return [frame.image.tobytes() for frame in sample_frames(path, 5.0, 0.0, None, decoder)], decoder._child.pid

        (first, child), (second, same) = look(), look()
        assert first == second == alone
        assert child == same
        assert read_frames_at(path, [0.2], decoder)[0].image.shape == (120, 160, 3)
        with pytest.raises(DecodeError, match=r"no video, or is damaged \(FFmpeg: Invalid data"):
            list(sample_frames(str(bad), 5.0, 0.0, None, decoder))
        third, other = look()
        assert third == alone
        assert other != child
        with pytest.raises(DecodeError, match="died") as error:
            list(decoder.frames(_die, path, None))
        assert error.value.kind == "crash"
        assert look()[0] == alone
        decoder._child.kill()  # while it has nothing to do: nobody's fault
        decoder._child.join()
        assert look()[0] == alone
        next(iter(sample_frames(path, 5.0, 0.0, None, decoder)))  # not read to its end: what is left in the pipe is nobody else's
        assert look()[0] == alone
        left = sample_frames(path, 5.0, 0.0, None, decoder)
        next(left)  # left open, as an exception may leave it: its end later is not the end of the next one's child
        third, child = look()
        left.close()
        assert third == alone
        assert look() == (alone, child)
