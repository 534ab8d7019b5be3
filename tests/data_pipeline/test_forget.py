"""Forgetting a person wherever they stand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.candidates import read_candidates
from data_pipeline.forget import forget, sources_like
from data_pipeline.published import read_index, read_manifest
from data_pipeline.report import write_data_report
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.subset import make_view
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.verify import verify_version
from data_pipeline.worklist import item_for, write_worklist
from infra.errors import UserError
from infra.storage import sha256_file
from tests.data_pipeline.small import CONFIG, build, config
from training.data import Dataset


def all_text_of(path):
    """A file's bytes as text; of Parquet, which is compressed, the content of every column and the metadata."""
    if path.suffix != ".parquet":
        return path.read_bytes().decode("latin-1")
    table = pq.read_table(path)
    return "".join(str(column.to_pylist()) for column in table.columns) + str(table.schema.metadata)


def column_parts(work):
    return {path.name.split("-")[0] for path in (work / "columns").rglob("*.parquet")}


def observed_rows(work):
    return [
        row
        for part in (work / "parts").glob("*.parquet")
        for row in pq.read_table(part, columns=["source_id", "source_sha256"]).to_pylist()
    ]


_KILLED = """
import os, sys
import data_pipeline.forget as module
from data_pipeline import forget_files, forget_versions
left = int(sys.argv[2])
def counted(real):
    def act(*args, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*args, **options)
    return act
for part in (module, forget_files, forget_versions):
    part.commit, part.delete = counted(part.commit), counted(part.delete)
module.forget(sys.argv[1], identity="anny_0_00003")
print("done")
"""


def test_a_person_is_forgotten_even_if_killed_at_any_step(ray_session, models, tmp_path):
    """Every commit and delete is the last thing that happens once; a rerun finishes. Nothing of the person is left in any file."""
    work = tmp_path / "w"
    version = build(work, models)
    before = {row["key"]: row for row in read_manifest(version.uri)}
    theirs = {key for key, row in before.items() if row["identity"] == "anny_0_00003"}
    assert theirs
    scored = column_parts(work)
    assert scored == {path.stem for path in (work / "parts").iterdir()}
    digest = Dataset.open(version.uri).digest
    view, _ = make_view(version.uri, "some", f"yaw >= {min(row['yaw'] for row in before.values())}")
    view_digest = Dataset.open(view).digest
    write_data_report(str(work))
    content_hash = next(row["source_sha256"] for row in observed_rows(work) if row["source_id"] == "anny_0_00003")
    assert any(content_hash in all_text_of(path) for path in (work / "parts").iterdir())  # the scan below can fail
    for name in ("edits/lato/x.jpg", "edits/notes.txt", "text_states/a.safetensors", "mine.txt"):  # what later stages make of samples
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(min(theirs) if name != "mine.txt" else "")
    steps = 0
    while True:
        ended = subprocess.run([sys.executable, "-c", _KILLED, str(work), str(steps)], capture_output=True, text=True)
        if ended.stdout.strip() == "done":
            break
        assert ended.returncode == 9, ended.stderr
        assert Dataset.open(version.uri).rows  # what is published stays whole in between
        steps = steps + 1 if steps < 6 else steps * 2
    assert steps >= 6
    after = Dataset.open(version.uri)
    assert after.digest != digest
    assert {row["key"] for row in after.rows} == before.keys() - theirs
    assert verify_version(version.uri) == []
    for dataset in (after, Dataset.open(view)):
        for row in dataset.rows:
            dataset.read(row)
    assert json.loads((Path(version.uri) / "index.json").read_text())["tombstones"] == [digest]
    untouched = {row["shard"] for row in before.values()} - {before[key]["shard"] for key in theirs}
    assert untouched <= {row["shard"] for row in after.rows}
    assert json.loads((Path(view) / "index.json").read_text())["tombstones"] == [view_digest]
    for path in work.rglob("*"):
        if path.is_file():
            content = all_text_of(path)
            for trace in ("anny_0_00003", content_hash, *theirs):
                assert trace not in content, path
    assert (
        column_parts(work) == {path.stem for path in (work / "parts").iterdir()} < scored
    )  # vectors of a face name nobody, and are theirs
    assert not list((work / "edits").rglob("*.jpg")) and not list((work / "text_states").iterdir())
    assert (work / "edits/notes.txt").exists() is False and (work / "mine.txt").exists()
    again = build(work, models)  # and a later build does not bring them back
    assert {row["key"] for row in read_manifest(again.uri)} == before.keys() - theirs


def test_everything_may_be_forgotten(models, clip, tmp_path):
    """By licence: versions and views stay as tombstones without samples, verify well, and say so to who would train on them."""
    config = CONFIG.model_copy(
        update={"synthetic": SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0)), "analyze": AnalyzeConfig(workers=0)}
    )
    photo = item_for(clip("obama"), licence="CC0-1.0")
    version = build_dataset(config, str(tmp_path / "w"), models, [photo])
    assert sha256_file(photo.uri) in (tmp_path / "w/contents.json").read_text()
    view, _ = make_view(version.uri, "all", "licence = CC0-1.0")
    digests = {Dataset.open(version.uri).digest, Dataset.open(view).digest}
    done = forget(str(tmp_path / "w"), licence="CC0-1.0")
    assert done.sources == 4 and set(done.digests) == digests
    assert sha256_file(photo.uri) not in (tmp_path / "w/contents.json").read_text()
    assert forget(str(tmp_path / "w"), licence="CC0-1.0").digests == done.digests  # a rerun still knows which runs to name
    for folder in (version.uri, view):
        assert verify_version(folder) == []
        with pytest.raises(UserError, match="has no samples"):
            Dataset.open(folder).split("train")
    assert list((tmp_path / "w/renders").iterdir()) == [] and list((tmp_path / "w/parts").iterdir()) == []
    with pytest.raises(UserError, match="there are no sources"):
        build_dataset(config, str(tmp_path / "w"), models, [])


def test_forgetting_never_deletes_the_users_own_files(tmp_path):
    """Not even where their folder's name begins like the build's, or where they lie within it."""
    work = tmp_path / "w"
    own = [tmp_path / "w2" / "a.mp4", work / "mine" / "b.mp4"]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"mine")
    write_worklist([item_for(str(path), identity="me") for path in own], str(work / "worklist.parquet"))
    assert forget(str(work), identity="me").sources == 2
    assert all(path.read_bytes() == b"mine" for path in own)


def test_forgetting_reaches_views_of_a_folder_that_was_moved_and_of_versions_that_are_gone(models, tmp_path):
    synthetic = SyntheticConfig(anny=AnnyConfig(people=4, images=3, workers=0))
    config = CONFIG.model_copy(update={"synthetic": synthetic, "analyze": AnalyzeConfig(workers=0)})
    version = build_dataset(config, str(tmp_path / "before"), models, [])
    build_dataset(config.model_copy(update={"name": "v2"}), str(tmp_path / "before"), models, [])
    make_view(version.uri, "mine", "kind = synthetic")
    make_view(version.uri.replace("v1", "v2"), "lost", "kind = synthetic")
    shutil.move(tmp_path / "before", tmp_path / "after")
    shutil.rmtree(tmp_path / "after/versions/v2")
    gone = {row["source_id"] for row in read_manifest(str(tmp_path / "after/versions/mine"))} & {"anny_0_00001", "anny_0_00002"}
    assert gone
    for name in gone:
        forget(str(tmp_path / "after"), source=name)
    assert not {row["source_id"] for row in read_manifest(str(tmp_path / "after/versions/mine"))} & gone
    assert verify_version(str(tmp_path / "after/versions/mine")) == []
    assert read_manifest(str(tmp_path / "after/versions/lost")) == []
    assert len(json.loads((tmp_path / "after/versions/lost/index.json").read_text())["tombstones"]) == 1
    for path in (tmp_path / "after").rglob("*"):
        assert not path.is_file() or not any(name in all_text_of(path) for name in gone), path


def test_a_photo_that_cannot_be_read_is_said_to_be_none(models, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("text.jpg", "gone.jpg", "."):
        with pytest.raises(UserError, match="cannot be read as a picture"):
            sources_like(str(tmp_path), str(tmp_path / name), models)


def test_forgetting_somebody_who_has_no_sample_takes_refused_pairs_too(models, tmp_path):
    """The digest stays, as no sample goes; tables and lists beside the shards no longer name the source."""
    version = build_dataset(config(6, pairing=PairingConfig(per_identity=1)), str(tmp_path), models)
    rows = read_candidates(version.uri)
    everybody = {row["source_id"] for row in rows}
    strict = PairingConfig(min_sharpness=max(row["sharpness"] for row in rows if row["verdict"] == "accepted"))
    few = build_dataset(config(6, name="few", pairing=strict), str(tmp_path), models)
    without = sorted(everybody - {row["source_id"] for row in read_manifest(few.uri)})[0]
    forget(str(tmp_path), source=without)
    assert read_index(few.uri)["digest"] == few.digest
    assert without not in {row["source_id"] for row in read_candidates(few.uri)}
    for name in ("components.json", "report.html"):
        assert not (tmp_path / "versions/few" / name).exists()
    assert verify_version(few.uri) == []
