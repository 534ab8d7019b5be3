"""Sources as files: on a server that is busy, larger than the memory, of names that generated ones have; and what is said of those that cannot be read."""

import errno
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

import data_pipeline.sources as sources_module
import data_pipeline.worker as worker_module
from data_pipeline import observe, staging
from data_pipeline.analyze import analyze
from data_pipeline.config import DataConfig
from data_pipeline.places import warps
from data_pipeline.plan import plan_build
from data_pipeline.removals import hash_name
from data_pipeline.render import Crop
from data_pipeline.render import _Worker as RenderWorker
from data_pipeline.segments import AnalyzeConfig, Segment
from data_pipeline.sources import ContentHashes
from data_pipeline.staging import staged
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig, edit_photos
from data_pipeline.synthetic.warp import WarpConfig
from data_pipeline.worker import Worker
from data_pipeline.worklist import WorkItem, item_for
from infra import storage
from infra.errors import UserError
from tests.alone import alone
from tests.data_pipeline.videos import write

LONE = AnalyzeConfig(workers=0)
ALWAYS = 10**9


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
    with pytest.raises(UserError, match=f"{name} cannot be read now"):
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


def test_a_photo_that_goes_between_hash_and_edit_has_no_edits_and_ends_no_build(clip, models, tmp_path):
    """Its equal, which would have the same edits, has none either: the next build finds it first."""
    work, items = str(tmp_path / "w"), []
    for name in "ab":
        shutil.copyfile(clip("obama"), tmp_path / f"{name}.jpg")
        items.append(item_for(str(tmp_path / f"{name}.jpg")))
    edit = lambda meanwhile: edit_photos("warp", WarpConfig(workers=0), meanwhile, items, work, 0, warps())  # noqa: E731
    assert edit(lambda: os.unlink(tmp_path / "a.jpg")) == []
    assert not (tmp_path / "w/synthetic").exists()
    rows = {row["source_id"]: row for row in analyze(items, LONE, models, work).rows}
    assert (rows["a"]["status"], rows["a"]["reason"]) == ("failed", "missing")
    assert rows["b"]["status"] == "ok"


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


def hash_and_memory(work, film):
    tracemalloc.start()
    return ContentHashes(work).of(item_for(film)), tracemalloc.get_traced_memory()[1]


def test_a_file_is_hashed_in_little_memory(tmp_path):
    with open(tmp_path / "film.mp4", "wb") as film:
        film.truncate(200 * 1024**2)
    content, most = alone(hash_and_memory, str(tmp_path / "w"), str(tmp_path / "film.mp4"))
    assert content and most < 20 * 1024**2


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


def test_of_two_workers_that_fetch_one_film_at_once_neither_takes_the_copy_from_the_other(server, tmp_path, monkeypatch):
    """The lock of who reads on would be on a file that nobody can open any more."""
    for name in "ab":
        write(tmp_path / f"served/{name}.mp4", count=5 + ord(name))
    monkeypatch.setattr(staging, "_SCRATCH_BYTES", 0)
    uri, real, other = f"{server.uri}/a.mp4", staging._copy_to, []

    def meanwhile(given, part):
        real(given, part)
        if not other:
            other.append(staged(uri))
            other.append(other[0].__enter__())

    monkeypatch.setattr(staging, "_copy_to", meanwhile)
    with staged(uri):
        pass  # one ends, the other reads on
    (reads, copy) = other
    os.utime(copy, (0, 0))
    with staged(f"{server.uri}/b.mp4"):
        assert copy.exists()
    reads.__exit__(None, None, None)


def test_a_copy_that_was_evicted_and_fetched_again_before_it_was_locked_is_opened_again(tmp_path, monkeypatch):
    copy, real = tmp_path / "a.mp4", staging.fcntl.flock
    copy.write_bytes(b"1")

    def meanwhile(held, how):
        (tmp_path / "new").write_bytes(b"1")
        os.replace(tmp_path / "new", copy)
        monkeypatch.setattr(staging.fcntl, "flock", real)
        real(held, how)

    monkeypatch.setattr(staging.fcntl, "flock", meanwhile)
    assert staging._held(copy) is None
    with staging._held(copy) as held:
        assert os.path.samestat(os.fstat(held.fileno()), copy.stat())
