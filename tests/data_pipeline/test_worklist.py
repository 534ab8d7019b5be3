"""Work lists: all mistakes of a file at once; equal rows merged; different ones under one id refused."""

import pytest

from data_pipeline.worklist import WorkItem, check_items, read_worklist, write_worklist
from infra.errors import UserError


def test_written_and_read_back(tmp_path):
    items = [
        WorkItem(source_id="a", uri="a.mp4", kind="video", licence="CC0", group="g"),
        WorkItem(source_id="b", uri="b.jpg", kind="image"),
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
