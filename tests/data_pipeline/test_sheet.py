"""Pairs are drawn from sources that are as they were when they were looked at, and only from these."""

import errno
import json
import os

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_pipeline.sources as sources_module
from data_pipeline import sheet
from data_pipeline.audit import _Page, choose
from data_pipeline.image_set import content_sha256
from data_pipeline.observations import commit_part
from data_pipeline.published import read_index
from data_pipeline.report_pairs import rejected_pairs
from data_pipeline.rules import PairingConfig
from data_pipeline.sheet import Sources, Unreadable
from data_pipeline.worklist import WorkItem, write_worklist
from infra.storage import sha256_file
from tests.data_pipeline.many_candidates import write_version

PART = "a" * 64
POSE = {"yaw": 12.5, "pitch": 0.0, "roll": 0.0}
PAIR = {"key": "k", "crop_source": [0.0, 0.0, 8.0], "crop_target": [0.0, 0.0, 8.0]}
PAIR |= {
    f"{side}_{name}": value
    for side in ("from", "to")
    for name, value in {"part": PART, "frame": 0, "track": 3_000_000, "pts": 0.0, **POSE}.items()
}
PAIR |= {"from_row": 0, "to_row": 1}


def look(work, uri, digest, image_uri=None, name="s"):
    """A work list of one source, and a part with two faces of it."""
    face = {
        "source_id": name,
        "source_sha256": digest,
        "image_uri": image_uri,
        "frame": 0,
        "track": 0,
        "pts": 0.0,
        "landmarks": [1.0] * 136,
        **POSE,
    }
    commit_part(str(work), PART, [face, face], {"source_id": name, "status": "ok"}, {})
    write_worklist([WorkItem(source_id="s", uri=uri, kind="image")], str(work / "worklist.parquet"))
    return Sources(str(work))


def test_a_source_that_has_changed_is_not_drawn(tmp_path):
    """Another picture under the same name would be shown with the old crop, and a label would judge it. (Tracks are numbered over pieces of a long video,
    and may go on from one to the next: those of its later pieces were taken for others.)"""
    photo = tmp_path / "s.png"
    cv2.imwrite(str(photo), np.full((64, 64, 3), 200, np.uint8))
    sources = look(tmp_path, str(photo), sha256_file(str(photo)), str(photo))
    assert sources.draw(PAIR, 16).shape == (16, 32, 3)
    cv2.imwrite(str(photo), np.full((64, 64, 3), 100, np.uint8))
    os.utime(photo, ns=(1, 1))
    with pytest.raises(Unreadable, match="the source has changed"):
        sources.draw(PAIR, 16)
    photo.unlink()
    with pytest.raises(Unreadable, match="can no longer be read"):
        Sources(str(tmp_path)).draw(PAIR, 16)
    with pytest.raises(Unreadable, match="looked at anew"):
        sources.draw(PAIR | {"to_frame": 7}, 16)
    with pytest.raises(Unreadable, match="looked at anew"):
        sources.draw(PAIR | {"to_yaw": 13.0}, 16)  # another face of the same frame
    with pytest.raises(Unreadable, match="is gone"):
        sources.draw(PAIR | {"to_row": 2}, 16)
    assert not (tmp_path / "contents.json").exists()  # of a build, which may be running


def test_a_set_is_drawn_while_all_its_pictures_are_the_same(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 200, np.uint8))
    (tmp_path / "s.json").write_text(json.dumps({"images": [{"uri": "a.png"}]}))
    uri = str(tmp_path / "s.json")
    digest = sheet.Sources._digest(look(tmp_path, uri, "0" * 64, str(tmp_path / "a.png")), WorkItem(source_id="s", uri=uri, kind="image"))
    (tmp_path / "parts" / f"{PART}.parquet").unlink()
    assert look(tmp_path, uri, digest, str(tmp_path / "a.png")).draw(PAIR, 16).shape == (16, 32, 3)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 100, np.uint8))
    with pytest.raises(Unreadable, match="has changed"):
        Sources(str(tmp_path)).draw(PAIR, 16)


@pytest.mark.parametrize("name", ["s.json", "a.png"])
def test_a_picture_is_drawn_from_where_it_lies_now(tmp_path, name):
    """The build's folder was moved since, or the photos' was: what lies at the old place may be anything."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, shade in ((old, 0), (new, 200)):
        folder.mkdir()
        cv2.imwrite(str(folder / "a.png"), np.full((64, 64, 3), shade, np.uint8))
        (folder / "s.json").write_text(json.dumps({"images": [{"uri": "a.png"}]}))
    uri = str(new / name)
    sources = look(tmp_path, uri, content_sha256(uri), str(old / "a.png"))
    assert sources.draw(PAIR, 16, landmarks=False).mean() > 190
    (old / "a.png").unlink()
    assert sources.draw(PAIR, 16, landmarks=False).mean() > 190


def test_what_cannot_be_read_is_told_and_not_asked_for_again(tmp_path, monkeypatch):
    """A folder where a file was; a disk that fails; and a server that is dead, which two of its files tell: one that it does not give may be at fault itself."""
    with pytest.raises(Unreadable, match="can no longer be read"):
        look(tmp_path, str(tmp_path), "0" * 64).draw(PAIR, 16)
    sources, asked = Sources(str(tmp_path)), []
    uris = {"s": "https://dead.example/s.mp4", "t": "https://dead.example/t.mp4", "v": "https://dead.example/v.mp4", "u": "/mnt/u.mp4"}
    sources.items = {name: WorkItem(source_id=name, uri=uri, kind="video") for name, uri in uris.items()}

    def answer(uri):
        asked.append(uri)
        raise ConnectionRefusedError(111, "Connection refused") if uri.startswith("https") else OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sources_module, "state_of", answer)
    for name in ("s", "s", "t", "s", "v", "u", "u"):
        with pytest.raises(Unreadable, match="can no longer be read"):
            sources._picture({"source_id": name, "source_sha256": "0" * 64, "image_uri": None, "pts": 0.0})
    assert asked == [uris["s"], uris["t"], uris["u"]]


def test_report_and_audit_go_on_where_a_later_build_has_another_work_list(tmp_path):
    folder = write_version(tmp_path, 60)
    table = pq.read_table(f"{folder}/candidates.parquet")
    same = {"from_part": PART, "to_part": PART, "from_row": 0, "to_row": 1} | {
        f"{side}_{n}": value for side in ("from", "to") for n, value in {"frame": 0, "pts": 0.0, **POSE}.items()
    }
    for name, value in same.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array([value] * len(table), table.schema.field(at).type))
    pq.write_table(table, f"{folder}/candidates.parquet")
    work = str(tmp_path)
    look(tmp_path, str(tmp_path / "s.mp4"), "0" * 64, name="gone")
    shown, undrawn = rejected_pairs(folder, Sources(work), PairingConfig())
    assert shown == [] and undrawn.keys() == {"the source is not in the work list now"}
    entries = choose(work, "v1", 2, 0)
    picture = _Page(work, "v1", read_index(folder), entries, 0).picture(entries[0].key, True)
    assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).shape == (120, 480, 3)
