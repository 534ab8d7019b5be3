"""Short sources go in bundles; bytes, verdicts and blame stay each source's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import data_pipeline.analyze as module
import data_pipeline.sources as sources_module
from data_pipeline.analyze import AnalyzeConfig, Segment, Try, analyze, bundle
from data_pipeline.attempts import count_attempts, mark
from data_pipeline.decode import DecodeError, Decoder, sample_frames
from data_pipeline.seek import read_frames_at
from data_pipeline.worklist import WorkItem, item_for
from tests.data_pipeline.test_decode import write


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
        monkeypatch.setattr(module, "SEGMENT_SECONDS", seconds)
        monkeypatch.setattr(module, "_BUNDLES_A_WORKER", 1e-9 if seconds else each)
        work = tmp_path / str(number)
        assert len(bundle(tries([1.0] * 20), 0)) == (20, 1, 3)[number]
        ledgers.append(analyze(items, AnalyzeConfig(workers=0, fps=2.0), models, str(work)).rows)
        parts.append({path.name: path.read_bytes() for path in (work / "parts").iterdir()})
        assert not list((work / "attempts").iterdir())  # let go when all have their verdict
    assert parts[0] == parts[1] == parts[2]
    assert ledgers[0] == ledgers[1] == ledgers[2]
    assert {row["status"] for row in ledgers[0]} == {"ok", "rejected", "failed"}


_POISONED = """
import os, signal, sys, json
from pathlib import Path
import data_pipeline.analyze as module
from data_pipeline.worklist import WorkItem

work, models, items = sys.argv[1], Path(sys.argv[2]), [WorkItem(**row) for row in json.loads(sys.argv[3])]
real = module._Worker._watch

def watch(self, segment, *told):
    with open(work + ".seen", "a") as file:
        file.write(segment.item.source_id + "\\n")
    if segment.item.source_id == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, segment, *told)

module._Worker._watch = watch
module._BUNDLES_A_WORKER = 1
deaths = 0
while True:
    pid = os.fork()
    if pid == 0:
        rows = module.analyze(items, module.AnalyzeConfig(workers=0, fps=1.0), models, work).rows
        Path(work + ".json").write_text(json.dumps(rows))
        os._exit(0)
    if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
        break
    deaths += 1
print(deaths)
"""


@pytest.mark.slow
def test_one_that_ends_its_worker_three_times_is_failed_and_its_bundle_goes_on(models, clip, tmp_path):
    import json

    items = []
    for name in "abcde":
        shutil.copy(clip("no_face" if name != "b" else "single_face"), tmp_path / f"{name}.mp4")
        with (tmp_path / f"{name}.mp4").open("ab") as file:
            file.write(name.encode())  # contents differ
        items.append(item_for(str(tmp_path / f"{name}.mp4")).model_dump())
    work = tmp_path / "work"
    command = [sys.executable, "-c", _POISONED, str(work), str(models), json.dumps(items)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == 3
    rows = {row["source_id"]: (row["status"], row["reason"]) for row in json.loads(Path(f"{work}.json").read_text())}
    assert rows.pop("c") == ("failed", "crash")
    assert rows.pop("b") == ("ok", None)
    assert set(rows.values()) == {("rejected", "no face")}
    seen = Path(f"{work}.seen").read_text().split()
    assert seen.count("c") == 3
    assert all(seen.count(name) == 1 for name in "abde")  # nothing that was done is done again


@pytest.mark.parametrize("kind", ["hang", "changed"])
def test_what_the_other_segments_saw_goes_on_unless_the_file_changed(models, tmp_path, monkeypatch, clip, kind):
    """Three segments of one video, of which the middle one fails."""
    path = write(
        tmp_path / "x.mp4", count=120, make=lambda number, height, width: face_picture(clip, number), size=(320, 320), options={"g": "20"}
    )
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    real = module._Worker._observe

    def observe(self, segment):
        if segment.start and segment.end:
            return [], {"status": "failed", "reason": kind, "message": "as the test wants it"}
        return real(self, segment)

    monkeypatch.setattr(module._Worker, "_observe", observe)
    ledger = analyze([item_for(path)], AnalyzeConfig(workers=0, fps=1.0), models, str(tmp_path / "work"))
    (row,) = ledger.rows
    assert (row["status"], row["reason"], len(row["parts"])) == ("failed", kind, 3)
    assert row["faces"] == 4  # of six seconds, two are lost
    assert ledger.usable() == ([row] if kind == "hang" else [])


def face_picture(clip, number):
    image = np.asarray(Image.open(clip("obama")).convert("RGB").resize((320, 320)))
    return np.ascontiguousarray(np.roll(image, number % 3, axis=1))


def test_a_worker_takes_one_thread(models, tmp_path):
    cv2.setNumThreads(2)
    module._Worker(models, AnalyzeConfig(), {}, str(tmp_path))
    assert cv2.getNumThreads() == 1


def test_marks_are_counted(tmp_path):
    mark(str(tmp_path), ["a", "b"])
    mark(str(tmp_path), ["a"])
    assert count_attempts(str(tmp_path)) == {"a": 2, "b": 1}


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
        with pytest.raises(DecodeError, match="InvalidData"):
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
