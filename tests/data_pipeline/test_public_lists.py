"""Public lists in their makers' formats, for files that are there."""

import json
import sys

import av
import numpy as np
import pytest

from data_pipeline.public_lists import _find, read_public_list
from data_pipeline.worklist import WorkItem, read_worklist, write_worklist
from infra.errors import UserError
from infra.storage import commit


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    for name in ("processed/M2Ohb0FAaJU_1.mp4", "raw/_0tf2n3rlJU.mp4", "Radio10_0.mp4", "WDA_B_001.mp4", "clip_7_1.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    write_video(folder / "RD_Radio11.mp4", 64, 36)
    write_video(folder / "NoCrop.mp4", 64, 36)
    write_video(folder / "00-30GQl0TM.mp4", 64, 36)
    return folder


def write_video(path, width, height):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = width, height
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8))))
        container.mux(stream.encode())


HQ = {  # as its README shows it
    "meta_info": {"appearance_mapping": ["Blurry", "Male", "Young"], "action_mapping": ["blow"]},
    "clips": {
        "M2Ohb0FAaJU_1": {
            "ytb_id": "M2Ohb0FAaJU",
            "duration": {"start_sec": 81.62, "end_sec": 86.17},
            "bbox": {"top": 0.0, "bottom": 0.8815, "left": 0.1964, "right": 0.6922},
            "attributes": {"appearance": [0, 0, 1], "action": [0], "emotion": {"sep_flag": False, "labels": "neutral"}},
            "version": "v0.1",
        },
        "_0tf2n3rlJU_0": {
            "ytb_id": "_0tf2n3rlJU",
            "duration": {"start_sec": 52.72, "end_sec": 56.1},
            "bbox": {"top": 0.0, "bottom": 0.8407, "left": 0.5271, "right": 1.0},
            "attributes": {
                "appearance": [0, 1, 1],
                "action": [0],
                "emotion": {
                    "sep_flag": True,
                    "labels": [
                        {"emotion": "neutral", "start_sec": 0, "end_sec": 0.28},
                        {"emotion": "happy", "start_sec": 1.28, "end_sec": 2.28},
                        {"emotion": "neutral", "start_sec": 2.28, "end_sec": 3.28},
                    ],
                },
            },
            "version": "v0.1",
        },
        "gone_2": {"ytb_id": "gone", "duration": {"start_sec": 0, "end_sec": 1}, "bbox": {"top": 0, "bottom": 1, "left": 0, "right": 1}},
    },
}


def test_celebv_hq(tmp_path, videos):
    path = tmp_path / "celebvhq_info.json"
    path.write_text(json.dumps(HQ))
    (cut, whole), missing = read_public_list("celebv_hq", str(path), str(videos))
    assert missing == ["gone_2"]
    # what is cut is cropped too: the box is of the whole video
    assert (cut.uri, cut.start, cut.box, cut.group) == (str(videos / "processed/M2Ohb0FAaJU_1.mp4"), None, None, "M2Ohb0FAaJU")
    assert cut.attributes == {"emotion": "neutral", "blurry": "no", "male": "no", "young": "yes"}
    assert (whole.uri, whole.start, whole.end) == (str(videos / "raw/_0tf2n3rlJU.mp4"), 52.72, 56.1)
    assert whole.box == (0.5271, 0.0, 1.0, 0.8407)  # left, top, right, bottom
    assert whole.attributes == {"emotion": "neutral, happy", "blurry": "no", "male": "yes", "young": "yes"}
    assert (whole.licence, whole.url) == ("CelebV-HQ non-commercial", "https://www.youtube.com/watch?v=_0tf2n3rlJU")
    assert cut.source_id == "celebv_hq_x4d2x4fhb0x46x41ax4ax55_1"  # case is kept apart: ids are lower case
    write_worklist([cut, whole], str(tmp_path / "w.parquet"))
    assert read_worklist(str(tmp_path / "w.parquet")) == [cut, whole]
    path.write_text(json.dumps(HQ | {"meta_info": {}}))
    with pytest.raises(UserError, match=r"3 appearance attributes, of which meta_info\.appearance_mapping names 0"):
        read_public_list("celebv_hq", str(path), str(videos))


def test_celebv_text_has_boxes_in_pixels(tmp_path, videos):
    clip = {
        "ytb_id": "00-30GQl0TM",
        "duration": {"start_frame": 0.2, "end_frame": 0.8},
        "bbox": {"top": 0, "bottom": 18, "left": 16, "right": 48},
    }
    for content in ({"clips": {"00-30GQl0TM_7": clip}}, {"00-30GQl0TM_7": clip}):  # as its README has it, and as its script reads it
        (tmp_path / "text.json").write_text(json.dumps(content))
        ((item,), missing) = read_public_list("celebv_text", str(tmp_path / "text.json"), str(videos))
        assert (item.start, item.end, item.box, missing) == (0.2, 0.8, (0.25, 0.0, 0.75, 0.5), [])


HDTF = {  # lines of its own kind: a byte order mark, numbers from 0, and a clip that has no crop
    "RD_video_url.txt": "\ufeffRadio10 https://example.org/10\nRadio11 https://example.org/11\nNoCrop https://example.org/n\n",
    "RD_annotion_time.txt": "Radio10.mp4 00:30-02:50\nRadio11.mp4 00:30-01:00 01:30-02:30 \nNoCrop.mp4 00:05-00:10\n",
    "RD_crop_wh.txt": "Radio10_0.mp4 483 390 0 390\nRadio11_0.mp4 320 640 0 640\nRadio11_1.mp4 640 720 72 720\n",
    "RD_resolution.txt": "Radio10.mp4 720\nRadio11.mp4 720\nNoCrop.mp4 720\n",
    "WDA_video_url.txt": "B https://example.org/b\n",
    "WDA_annotion_time.txt": "B.mp4 00:00-00:05 00:10-00:15 00:20-00:25\n",
    "WDA_crop_wh.txt": "B_1.mp4 0 700 0 700\nB_2.mp4 0 700 0 700\n",
    "WDA_resolution.txt": "B.mp4 720\n",
}


@pytest.mark.parametrize("store", [False, True])
def test_hdtf(tmp_path, videos, store, capsys):
    tables, files = ("memory://hdtf/tables", "memory://hdtf/videos") if store else (str(tmp_path / "tables"), str(videos))
    for name, text in HDTF.items():
        commit(f"{tables}/{name}", text.encode())
    for file in videos.rglob("*.mp4") if store else ():
        commit(f"{files}/{file.name}", file.read_bytes())
    items, missing = read_public_list("hdtf", tables, files)
    found = [(item.uri.removeprefix(f"{files}/"), item.start, item.end, item.group) for item in items]
    assert found == [
        ("Radio10_0.mp4", None, None, "Radio10"),  # cut and cropped already
        ("RD_Radio11.mp4", 30.0, 60.0, "Radio11"),
        ("RD_Radio11.mp4", 90.0, 150.0, "Radio11"),
        ("NoCrop.mp4", 5.0, 10.0, "NoCrop"),
        ("WDA_B_001.mp4", None, None, "B"),  # the script numbers those with a crop: this is B_2
    ]
    assert items[1].box == pytest.approx((0.25, 0.0, 0.75, 640 / 720))  # of 1280 x 720, though the file has 64 x 36
    assert items[2].box == pytest.approx((0.5, 0.1, 1.0, 1.0))  # what lies outside the picture is cut off
    assert items[4].source_id == "hdtf_x42_2" and items[3].box is None
    assert "of 1 clips (NoCrop_0) it is not known which face is meant" in capsys.readouterr().out
    assert missing == ["B_0", "B_1"]


def test_openhumanvid(tmp_path, videos):
    path = tmp_path / "part.csv"
    path.write_text("path,luminance,caption\nraw/clip_7_1.mp4,0.4," + "long " * 40 + "\nraw/gone.mp4,0.2,x\n")
    items, missing = read_public_list("openhumanvid", str(path), str(videos))
    assert (items[0].attributes, items[0].group, missing) == ({"luminance": "0.4"}, "raw/clip_7", ["raw/gone"])


@pytest.mark.parametrize(
    ("films", "apart"),
    [
        ([["filmA/0001", "filmA/0002"], ["filmB/0001"]], []),
        ([["a/film_1", "a/film_22"], ["b/film_1"]], ["a/film_x_1"]),
        ([["8ac3/" + "0f" * 32 + "_010804_010895", "9e20/" + "0f" * 32 + "_016564_016789"], ["8ac3/" + "1f" * 32 + "_010804_010895"]], []),
        ([], ["8ac3/8ac36328", "8ac3/8ac3ffff", "0001", "0002"]),  # names that say nothing of a film
    ],
)
def test_clips_of_one_film_are_tied_and_those_of_others_are_not(tmp_path, films, apart):
    films = [*films, *([name] for name in apart)]
    for name in (tmp_path / "v" / f"{name}.mp4" for film in films for name in film):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(name.name.encode())
    path = tmp_path / "part.csv"
    path.write_text("path\n" + "".join(f"{name}.mp4\n" for film in films for name in film))
    items, missing = read_public_list("openhumanvid", str(path), str(tmp_path / "v"))
    of = {item.uri.removeprefix(f"{tmp_path}/v/").removesuffix(".mp4"): item.group for item in items}
    groups = [{of[name] for name in film} for film in films]
    assert not missing and all(len(group) == 1 for group in groups) and len(set.union(*groups)) == len(films)


def _found(tmp_path, rows, files):
    """Row -> file, and what is missing, of an OpenHumanVid list and a folder."""
    folder = tmp_path / "clips"
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(file.encode())
    path = tmp_path / "part.csv"
    path.write_text("path,row\n" + "".join(f"{row},{row}\n" for row in rows))
    items, missing = read_public_list("openhumanvid", str(path), str(folder))
    assert len({item.source_id for item in items}) == len({item.uri for item in items}) == len(items)
    return {item.attributes["row"]: item.uri.removeprefix(f"{folder}/") for item in items}, missing


@pytest.mark.parametrize("above", ["", "hf/videos/"])
def test_clips_of_one_name_in_two_folders_are_two(tmp_path, above):
    rows = ["a/0001.mp4", "b/0001.mp4", "b/0002.mp4"]
    assert _found(tmp_path, rows, [above + row for row in rows]) == ({row: above + row for row in rows}, [])


def test_a_folder_that_begins_lower_than_the_lists_paths(tmp_path):
    assert _found(tmp_path, ["x/a/0001.mp4", "x/b/0001.mp4"], ["a/0001.mp4", "b/0001.mp4"])[0]["x/b/0001.mp4"] == "b/0001.mp4"


def calls_for(films, above, below):
    """How many functions are called to find the clips of so many films, five each, whose files all have five names in a folder of one name."""
    clips = [f"{film:05d}/clips/{clip:04d}.mp4" for film in range(films) for clip in range(5)]
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        found, unclear = _find([above + clip for clip in clips[: -len(clips) // 2]], {below + clip for clip in clips})
    finally:
        sys.setprofile(None)
    assert found == {below + clip: above + clip for clip in clips[: -len(clips) // 2]} and not unclear
    return calls


@pytest.mark.parametrize(("above", "below"), [("", ""), ("part/", ""), ("", "part/")])
def test_twice_the_clips_are_found_with_twice_the_work(above, below):
    assert calls_for(80, above, below) < 2.5 * calls_for(40, above, below)


def test_a_file_without_a_name_is_nobodys(tmp_path):
    assert _found(tmp_path, ["a/0001.mp4"], ["a/0001.mp4", "a/.mp4"]) == ({"a/0001.mp4": "a/0001.mp4"}, [])


def test_a_clip_that_is_not_there_does_not_get_anothers_file(tmp_path, capsys):
    assert _found(tmp_path, ["a/0001.mp4", "b/0001.mp4"], ["b/0001.mp4"]) == ({"b/0001.mp4": "b/0001.mp4"}, ["a/0001"])
    assert "not clear" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "files", "unclear"),
    [
        (["a/0001.mp4", "b/0001.mp4"], ["0001.mp4"], "a/0001, b/0001"),  # two clips, one file
        (["0001.mp4", "c/0002.mp4"], ["a/0001.mp4", "b/0001.mp4", "c/0002.mp4"], "0001"),  # one clip, two files
        (["c/0001.mp4"], ["a/0001.mp4", "b/0001.mp4"], "c/0001"),
        (["x/a/0001.mp4", "y/a/0001.mp4"], ["a/0001.mp4"], "x/a/0001, y/a/0001"),
    ],
)
def test_what_could_be_several_files_is_told_and_left_out(tmp_path, capsys, rows, files, unclear):
    found, missing = _found(tmp_path, rows, files)
    assert set(found) == {"c/0002.mp4"} & set(rows) and not missing
    assert f"of {unclear.count('0001')} clips ({unclear}) it is not clear which file is theirs" in " ".join(capsys.readouterr().out.split())


def test_a_whole_video_that_is_there_twice_is_told(tmp_path, videos, capsys):
    (videos / "old").mkdir()
    write_video(videos / "old/_0tf2n3rlJU.mp4", 64, 36)
    (tmp_path / "hq.json").write_text(json.dumps(HQ))
    items, missing = read_public_list("celebv_hq", str(tmp_path / "hq.json"), str(videos))
    assert ([item.group for item in items], missing) == (["M2Ohb0FAaJU"], ["gone_2"])
    assert "of 1 clips (_0tf2n3rlJU_0)" in " ".join(capsys.readouterr().out.split())


def test_names_that_nearly_are_the_same_have_ids_of_their_own(tmp_path):
    names = ["A", "x41", "xx41", "x7841", "a-b", "a_b", "a/b", "ax2fb", "ä", "xc3xa4", "日", "xX41", "x 1"]
    found, missing = _found(tmp_path, [f"{name}.mp4" for name in names], [f"{name}.mp4" for name in names])
    assert found == {f"{name}.mp4": f"{name}.mp4" for name in names} and not missing


def test_two_files_that_a_list_names_alike_are_refused(tmp_path):
    with pytest.raises(UserError, match="names two sources"):
        _found(tmp_path, ["a/0001.mp4", "a/0001.mkv"], ["a/0001.mp4", "a/0001.mkv"])


@pytest.mark.parametrize(
    ("name", "message"), [("laion", "expected one of celebv_hq"), ("celebv_hq", "not a list of celebv_hq"), ("hdtf", "no \\*_video_url")]
)
def test_wrong_lists_are_named(tmp_path, videos, name, message):
    path = tmp_path / "list.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=message):
        read_public_list(name, str(path if name != "hdtf" else videos), str(videos))


def test_rows_of_a_table_nest(tmp_path):
    path = tmp_path / "w.csv"
    path.write_text("source_id,uri,kind,start,end,box,attributes.sex\na,a.mp4,video,1.5,4,0.1 0.1 0.5 0.9,f\n")
    assert read_worklist(str(path)) == [
        WorkItem(
            source_id="a",
            uri=str(tmp_path / "a.mp4"),
            kind="video",
            start=1.5,
            end=4.0,
            box=(0.1, 0.1, 0.5, 0.9),
            attributes={"sex": "f"},
        )
    ]
    written = read_worklist(str(path))
    path.write_text(
        'source_id,uri,kind,span,bbox,attributes.sex\na,a.mp4,video,1.5-4,"[0.1, 0.1, 0.5, 0.9]",f\n'
    )  # the other names of the same columns
    assert read_worklist(str(path)) == written
    row = {"source_id": "a", "uri": "a.mp4", "kind": "video", "span": [1.5, 4], "bbox": [0.1, 0.1, 0.5, 0.9], "attributes": {"sex": "f"}}
    (tmp_path / "w.jsonl").write_text(json.dumps(row))
    assert read_worklist(str(tmp_path / "w.jsonl")) == written
    wrong = [{"span": "soon"}, {"span": 1}, {"span": [1, 2], "start": 1}, {"bbox": "0 0 1"}]
    (tmp_path / "w.jsonl").write_text(
        "\n".join(json.dumps(row | {"bbox": None, "source_id": f"s{n}"} | more) for n, more in enumerate(wrong))
    )
    with pytest.raises(UserError, match=r"(?s)4 mistakes.*'soon'.*given '1'.*span: given beside start.*box: expected four numbers"):
        read_worklist(str(tmp_path / "w.jsonl"))
    path.write_text("source_id,uri,kind,start,end,box\na,a.mp4,video,5,4,\nb,b.mp4,video,,,0.5 0 0.1 1\n")
    with pytest.raises(UserError, match=r"(?s)2 mistakes.*start, end: expected.*box: expected"):
        read_worklist(str(path))
