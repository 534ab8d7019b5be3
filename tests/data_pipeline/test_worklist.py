"""Work lists: all mistakes of a file at once; equal rows merged; different ones under one id refused."""

import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data_pipeline.decode import sample_frames
from data_pipeline.folders import items_from_folder
from data_pipeline.seek import read_frames_at
from data_pipeline.worklist import IMAGE_SUFFIXES, VIDEO_SUFFIXES, WorkItem, check_items, read_worklist, write_worklist
from infra.errors import UserError
from infra.storage import read_bytes
from lato.pairs import decode_image


def test_written_and_read_back(tmp_path):
    items = [
        WorkItem(source_id="a", uri="/clips/a.mp4", kind="video", licence="CC0", group="g"),
        WorkItem(source_id="b", uri="s3://photos/b.jpg", kind="image"),
    ]
    write_worklist(items, str(tmp_path / "w.parquet"))
    assert read_worklist(str(tmp_path / "w.parquet")) == items


def test_all_mistakes_of_a_file_at_once(tmp_path):
    file = tmp_path / "w.csv"
    file.write_text("source_id,uri,kind,license\nA B,x.mp4,video,CC0\nok,y.mp4,film,\n")
    with pytest.raises(UserError) as error:
        read_worklist(str(file))
    assert "row 1" in str(error.value)
    assert "did you mean 'licence'?" in str(error.value)
    assert "row 2: kind" in str(error.value)


def test_one_id_names_one_source():
    a = WorkItem(source_id="a", uri="a.mp4", kind="video")
    assert check_items([a, a], "here") == [a]
    with pytest.raises(UserError, match="names two sources"):
        check_items([a, a.model_copy(update={"uri": "b.mp4"})], "here")


def test_what_is_merged_is_noted(tmp_path, capsys):
    """Equal rows, also of a list and a folder, and equal files under two names."""
    rows = [WorkItem(source_id=name, uri=f"{name}.mp4", kind="video") for name in ("a", "b", "a", "c", "b", "a")]
    assert check_items(rows, "here") == [rows[0], rows[1], rows[3]]
    assert capsys.readouterr().out == "  here: 3 rows are equal to earlier ones and count once (a, b, a)\n"
    for name in ("a b.mp4", "a-b.mp4"):
        (tmp_path / name).write_bytes(b"one")
    assert len(items_from_folder(str(tmp_path))) == 1
    assert capsys.readouterr().out == f"  {tmp_path}: 1 files are there twice with the same content and count once (a_b)\n"


def test_sets_that_are_written_alike_and_show_others_are_two_sources(tmp_path):
    """One of two people was gone."""
    for name, picture in (("alice", b"a"), ("bob", b"b"), ("again", b"a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(picture)
        (tmp_path / name / "set.json").write_text('{"images": [{"uri": "1.jpg"}]}')
    rows = [WorkItem(source_id="x", uri=str(tmp_path / name / "set.json"), kind="image") for name in ("alice", "bob", "again")]
    assert check_items([rows[0], rows[2]], "here") == [rows[0]]
    with pytest.raises(UserError, match="names two sources"):
        check_items(rows[:2], "here")
    (tmp_path / "again" / "1.jpg").unlink()
    with pytest.raises(UserError, match="names two sources"):
        check_items([rows[0], rows[2]], "here")


def test_two_rows_of_a_file_are_told_by_what_differs():
    a = WorkItem(source_id="a", uri="a.mp4", kind="video", licence="CC0", attributes={"take": "1"})
    b = a.model_copy(update={"licence": "unknown", "attributes": {"take": "1", "room": "x"}})
    with pytest.raises(UserError) as told:
        check_items([a, b], "here")
    assert str(told.value) == (
        "here: an id stands for one source:\n  source_id 'a' has two rows of a.mp4 that differ in attributes.room (None and 'x'), "
        "licence ('CC0' and 'unknown'). Leave out the one that is wrong; where both are meant, rename one"
    )


def test_a_folder_is_read_with_what_lies_below_it(tmp_path):
    """Names of any alphabet give ids of their own; hidden files, other files and loops of links are passed over."""
    for name in (
        "a.mp4",
        "id1/a.mp4",
        "id1/B c.JPG",
        "日本.mp4",
        "東京.mp4",
        "---.png",
        ".hidden/x.mp4",
        "id1/notes.txt",
        "folder.mp4/x.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "id1/loop").symlink_to(tmp_path)
    items = items_from_folder(str(tmp_path), licence="MIT")
    ids = {item.uri.removeprefix(f"{tmp_path}/"): item.source_id for item in items}
    assert set(ids) == {"a.mp4", "id1/a.mp4", "id1/B c.JPG", "日本.mp4", "東京.mp4", "---.png", "folder.mp4/x.png"}
    assert (ids["a.mp4"], ids["id1/a.mp4"], ids["id1/B c.JPG"], ids["folder.mp4/x.png"]) == ("a", "id1_a", "id1_b_c", "folder_mp4_x")
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("work", ["work", "more/work", "link"])
def test_what_a_build_made_is_no_source_of_it(tmp_path, monkeypatch, work):
    for name in ("a.jpg", "more/b.jpg", "workshop/c.jpg", "work/renders/x.jpg", "more/work/renders/y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to(tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    another = "work_renders_x" if work == "more/work" else "more_work_renders_y"  # of a build that this one does not know
    for folder in (".", str(tmp_path)):
        assert {item.source_id for item in items_from_folder(folder, work)} == {"a", "more_b", "workshop_c", another}
    with pytest.raises(UserError, match="the build's own folder"):
        items_from_folder(str(tmp_path / work), work)
    assert len(items_from_folder("more", "elsewhere")) == 2


def test_the_work_folder_in_a_folder_of_an_object_store():
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe({"/clips/a.mp4": b"a", "/clips/w/renders/b.jpg": b"b"})
    try:
        assert [item.source_id for item in items_from_folder("memory://clips", "memory://clips/w/")] == ["a"]
    finally:
        store.rm("/clips", recursive=True)


def test_a_folder_of_an_object_store():
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe({"/clips/a.mp4": b"a", "/clips/more/b.jpg": b"b"})
    try:
        found = {item.source_id: item.uri for item in items_from_folder("memory://clips")}
    finally:
        store.rm("/clips", recursive=True)
    assert found == {"a": "memory://clips/a.mp4", "more_b": "memory://clips/more/b.jpg"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.jsonl", b'{"source_id": "a", "uri": "a.mp4", "kind": "video"}\n{"source_id": "b", oops\n', r"w\.jsonl: line 2: not JSON"),
        ("w.jsonl", b'\n["a", "b"]\n', r"w\.jsonl: line 2: expected an object"),
        ("w.jsonl", b'{"source_id": "a", "uri": "a.mp4", "kind": "video", "attributes": 3}\n', r"row 1: attributes"),
        ("w.parquet", b"no table", r"w\.parquet: not a Parquet file"),
        ("w.csv", "source_id,uri,kind\na,é.mp4,video\n".encode("latin-1"), r"w\.csv: not UTF-8 text"),
        ("w.csv", b"source_id,uri,kind\na,a.mp4,video,more\n", r"row 1: more cells than columns"),
        ("w.csv", b"source_id,uri,kind,box\na,a.mp4,video,left\n", r"w\.csv \(row 1 is .*row 1: box: expected four numbers.*given 'left'"),
        ("w.csv", b"source_id,uri,kind,start\nb,b.mp4,video,1\na,a.mp4,video,noon\n", r"row 2: start: .*number.*given 'noon'"),
        ("w.csv", b"source_id,uri,kind\na,a.mp4,film\n", r"row 1: kind: .*'video'.*given 'film'"),
        ("w.jsonl", b'{"source_id": "a", "uri": "a.mp4", "kind": "video", "start": NaN}\n', r"row 1: start: .*finite number.*given nan"),
        ("w.jsonl", b'{"source_id": "a", "uri": "a.mp4", "kind": "video", "end": 1e999}\n', r"row 1: end: .*finite number.*given inf"),
        ("w.jsonl", b'{"source_id": "a", "uri": "caf\\udce9.mp4", "kind": "video"}\n', r"row 1: 'uri': expected text that UTF-8 can hold"),
        ("w.jsonl", b'{"uri": "a.mp4", "kind": "video"}\n', r"w\.jsonl:\n  row 1: source_id: field required"),
        ("w.csv", b"id,path\n" + b"a,b\n" * 40, r"200 mistakes in .*and 150 more"),
    ],
)
def test_a_broken_file_is_told_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){message}"):
        read_worklist(str(tmp_path / name))


def test_a_table_that_a_spreadsheet_saved_is_read(tmp_path):
    (tmp_path / "w.csv").write_text("\ufeffsource_id,uri,kind\na,a.mp4,video\n", "utf-8")
    assert read_worklist(str(tmp_path / "w.csv")) == [WorkItem(source_id="a", uri=str(tmp_path / "a.mp4"), kind="video")]


def test_what_a_folder_has_beside_is_told(tmp_path, capsys):
    for name in ("a.mp4", "b.M4V", "c.ts", "d.mpg", "e.bmp", "f.heic", "g.heic", "notes.txt", ".hidden/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [item.source_id for item in items_from_folder(str(tmp_path))] == ["a", "b", "c", "d", "e"]
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "4 files are passed over" in said
    assert "2 .heic (f.heic, ...)" in said and "1 .txt (notes.txt)" in said and "1 hidden" in said


def test_names_that_are_not_utf8_are_told_and_end_nothing(tmp_path, capsys):
    for name in (b"a.mp4", b"caf\xe9.mp4", b"caf\xe9/b.jpg", b"r\xe9sum\xe9.txt", "café.mp4".encode()):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(b"x")
    assert [Path(item.uri).name for item in items_from_folder(str(tmp_path))] == ["a.mp4", "café.mp4"]
    said = " ".join(capsys.readouterr().out.split())
    assert r"2 files are passed over, as their names are not UTF-8 (caf\xe9.mp4, caf\xe9/b.jpg). Rename them" in said
    assert r"1 .txt (r\xe9sum\xe9.txt)" in said
    with pytest.raises(UserError, match=r"caf\\xe9: this folder's name is not UTF-8.*Rename it"):
        items_from_folder(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))


def test_a_name_with_two_colons_is_a_name(tmp_path):
    """fsspec reads a chain of file systems in it."""
    (tmp_path / "Foo::Bar").mkdir()
    for name in ("Foo::Bar.mp4", "Foo::Bar/a::b.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    items = items_from_folder(str(tmp_path))
    assert {read_bytes(item.uri).decode() for item in items} == {"Foo::Bar.mp4", "Foo::Bar/a::b.mp4"}
    assert len(items_from_folder(str(tmp_path / "Foo::Bar"))) == 1
    (tmp_path / "w.csv").write_text("source_id,uri,kind\na,Foo::Bar.mp4,video\n")
    assert read_bytes(read_worklist(str(tmp_path / "w.csv"))[0].uri) == b"Foo::Bar.mp4"


@pytest.mark.parametrize("suffix", [".m4v", ".ts", ".mpg", ".wmv", ".flv", ".bmp", ".tiff"])
def test_what_is_taken_in_can_be_read(tmp_path, suffix):
    """Every frame that is looked at can be sought again, bit for bit."""
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    file = tmp_path / f"a{suffix}"
    if suffix in IMAGE_SUFFIXES:
        cv2.imwrite(str(file), picture)
        assert decode_image(file.read_bytes(), file.name).shape == picture.shape
        return
    assert suffix in VIDEO_SUFFIXES
    with av.open(str(file), "w") as made:
        stream = made.add_stream("mpeg2video" if suffix in (".ts", ".mpg") else made.default_video_codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, number, 1), format="rgb24")))
        made.mux(stream.encode())
    frames = list(sample_frames(str(file), 5.0))
    assert len(frames) == 6
    again = read_frames_at(str(file), [frame.pts for frame in frames])
    assert all(np.array_equal(one.image, other.image) for one, other in zip(frames, again, strict=True))


def test_relative_places_in_a_work_list_start_at_its_folder(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "lists", tmp_path / "elsewhere"
    for folder in (home / "clips", elsewhere / "clips"):
        folder.mkdir(parents=True)
    (home / "clips/a.mp4").write_bytes(b"a")
    (elsewhere / "clips/b.mp4").write_bytes(b"b")
    (home / "w.csv").write_text("source_id,uri,kind\na,clips/a.mp4,video\ngone,clips/gone.mp4,video\ns,s3://bucket/x.mp4,video\n")
    monkeypatch.chdir(elsewhere)
    found = {item.source_id: item.uri for item in read_worklist("../lists/w.csv")}
    assert Path(found["a"]).read_bytes() == b"a" and Path(found["a"]).is_absolute()
    assert found["s"] == "s3://bucket/x.mp4" and Path(found["gone"]).is_absolute()  # the ledger will say that it is missing
    (home / "w.csv").write_text("source_id,uri,kind\nb,clips/b.mp4,video\n")
    with pytest.raises(UserError, match=r"row 1: uri: 'clips/b.mp4' starts at the work list's folder.*elsewhere/clips/b.mp4 is"):
        read_worklist("../lists/w.csv")
