"""Long videos are cut into pieces at keyframes, wherever their clock begins, whatever their header says, and whoever serves them."""

import errno
import os
import random
from pathlib import Path

import av
import numpy as np
import pytest

import data_pipeline.sources as sources_module
import data_pipeline.worker as worker_module
from data_pipeline.analyze import analyze
from data_pipeline.config import DataConfig
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError
from data_pipeline.plan import plan_build
from data_pipeline.segments import AnalyzeConfig, Segment, Try, bundle
from data_pipeline.sources import Pieces, plan_segments
from data_pipeline.worker import Worker
from data_pipeline.worklist import WorkItem, item_for
from infra import storage
from infra.errors import UserError
from tests.data_pipeline.videos import packed_anew, write, write_with_sound

LONE = AnalyzeConfig(workers=0)
ALWAYS = 10**9


@pytest.fixture(scope="module")
def worker(models, tmp_path_factory):
    return Worker(models, LONE, {}, str(tmp_path_factory.mktemp("looked")), "run")


def test_pieces_do_not_depend_on_a_servers_mood(server, tmp_path, monkeypatch):
    """They are in the names of parts."""
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    path = write(tmp_path / "served/long.mp4", count=120, options={"g": "20"})
    pieces = plan_segments(item_for(path))
    assert len(pieces) == 4
    item = item_for(f"{server.uri}/long.mp4")
    for methods in (("HEAD", "GET"), ("GET",)):
        server.methods = methods
        server.busy = 2
        assert plan_segments(item) == pieces and server.busy == 0
        server.busy = ALWAYS
        with pytest.raises(UserError, match=r"long\.mp4 cannot be read now"):
            plan_segments(item)
        server.busy = 0
    assert plan_segments(item_for(f"{server.uri}/gone.mp4")) == [(0.0, None, 0.0)]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_a_long_video_is_cut_wherever_its_clock_begins(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    path = write_with_sound(tmp_path / f"late.{suffix}", [7.0 + n * 0.05 for n in range(120)], 0, keyframes=20)
    cuts = [(0.0, 2.0), (2.0, 4.0), (4.0, None)]
    assert [piece[:2] for piece in plan_segments(item_for(str(path)))] == [pytest.approx(cut, abs=0.01) if cut[1] else cut for cut in cuts]


def test_a_recording_without_a_length_is_cut_as_any_other(tmp_path, monkeypatch, models):
    """Written live, its header says nothing; as one piece, an hour of it would be held at once."""
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    given = write(tmp_path / "a.mkv", count=120, options={"g": "20", "bf": "0", "sc_threshold": "0"})
    live = packed_anew(given, tmp_path / "live.mkv", {"live": "1"})
    with av.open(live) as container:
        assert container.duration is None and not container.streams.video[0].duration
    pieces = plan_segments(item_for(live))
    assert pieces == plan_segments(item_for(given)) and [piece.seconds for piece in pieces] == [2.0, 2.0, 2.0]
    whole = list(sample_frames(live, 5.0))
    parts = [frame for piece in pieces for frame in sample_frames(live, 5.0, piece.start, piece.end)]
    assert [frame.number for frame in parts] == [frame.number for frame in whole] and len(whole) == 30
    assert all(np.array_equal(one.image, other.image) for one, other in zip(parts, whole, strict=True))
    planned = plan_build([item_for(live)], DataConfig(analyze=LONE), models)
    assert planned.video_seconds == pytest.approx(6.0) and planned.frames == 31


def test_a_recording_without_a_length_is_read_to_its_end_once(tmp_path, monkeypatch, models):
    """A start of a build that stands would else fetch all such films again, one after another."""
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    given = write(tmp_path / "a.mkv", count=120, options={"g": "20", "bf": "0", "sc_threshold": "0"})
    item, work = item_for(packed_anew(given, tmp_path / "live.mkv", {"live": "1"})), tmp_path / "w"
    read, real = [], sources_module.open_read
    monkeypatch.setattr(sources_module, "open_read", lambda uri: read.append(uri) or real(uri))
    first = analyze([item], LONE, models, str(work)).rows
    assert read == [item.uri] and len(first[0]["parts"]) == 3
    os.utime(item.uri)
    assert analyze([item], LONE, models, str(work)).rows == first and len(read) == 1
    (piece,) = Pieces(str(work)).of(item.model_copy(update={"start": 5.0}), first[0]["content"])
    assert piece.start == 5.0 and len(read) == 2  # another span has pieces of its own
    (work / "pieces.json").write_text('{"x": [[0.0]]}')
    with pytest.raises(UserError, match=r"pieces\.json is damaged.*Delete it"):
        analyze([item], LONE, models, str(work))


def test_pieces_of_a_video_that_is_away_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    item, kept = item_for(write(tmp_path / "a.mp4", count=120, options={"g": "20"})), Pieces(str(tmp_path / "w"))
    os.rename(item.uri, tmp_path / "away.mp4")
    assert kept.of(item, "content") == [(0.0, None, 0.0)]
    os.rename(tmp_path / "away.mp4", item.uri)
    assert len(kept.of(item, "content")) == 4


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_what_is_there_of_a_long_video_that_was_cut_off_is_cut_into_pieces(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    path = write(tmp_path / f"a.{suffix}", count=300, faststart=suffix == "mp4", options={"g": "20", "bf": "0", "sc_threshold": "0"})
    whole, torn = plan_segments(item_for(path)), tmp_path / f"torn.{suffix}"
    torn.write_bytes(Path(path).read_bytes()[: int(Path(path).stat().st_size * 0.6)])
    pieces = plan_segments(item_for(str(torn)))
    assert len(whole) == 8 and len(pieces) >= 4 and pieces[-1].end is None
    assert [piece[:2] for piece in pieces[:3]] == [piece[:2] for piece in whole[:3]]
    for number, piece in enumerate(pieces):
        frames = sample_frames(str(torn), 5.0, piece.start, piece.end)
        if number < len(pieces) - 1:
            assert len(list(frames)) >= 5
        else:
            with pytest.raises(DecodeError, match="ends at") as told:
                list(frames)
            assert told.value.kind == "truncated"


def test_a_video_with_few_keyframes_is_cut_at_those_that_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    item = item_for(write(tmp_path / "a.mp4", count=300, options={"g": "100", "sc_threshold": "0"}))
    assert [(piece.start, piece.end) for piece in plan_segments(item)] == [(0.0, 5.0), (5.0, 10.0), (10.0, None)]


def test_videos_of_no_known_length_are_not_bundled():
    """Each may be as long as any, and what is seen of a bundle's sources is one worker's."""

    def jobs(kind):
        item = WorkItem(source_id="a", uri="a", kind=kind)
        return bundle([Try(Segment(item, 0.0, None, "c", str(number)), 0) for number in range(2000)], 1)

    assert len(jobs("video")) == 2000 and len(jobs("image")) == 16


def test_pieces_do_not_depend_on_the_machines_state(tmp_path, monkeypatch):
    def fail(uri):
        raise OSError(errno.EMFILE, "too many open files", uri)

    item = item_for(write(tmp_path / "a.mp4"))
    monkeypatch.setattr(sources_module, "open_read", fail)
    with pytest.raises(UserError, match=r"a\.mp4 cannot be read now.*too many open files"):
        plan_segments(item)


def test_torn_headers_stop_no_build(clip, tmp_path):
    """An empty file sends its reader to before its start, which is an error of the file's and not of the machine's (the soak found it)."""
    whole, drawn, torn = Path(clip("single_face")).read_bytes(), random.Random(0), tmp_path / "torn.mp4"
    damaged = [b"", *(whole[drawn.randrange(len(whole)) :] for _ in range(100))]
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(drawn.randint(1, 40)):
            content[-drawn.randrange(1, 6000)] = drawn.randrange(256)  # its header lies at the end
        damaged.append(bytes(content))
    for content in damaged:
        torn.write_bytes(content)
        assert plan_segments(item_for(str(torn)))[0].start == 0.0


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_long_video_is_read_whole_once_by_a_worker_and_not_for_each_piece(server, models, tmp_path, monkeypatch, where):
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    path = write(tmp_path / "served/a.ts", count=120, options={"g": "20", "sc_threshold": "0", "bf": "0"})
    uri, read, known = path if where == "here" else f"{server.uri}/a.ts", [], []
    real, sample = worker_module.sha256_file, worker_module.sample_frames
    monkeypatch.setattr(worker_module, "sha256_file", lambda path: read.append(path) or real(path))
    monkeypatch.setattr(worker_module, "sample_frames", lambda *asked: known.append(asked[-1]) or sample(*asked))
    (row,) = analyze([item_for(uri)], LONE, models, str(tmp_path / "w")).rows
    assert (row["reason"], len(row["parts"]), len(read)) == ("no face", 3, 1)
    assert known == [False, True, True]  # whether it has one clock: a transport stream may be two that were joined


def test_a_video_that_changes_while_a_piece_of_it_is_looked_at_is_told(worker, tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4")
    content, real = storage.sha256_file(path), worker_module.watch_video

    def meanwhile(*args):
        found = real(*args)
        if Path(path).stat().st_size < 10**6:
            with open(path, "ab") as file:
                file.write(bytes(10**6))
        return found

    monkeypatch.setattr(worker_module, "watch_video", meanwhile)
    for _ in range(2):  # nor is it taken for what it was when another piece is looked at
        assert worker._observe(Segment(item_for(path), 0.0, 1.0, content, "x"))[1]["reason"] == "changed"
