"""Sources as files: on a server that is busy, larger than the memory, of names that generated ones have; and what is said of those that cannot be read."""

import errno
import json
import os
import random
import shutil
import tracemalloc
import types
from pathlib import Path

import av
import numpy as np
import pytest

import data_pipeline.sources as sources_module
import data_pipeline.worker as worker_module
from data_pipeline import observe, staging
from data_pipeline.analyze import analyze
from data_pipeline.config import DataConfig
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError
from data_pipeline.places import warps
from data_pipeline.plan import plan_build
from data_pipeline.removals import hash_name
from data_pipeline.render import Crop
from data_pipeline.render import _Worker as RenderWorker
from data_pipeline.segments import AnalyzeConfig, Segment, Try, bundle
from data_pipeline.sources import ContentHashes, plan_segments
from data_pipeline.staging import staged
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig, edit_photos
from data_pipeline.synthetic.warp import WarpConfig
from data_pipeline.worker import Worker
from data_pipeline.worklist import WorkItem, item_for
from infra import backoff, storage
from infra.errors import UserError
from tests.data_pipeline.range_server import RangeServer
from tests.data_pipeline.videos import write, write_with_sound

LONE = AnalyzeConfig(workers=0)
ALWAYS = 10**9


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `tmp_path/served`; nobody waits for it, and copies are staged in `tmp_path/scratch`."""
    monkeypatch.setattr(backoff, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("LATO_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "served").mkdir()
    served = RangeServer(tmp_path / "served")
    yield served
    served.close()


@pytest.fixture(scope="module")
def worker(models, tmp_path_factory):
    return Worker(models, LONE, {}, str(tmp_path_factory.mktemp("looked")), "run")


@pytest.mark.parametrize("name", ["a.mp4", "a.jpg", "a.json"])
def test_a_worker_calls_nothing_missing_on_a_busy_server(server, worker, name):
    segment = Segment(item_for(f"{server.uri}/{name}"), 0.0, None, "content", "x")
    server.busy = ALWAYS
    with pytest.raises(UserError, match=f"{name} cannot be read now"):
        worker._observe(segment)
    server.busy = 0
    assert worker._observe(segment)[1]["reason"] == "missing"


@pytest.mark.parametrize(("name", "image"), [("a.mp4", False), ("a.jpg", True)])
def test_no_crop_is_given_up_because_of_a_busy_server(server, tmp_path, name, image):
    uri = f"{server.uri}/{name}"
    crop = Crop("a", "content", "x.jpg", uri if image else None, 1.0, (0.0, 0.0, 10.0))
    server.busy = ALWAYS
    with pytest.raises(OSError, match=name):
        RenderWorker(str(tmp_path), "pyav").run([(uri, [crop])])
    server.busy = 0
    assert list(RenderWorker(str(tmp_path), "pyav").run([(uri, [crop])])) == ["a"]


def test_photos_on_a_busy_server_do_not_go_without_edits(server, tmp_path):
    photos = [item_for(f"{server.uri}/a.jpg")]
    edit = lambda: edit_photos("warp", WarpConfig(workers=0), lambda: pytest.fail("no editor"), photos, str(tmp_path), 0, warps())  # noqa: E731
    server.busy = ALWAYS
    with pytest.raises(UserError, match=r"a\.jpg cannot be read now"):
        edit()
    server.busy = 0
    assert edit() == []


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
    given, live = write(tmp_path / "a.mkv", count=120, options={"g": "20", "bf": "0", "sc_threshold": "0"}), str(tmp_path / "live.mkv")
    with av.open(given) as container, av.open(live, "w", options={"live": "1"}) as made:
        stream = made.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
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


def test_a_driver_hashes_what_lies_elsewhere_without_a_copy(server, tmp_path):
    path = write(tmp_path / "served/a.mp4")
    hashes = ContentHashes(str(tmp_path / "w"))
    assert hashes.of(item_for(f"{server.uri}/a.mp4")) == hashes.of(item_for(path))
    assert not (tmp_path / "scratch").exists()
    with staged(f"{server.uri}/a.mp4") as copy:
        assert copy.read_bytes() == (tmp_path / "served/a.mp4").read_bytes()


@pytest.fixture
def keys(server, monkeypatch):
    """The server, asked as a store with an S3 API."""
    import s3fs

    for name, value in {"AWS_ENDPOINT_URL": server.uri, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidObjectState"])
def test_an_object_that_may_not_be_read_ends_no_build(keys, worker, models, tmp_path, code):
    """As one in an archive, or another team's: the ledger names it, the others go on."""
    (tmp_path / "served/b").mkdir()
    write(tmp_path / "served/b/a.mp4")
    for name in ("b.mp4", "b.jpg"):
        (tmp_path / "served/b" / name).write_bytes(b"x")
        keys.denied[f"/b/{name}"] = code
    (tmp_path / "served/b/set.json").write_text('{"images": [{"uri": "b.jpg"}]}')
    items = [
        WorkItem(source_id=uri.replace(".", "_"), uri=f"s3://b/{uri}", kind=kind)
        for uri, kind in {"a.mp4": "video", "b.mp4": "video", "set.json": "image"}.items()
    ]
    rows = {row["source_id"]: row for row in analyze(items, LONE, models, str(tmp_path / "w")).rows}
    assert rows["a_mp4"]["reason"] == "no face"
    for item in items[1:]:
        row = rows[item.source_id]
        assert (row["status"], row["reason"], row["parts"]) == ("failed", "missing", [])
        assert item.uri in row["message"]
    for item in items[1:]:  # or since it was hashed
        row = worker._observe(Segment(item, 0.0, None, "content", "x"))[1]
        assert (row["status"], row["reason"]) == ("failed", "missing")


@pytest.mark.parametrize("code", ["ExpiredToken", "SignatureDoesNotMatch"])
def test_keys_that_are_refused_are_no_verdict_on_a_source(keys, worker, tmp_path, code):
    item = WorkItem(source_id="a", uri="s3://b/a.mp4", kind="video")
    keys.denied["/b/a.mp4"] = code
    with pytest.raises(UserError, match=r"s3://b/a\.mp4 cannot be read now.*credentials"):
        ContentHashes(str(tmp_path)).of(item)
    with pytest.raises(UserError, match=r"s3://b/a\.mp4 cannot be read now"):
        worker._observe(Segment(item, 0.0, None, "content", "x"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_told_with_the_source(worker, tmp_path, monkeypatch, number):
    item = item_for(write(tmp_path / "a.mp4"))

    def fail(uri):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sources_module, "content_sha256", fail)
    monkeypatch.setattr("data_pipeline.worker.sha256_file", fail)
    said = f"a.mp4 cannot be read now.*{os.strerror(number)}"
    with pytest.raises(UserError, match=said):
        ContentHashes(str(tmp_path / "w")).of(item)
    with pytest.raises(UserError, match=said):
        worker._observe(Segment(item, 0.0, None, "content", "x"))


def test_a_scratch_that_cannot_be_written_to_is_no_verdict_on_a_source(server, worker, tmp_path, monkeypatch):
    write(tmp_path / "served/a.mp4")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LATO_SCRATCH", str(tmp_path / "file/scratch"))
    with pytest.raises(UserError, match=r"cannot write to .*LATO_SCRATCH"):
        worker._observe(Segment(item_for(f"{server.uri}/a.mp4"), 0.0, None, "content", "x"))


def test_a_file_is_hashed_in_little_memory(tmp_path):
    with open(tmp_path / "film.mp4", "wb") as film:
        film.truncate(200 * 1024**2)
    tracemalloc.start()
    try:
        assert ContentHashes(str(tmp_path / "w")).of(item_for(str(tmp_path / "film.mp4")))
        assert tracemalloc.get_traced_memory()[1] < 20 * 1024**2
    finally:
        tracemalloc.stop()


def test_hashes_are_kept_before_the_last_is_there(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    items = [item_for(str(tmp_path / f"{name}.mp4")) for name in "abc"]
    asked = []
    monkeypatch.setattr(sources_module, "content_sha256", lambda uri: asked.append(uri) or f"of {uri}")
    early = ContentHashes(str(tmp_path))
    early.of(items[0])
    assert not (tmp_path / "contents.json").exists()
    monkeypatch.setattr(sources_module, "_KEEP_SECONDS", -1.0)
    early.of(items[1])  # and here the run is killed
    later = ContentHashes(str(tmp_path))
    later.of(items[2])
    assert later.of(items[0]) == f"of {items[0].uri}" and asked == [item.uri for item in items]
    assert len(json.loads((tmp_path / "contents.json").read_text())) == 3
    later.save()
    assert len(json.loads((tmp_path / "contents.json").read_text())) == 2  # b is no source any more


def test_photos_that_are_edited_are_not_read_again_by_another_run(models, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    items, work, opened = [item_for(str(tmp_path / "a.jpg"))], str(tmp_path / "w"), []
    real = storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda uri: opened.append(uri) or real(uri))
    for wanted in (True, False):
        opened.clear()
        assert edit_photos("warp", WarpConfig(workers=0), lambda: None, items, work, 0, warps()) == []
        assert analyze(items, LONE, models, work).rows[0]["reason"] == "decode"
        assert (items[0].uri in opened) == wanted


@pytest.mark.parametrize("maker", ["warp", "anny"])
def test_a_generated_source_does_not_take_the_place_of_a_listed_one(models, clip, tmp_path, maker):
    names = {"warp": ("a", "a_warp"), "anny": ("a", "anny_0_00000")}[maker]
    for name, photo in zip(names, ("obama", "biden"), strict=True):
        shutil.copyfile(clip(photo), tmp_path / f"{name}.jpg")
    synthetic = (
        SyntheticConfig(warp=WarpConfig(workers=0)) if maker == "warp" else SyntheticConfig(anny=AnnyConfig(people=1, images=1, workers=0))
    )
    config = DataConfig(analyze=LONE, synthetic=synthetic)
    items = [item_for(str(tmp_path / f"{name}.jpg")) for name in names]
    with pytest.raises(UserError, match=f"(?s)generated of them.*'{names[1]}' names two sources") as told:
        observe.observe(config, str(tmp_path / "w"), models, items)
    assert items[1].uri in str(told.value)
    assert not (tmp_path / "w/parts").exists() and not (tmp_path / "w/worklist.parquet").exists()


def test_of_what_cannot_be_read_the_ledger_says_why(models, tmp_path):
    (tmp_path / "bad.json").write_text('{"images": [{"uri": "a.jpg", "expression": 1}]}')
    (tmp_path / "lacks.json").write_text('{"images": [{"uri": "a.jpg"}]}')
    items = [item_for(str(tmp_path / name)) for name in ("bad.json", "lacks.json", "gone.jpg")]
    rows = {row["source_id"]: row for row in analyze(items, LONE, models, str(tmp_path / "w")).rows}
    assert rows["bad"]["reason"] == "decode" and "not an image set: Extra inputs" in rows["bad"]["message"]
    assert rows["lacks"]["reason"] == rows["gone"]["reason"] == "missing"
    assert "a picture that it names" in rows["lacks"]["message"] and str(tmp_path / "a.jpg") in rows["lacks"]["message"]
    assert rows["gone"]["message"].startswith(f"{items[2].uri} is missing or unreadable (")


def test_a_source_that_begins_beyond_its_end_is_told_and_planned_as_nothing(models, tmp_path):
    path = write(tmp_path / "a.mp4")  # two seconds
    items = [WorkItem(source_id=name, uri=path, kind="video", start=start) for name, start in {"a": None, "b": 100.0, "c": 1.99}.items()]
    plan = plan_build(items, DataConfig(analyze=LONE), models)
    assert plan.video_seconds == pytest.approx(2.01) and plan.frames == 11 + 0 + 1 and not plan.unreadable
    rows = {row["source_id"]: row for row in analyze(items, LONE, models, str(tmp_path / "w")).rows}
    told = {name: (row["status"], row["reason"], row["message"]) for name, row in rows.items()}
    assert told["b"] == told["c"] == ("rejected", "empty span", "nothing of it lies between start and end")
    assert told["a"][1] == "no face"
    assert os.listdir(tmp_path / "w/parts")


def test_a_plan_leaves_out_what_was_removed(tmp_path):
    folder, work = tmp_path / "given", tmp_path / "w"
    for place in (folder, work):
        place.mkdir()
    for name in "ab":
        (folder / f"{name}.mp4").write_bytes(name.encode())
    config = DataConfig(folder=str(folder), analyze=LONE)
    assert [item.source_id for item in observe.read_sources(config, [], str(work))] == ["a", "b"]
    (work / "removals.jsonl").write_text(json.dumps({"kind": "source", "value": hash_name("a")}) + "\n")
    assert [item.source_id for item in observe.read_sources(config, [], str(work))] == ["b"]


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_long_video_is_hashed_once_by_a_worker_and_not_for_each_piece(server, models, tmp_path, monkeypatch, where):
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 2.0)
    path = write(tmp_path / "served/a.mp4", count=120, options={"g": "20", "sc_threshold": "0"})
    uri, read = path if where == "here" else f"{server.uri}/a.mp4", []
    real = worker_module.sha256_file
    monkeypatch.setattr(worker_module, "sha256_file", lambda path: read.append(path) or real(path))
    (row,) = analyze([item_for(uri)], LONE, models, str(tmp_path / "w")).rows
    assert (row["reason"], len(row["parts"]), len(read)) == ("no face", 3, 1)


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


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_video_that_is_touched_or_fetched_twice_while_it_is_looked_at_is_no_other(server, worker, tmp_path, monkeypatch, where):
    path, real = write(tmp_path / "served/a.mp4"), worker_module.watch_video

    def meanwhile(*args):
        for file in [Path(path)] if where == "here" else list((tmp_path / "scratch/lato_scratch").glob("*.mp4")):
            shutil.copyfile(file, tmp_path / "another.mp4")
            os.replace(tmp_path / "another.mp4", file)
        return real(*args)

    monkeypatch.setattr(worker_module, "watch_video", meanwhile)
    uri = path if where == "here" else f"{server.uri}/a.mp4"
    assert worker._observe(Segment(item_for(uri), 0.0, 1.0, storage.sha256_file(path), "x"))[1]["reason"] == "no face"


def test_a_copy_that_is_read_is_not_evicted_however_long_that_takes(server, tmp_path, monkeypatch):
    """A seeker opens it anew by its path: gone, it would be called missing for good."""
    for name in "abc":
        write(tmp_path / f"served/{name}.mp4", count=5 + ord(name))
    monkeypatch.setattr(staging, "_SCRATCH_BYTES", 0)
    with staged(f"{server.uri}/a.mp4") as read:
        with staged(f"{server.uri}/b.mp4") as left:
            pass
        for copy in (read, left):
            os.utime(copy, (0, 0))
        with staged(f"{server.uri}/c.mp4"):
            assert read.exists() and not left.exists()
    os.utime(read, (0, 0))
    with staged(f"{server.uri}/b.mp4"):
        assert not read.exists()
