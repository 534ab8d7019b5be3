"""Replay: what is stored is read anew and compared, bit for bit, and nothing is changed by it."""

import hashlib
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from data_pipeline import segments, sources, worker
from data_pipeline.config import DataConfig
from data_pipeline.forget import forget
from data_pipeline.groups import GroupsConfig, compute_rows, group_digests
from data_pipeline.observations import read_chips
from data_pipeline.observe import observe
from data_pipeline.replay import _prefix, compare, replay
from data_pipeline.segments import AnalyzeConfig
from infra.cli import app
from infra.errors import UserError
from tests.data_pipeline.videos import with_keyframes


@pytest.fixture(scope="module")
def observed(models, clip, tmp_path_factory):
    """A folder with a clip, one without a face, a photo and a file that is no video, and the build's folder in which they were looked at."""
    folder, work = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("work")
    shutil.copyfile(clip("single_face"), folder / "clip.mp4")
    shutil.copyfile(clip("no_face"), folder / "nobody.mp4")
    shutil.copyfile(clip("obama"), folder / "photo.jpg")
    (folder / "broken.mp4").write_bytes(b"no video")
    found = observe(DataConfig(folder=str(folder), analyze=AnalyzeConfig(workers=0, fps=2.0)), str(work), models)
    return folder, work, {row["source_id"]: row["parts"][0] for row in found.ledger.rows}


@pytest.fixture
def copied(observed, tmp_path):
    _, work, parts = observed
    shutil.copytree(work, tmp_path / "w")
    return tmp_path / "w", parts


def files_of(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def run(*words):
    done = CliRunner().invoke(app, ["data", "replay", *words])
    return done.exit_code, " ".join(done.output.split())


def test_what_is_stored_comes_out_again_in_every_bit(observed, models):
    _, work, _ = observed
    before = files_of(work)
    found = {one.source_id: one for one in replay(str(work), models, sample=9)}
    assert files_of(work) == before
    assert found.keys() == {"clip", "nobody", "photo", "broken"}
    assert all(one.equal and not one.notes for one in found.values())
    assert (found["photo"].rows, found["broken"].rows) == (1, 0) and found["clip"].rows > 4
    assert found["clip"].groups.keys() == {"occlusion", "surroundings", "fer"}  # identity and writing are for pairs that ask for them
    assert run("--sample", "1", "--work-dir", str(work))[0] == 0
    for wrong, message in (
        (["else"], "nothing is stored of it; no source of this build has that name"),
        (["photo", "else"], "else: nothing"),
    ):
        with pytest.raises(UserError, match=message):
            replay(str(work), models, wrong)
    assert [one.source_id for one in replay(str(work), models, ["broken", "broken"])] == ["broken"]
    with pytest.raises(UserError, match=r"nowhere has no det_"):  # before anything is looked at
        replay(str(work), models, ["broken"], groups=GroupsConfig(pack="nowhere"))


def rewrite(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def with_column(table, name, values):
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_a_part_that_is_not_what_is_read_now_is_told_column_by_column(copied):
    work, parts = copied
    yaws = []

    def tamper(table):
        yaws.extend(table["yaw"].to_pylist())
        landmarks = table["landmarks"].to_pylist()
        landmarks[1][7] += 0.25
        turned = with_column(table, "yaw", [np.nextafter(np.float32(yaws[0]), np.float32(99)), yaws[1] + 2.0, *yaws[2:]])
        return with_column(turned, "landmarks", landmarks).slice(0, len(table) - 1)

    rewrite(work / "parts" / f"{parts['clip']}.parquet", tamper)
    column = next((work / "columns/occlusion").glob(f"{parts['photo']}-*"))
    rewrite(column, lambda table: with_column(table, "occlusion", [value + 0.5 for value in table["occlusion"].to_pylist()]))
    status, said = run("--source", "clip", "--source", "photo", "--work-dir", str(work))
    assert status == 1
    found = {(one.where, one.column): one for each in _replay(work, "clip", "photo") for one in each.differences}
    assert found.keys() == {
        ("observations", "(rows only now)"),
        ("observations", "yaw"),
        ("observations", "landmarks"),
        ("occlusion", "occlusion"),
        *((group, "(rows only stored)") for group in ("occlusion", "surroundings", "fer")),  # the row that is gone had a chip
    }
    assert (found["observations", "yaw"].rows, found["observations", "(rows only now)"].rows) == (2, 1)
    assert found["observations", "yaw"].largest == pytest.approx(2.0, abs=1e-5)
    assert found["observations", "landmarks"].largest == pytest.approx(0.25, abs=1e-4)
    assert found["occlusion", "occlusion"].largest == pytest.approx(0.5, abs=1e-6)
    assert "photo: 1 faces" in said and "0 of 2 sources equal in every bit" in said
    assert "what differs is the code, or was changed in the file" in said


def _replay(work, *names):
    from infra.jobs.common import perception_models

    return replay(str(work), perception_models(), names)


def test_pieces_of_a_long_video_and_single_vectors_are_replayed_too(models, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SEGMENT_SECONDS", 0.8)
    (tmp_path / "given").mkdir()
    with_keyframes(clip("single_face"), tmp_path / "given/keys.mp4", every=8)
    config = DataConfig(folder=str(tmp_path / "given"), analyze=AnalyzeConfig(workers=0))
    work = tmp_path / "w"
    (row,) = observe(config, str(work), models).ledger.rows
    assert len(row["parts"]) >= 2
    identity = GroupsConfig(names=("identity",))
    wanted = {part: {read_chips(str(work), part)[0][0]} for part in row["parts"]}
    compute_rows("identity", wanted, group_digests(models, identity)["identity"], identity, models, str(work), 0)
    (found,) = _replay(work, "keys")
    assert found.equal and found.rows == row["faces"] and found.groups["identity"] == len(row["parts"])
    monkeypatch.undo()
    (found,) = _replay(work, "keys")
    assert found.changed == f"it was looked at in {len(row['parts'])} pieces, now in 1"


def test_another_library_or_model_is_told(copied, models):
    work, parts = copied
    path = work / "parts" / f"{parts['photo']}.parquet"
    table = pq.read_table(path)
    said = table.schema.metadata[b"made"]
    made = said.replace(b'"version.av": "', b'"version.av": "0.').replace(b'"detector": "', b'"detector": "0000')
    assert len(made) > len(said)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"made": made}), path)
    (found,) = _replay(work, "photo")
    assert found.equal
    assert [note.split(":")[0] for note in found.notes] == ["another model, detector", "version.av"]
    kept = {key: value for key, value in table.schema.metadata.items() if key != b"made"}
    pq.write_table(table.replace_schema_metadata(kept), path)
    with pytest.raises(UserError, match="written by an earlier LaTo"):
        _replay(work, "photo")


def test_a_source_that_was_changed_or_is_gone_is_told_and_not_compared(observed, copied, models, clip):
    folder, *_ = observed
    work, _ = copied
    photo = folder / "photo.jpg"
    content = photo.read_bytes()
    try:
        shutil.copyfile(clip("obama2"), photo)
        (found,) = _replay(work, "photo")
        assert "its content has changed since it was looked at" in found.changed
        assert not found.equal and not found.rows and not found.differences
        photo.unlink()
        status, said = run("--source", "photo", "--work-dir", str(work))
        assert status == 1 and "photo: not compared" in said and "is missing or unreadable" in said
    finally:
        photo.write_bytes(content)


def test_what_a_killed_replay_left_is_forgotten(copied, models, tmp_path, monkeypatch):
    """Its faces lie outside the build's folder. Those of another build stay. So with what a build into a store was about to send."""
    work, _ = copied
    scratch = tmp_path / "scratch"
    (scratch / "lato_scratch").mkdir(parents=True)
    (scratch / "lato_scratch/.candidates.parquet.x.tmp").write_bytes(b"names")
    earlier = tmp_path / "tmp" / f"{_prefix(str(work))}x"
    earlier.mkdir(parents=True)
    code = (
        "import os, signal, sys; from pathlib import Path; from data_pipeline import replay\n"
        "replay._tell_what_differs = lambda *given: os.kill(os.getpid(), signal.SIGKILL); replay.replay(sys.argv[1], Path(sys.argv[2]), ['photo'])"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(earlier.parent))
    monkeypatch.setenv("LATO_SCRATCH", str(scratch))
    assert subprocess.run([sys.executable, "-c", code, str(work), str(models)], check=False).returncode == -signal.SIGKILL
    (scratch / "lato_replay_0123456789abcdef_x").mkdir()
    (left,) = set(scratch.glob("lato_replay_*")) - {scratch / "lato_replay_0123456789abcdef_x"}
    assert list(left.glob("parts/*.parquet"))
    forget(str(work), source="photo")
    assert {path.name for path in scratch.rglob("*")} == {"lato_replay_0123456789abcdef_x", "lato_scratch"}
    assert not earlier.exists()  # `LATO_SCRATCH` was not set then


def test_other_settings_or_contents_are_looked_at_anew_and_nothing_else_is(observed, copied, models, clip, tmp_path, monkeypatch):
    """What a part was made of is its name; one that was rejected or failed is not looked at again either."""
    folder, seen, real = tmp_path / "given", [], worker.Worker._look_at
    shutil.copytree(observed[0], folder)
    monkeypatch.setattr(worker.Worker, "_look_at", lambda self, one: seen.append(one.segment.item.source_id) or real(self, one))

    def looked_at(fps):
        seen.clear()
        found = observe(DataConfig(folder=str(folder), analyze=AnalyzeConfig(workers=0, fps=fps)), str(copied[0]), models)
        assert {row["source_id"]: row["status"] for row in found.ledger.rows} == {
            "clip": "ok",
            "photo": "ok",
            "nobody": "rejected",
            "broken": "failed",
        }
        return set(seen)

    assert looked_at(2.0) == set()  # the folder is another, what lies in it is the same
    assert looked_at(1.0) == {"clip", "nobody", "broken"}  # a photo has no frames a second
    assert looked_at(1.0) == set()
    shutil.copyfile(clip("obama2"), folder / "photo.jpg")
    assert looked_at(1.0) == {"photo"}
    monkeypatch.setattr(segments, "GLANCES", 1)
    assert looked_at(1.0) == {"clip", "nobody", "broken", "photo"}


def test_bits_are_compared():
    stored = pa.table({"row": [1, 2], "x": [0.0, np.nan], "y": [[1.0], [2.0]], "name": ["a", None]})
    assert compare("of", stored, stored, ("row",)) == []
    broken, chip = pa.table({"row": [1], "chip": [b"no JPEG"]}), pa.table({"row": [1], "chip": [b"none either"]})
    assert compare("of", broken, chip, ("row",)) == [("of", "chip", 1, np.inf)]
    now = pa.table({"row": [2, 1], "x": [np.nan, -0.0], "y": [[2.0, 3.0], [1.5]], "name": ["b", "a"]})
    assert compare("of", stored, now, ("row",)) == [("of", "x", 1, 0.0), ("of", "y", 2, 0.5), ("of", "name", 1, None)]
