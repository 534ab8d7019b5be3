"""Public lists in their makers' formats, for files that are there."""

import json

import pytest

from data_pipeline.public_lists import read_public_list
from data_pipeline.worklist import WorkItem, read_worklist, write_worklist
from infra.errors import UserError


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("M2Ohb0FAaJU_1.mp4", "WDA_A_000.mp4", "WDA_B_000_0.mp4", "clip_7_1.mp4"):
        (folder / name).write_bytes(b"")
    return folder


def test_celebv(tmp_path, videos):
    clip = {
        "ytb_id": "M2Ohb0FAaJU",
        "duration": {"start_sec": 81.6, "end_sec": 86.2},
        "bbox": {"top": 0.1, "bottom": 0.7, "left": 0.3, "right": 0.7},
    }
    labelled = clip | {"attributes": {"appearance": [0] * 40, "action": [0] * 35, "emotion": {"sep_flag": False, "labels": "happy"}}}
    path = tmp_path / "celebvhq_info.json"
    path.write_text(json.dumps({"meta_info": {}, "clips": {"M2Ohb0FAaJU_1": labelled, "other_2": clip}}))
    items, missing = read_public_list("celebv_hq", str(path), str(videos))
    assert missing == ["other_2"]
    assert (items[0].group, items[0].attributes, items[0].licence) == ("M2Ohb0FAaJU", {"emotion": "happy"}, "CelebV-HQ non-commercial")
    assert items[0].source_id == "celebv_hq_x4d2x4fhb0x46x41ax4ax55_1"  # case is kept apart: ids are lower case
    write_worklist(items, str(tmp_path / "w.parquet"))
    assert read_worklist(str(tmp_path / "w.parquet")) == items


def test_hdtf(tmp_path, videos):
    (tmp_path / "WDA_video_url.txt").write_text("WDA_A_000.mp4 https://example.org/a\nB_000.mp4 https://example.org/b\n")
    (tmp_path / "WDA_annotion_time.txt").write_text("WDA_A_000.mp4 00:10-00:20 01:00-01:30\nB_000.mp4 00:00-00:05\n")
    items, missing = read_public_list("hdtf", str(tmp_path), str(videos))
    assert [(item.start, item.end, item.group) for item in items] == [
        (10.0, 20.0, "WDA_A_000"),
        (60.0, 90.0, "WDA_A_000"),
        (None, None, "B_000"),
    ]
    assert len({item.source_id for item in items}) == 3
    assert missing.count("B_000") == 1


def test_openhumanvid(tmp_path, videos):
    path = tmp_path / "part.csv"
    path.write_text("path,luminance,caption\nraw/clip_7_1.mp4,0.4," + "long " * 40 + "\nraw/gone.mp4,0.2,x\n")
    items, missing = read_public_list("openhumanvid", str(path), str(videos))
    assert (items[0].attributes, items[0].group, missing) == ({"luminance": "0.4"}, "clip_7", ["gone"])


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
    path.write_text("source_id,uri,kind,start,end,box\na,a.mp4,video,5,4,\nb,b.mp4,video,,,0.5 0 0.1 1\n")
    with pytest.raises(UserError, match=r"(?s)2 mistakes.*start, end: expected.*box: expected"):
        read_worklist(str(path))
