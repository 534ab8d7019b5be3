"""What a user is told: views and empty versions where whole ones are asked for, typing errors, numbers out of bounds."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.extend import read_base
from data_pipeline.published import read_index, read_manifest
from data_pipeline.report import write_data_report
from data_pipeline.rules import PairingConfig
from data_pipeline.verify import verify_version
from data_pipeline.worklist import item_for
from infra.cli import app
from infra.errors import UserError
from tests.data_pipeline.commands import lato, put_manifest, spoil, told


def test_after_all_was_forgotten_every_command_answers(work):
    before = {name: pq.read_schema(work / "versions" / name / "manifest.parquet").names for name in ("v1", "left")}
    assert "taken out" in lato("forget", "--licence", "CC0-1.0", "--work-dir", work)
    for name, columns in before.items():
        index = read_index(str(work / "versions" / name))
        assert (index["samples"], pq.read_schema(work / "versions" / name / index["manifest"]).names) == (0, columns)
        assert verify_version(str(work / "versions" / name)) == []
    page = Path(write_data_report(str(work))).read_text()
    assert "There is none." in page
    assert "neither a sample's key nor a source" in told("why", "anny_0_00001", "--work-dir", work)
    assert "no candidates to label" in told("audit", "--work-dir", work)
    version = work / "versions/v1"
    assert "has no samples" in told("view", version, "none", "--where", "kind = video")
    assert "has no samples" in told("export", version, work / "out")
    assert "0 samples" in lato("diff", version, version)
    assert "nobody has this name" in lato("forget", "--licence", "CC0-1.0", "--work-dir", work)


def test_a_view_is_told_from_a_whole_version(work):
    for command in (("report", "--version", "left"), ("audit", "--version", "left"), ("merge", "left", "anny_0_00001", "anny_0_00002")):
        message = told(*command, "--work-dir", work)
        assert "left is a view of v1" in message and "give v1" in message and "verify, diff and export" in message
    assert "Versions here: left, v1" in told("report", "--version", "v7", "--work-dir", work)
    rows = read_manifest(str(work / "versions/left"))
    assert lato("why", rows[0]["key"], "--version", "left", "--work-dir", work).startswith(f"{rows[0]['key']}: accepted")


def test_diff_says_why_a_view_or_an_export_lacks_samples(work):
    version, view = work / "versions/v1", work / "versions/left"
    rows, kept = read_manifest(str(version)), read_manifest(str(view))
    assert f"{len(rows) - len(kept)} left out by the view (where: expression in happy,sad,angry)" in lato("diff", f"{version}/", f"{view}/")
    lato("export", f"{view}/", work / "out")
    assert f"{len(rows) - len(kept)} not in the export" in lato("diff", version, work / "out")


def test_an_unknown_licence_is_told_with_those_there_are(work):
    version = work / "versions/v1"
    said = lato("export", version, work / "out", "--licence", "CC-BY", "--licence", "CC0-1.0")
    assert "no sample is under CC-BY; there are CC0-1.0" in said
    assert "Licences: CC0-1.0" in told("export", version, work / "none", "--licence", "CC-BY")
    assert "Give another folder" in told("export", version, work / "out")


def test_an_export_that_was_copied_among_the_versions_is_told_and_forgotten_from(work, tmp_path):
    """What earlier exports were allowed: it has no verdicts, and must not keep a person from being forgotten."""
    lato("export", work / "versions/v1", tmp_path / "out")
    copy = work / "versions/copy"
    shutil.copytree(tmp_path / "out", copy)
    for asked in (("report", "--version", "copy"), ("why", "anny_0_00001", "--version", "copy"), ("audit", "--version", "copy")):
        assert "copy is an export, which has no verdicts" in told(*asked, "--work-dir", work)
    with pytest.raises(UserError, match="is an export"):
        read_base(str(copy), str(work))
    gone = read_manifest(str(copy))[0]["identity"]
    assert "version copy: " in lato("forget", "--identity", gone, "--work-dir", work)
    assert gone not in {row["identity"] for row in read_manifest(str(copy))}
    assert verify_version(str(copy)) == verify_version(str(work / "versions/v1")) == []
    assert not list((work / "pairs").glob("*"))  # it came to its end


def test_an_export_is_not_mixed_with_what_another_left(work, tmp_path):
    (tmp_path / "out/shards").mkdir(parents=True)
    other = spoil(tmp_path / "out/shards/train-000777.tar")
    assert f"{other} lies there, and is not of this export" in told("export", work / "versions/v1", tmp_path / "out")
    other.unlink()
    lato("export", work / "versions/v1", tmp_path / "out")
    assert verify_version(str(tmp_path / "out")) == []


def test_models_that_an_earlier_version_does_not_list_are_told(work, tmp_path):
    index = work / "versions/v1/index.json"
    index.write_text(json.dumps({name: value for name, value in json.loads(index.read_text()).items() if name != "models"}))
    assert "no licence known to allow commercial use: not listed (an earlier LaTo" in lato("export", work / "versions/v1", tmp_path / "out")
    assert "models" not in read_index(str(tmp_path / "out"))


REFUSED = [
    (("merge", "v1", "anny_0_00001", "anny_0_00001"), "this is one source"),
    (("why", "anny_0_00001@nan"), "expected seconds after the @, 0 or more"),
    (("why", "anny_0_00001@-1"), "expected seconds after the @, 0 or more"),
    (("why", "anny_0_00001@inf"), "expected seconds after the @, 0 or more"),
    (("build", "--dry-run"), "there are no sources"),
    (
        ("build", "--dry-run", "synthetic.anny.people=2", "analyze.groups.pack_licence=MIT"),
        "is of the models of a pack, and there is none: give pack too",
    ),
    (("build", "--dry-run", "synthetic.anny.people=2", "analyze.groups.pack=nowhere"), "nowhere has no det_*.onnx"),
    (("export", "versions/v1", "versions/copy"), "among the versions of a build, and an export is none of them"),
    (("export", "versions/left", "versions/copy"), "among the versions of a build, and an export is none of them"),
    (("forget", "--identity", "x", "--tracking-uri", "sqlite:///typo/mlflow.db"), "there is no MLflow database at typo/mlflow.db"),
    (("forget", "--identity", "x", "--tracking-uri", "typo"), "there is no MLflow database at typo"),
    (("forget", "--identity", "x", "--tracking-uri", "http://127.0.0.1:9"), "does not answer"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_cannot_be_meant_is_refused_and_makes_nothing(work, monkeypatch, command, message):
    monkeypatch.chdir(work)
    before = sorted(work.rglob("*"))
    assert message in told(*command, *(() if command[0] == "export" else ("--work-dir", work)))
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("port", ["0", "70000", "-1"])
def test_ports_have_bounds(work, port):
    result = CliRunner().invoke(app, ["data", "audit", "--port", port, "--work-dir", str(work)])
    assert result.exit_code == 2 and "--port" in result.output


@pytest.mark.parametrize(
    "command",
    [
        ("report",),
        ("why", "a"),
        ("audit",),
        ("backfill", "fer"),
        ("merge", "v1", "a", "b"),
        ("retry", "--class", "crash"),
        ("forget", "--identity", "a"),
    ],
    ids=lambda command: command[0],
)
def test_a_mistyped_folder_is_told_and_not_made(tmp_path, command):
    assert str(tmp_path / "tpyo") in told(*command, "--work-dir", tmp_path / "tpyo")
    assert not (tmp_path / "tpyo").exists()


def test_a_name_that_nobody_has_is_recorded_and_told(work):
    assert "nobody has this name: no source of this build is stranger" in lato("forget", "--identity", "stranger", "--work-dir", work)
    assert (work / "removals.jsonl").read_text().count("identity") == 1


def test_no_pair_does_not_hide_that_sources_failed(models, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/torn.mp4").write_bytes(b"no video")
    config = DataConfig(folder=str(tmp_path / "src"), analyze={"workers": 0})
    with pytest.raises(UserError, match=r"no pair was accepted. Of 1 sources, 1 failed: decode: ledger.jsonl says why. No face was found"):
        build_dataset(config, str(tmp_path / "w"), models, [])


def test_where_nothing_was_published_sources_frames_and_what_lost_the_pairs_are_told(models, clip, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/torn.mp4").write_bytes(b"no video")
    shutil.copy(clip("single_face"), tmp_path / "src/talks.mp4")
    config = DataConfig(folder=str(tmp_path / "src"), analyze={"workers": 0}, pairing=PairingConfig(min_sharpness=1e9))
    work = tmp_path / "w"
    with pytest.raises(UserError, match="no pair was accepted"):
        build_dataset(config, str(work), models, [])
    page = told("report", "--work-dir", work)
    assert "accepted no pair" in page and "rejected: blurred" in page and "lato data why SOURCE" in page
    (faces,) = re.findall(r"^  faces: (.*)$", page, re.MULTILINE)
    found, *others = (int(count) for count in re.findall(r"(\d+) (?:found|representatives|not among|passed by)", faces))
    assert found == sum(others) > others[0] > 0  # nothing lost and nothing twice
    assert "source torn: failed (decode)" in lato("why", "torn", "--work-dir", work)
    frame = lato("why", "talks@1", "--work-dir", work)
    assert "source talks: ok" in frame and "is the nearest to 1 s in which a face was seen" in frame and "rejected: blurred" in frame
    assert "no version 'v9' is published here" in lato("why", "talks", "--version", "v9", "--work-dir", work)
    assert "accepted no pair" in told("why", "nobody", "--work-dir", work)
    lato("forget", "--source", "talks", "--work-dir", work)
    assert "Nothing is published here" in told("report", "--work-dir", work)


def test_both_ends_of_a_pair_count_among_the_licences_of_the_report(work):
    """A pair of a photo under one licence and one under another is under both."""
    rows = read_manifest(str(work / "versions/v1"))
    rows[0]["target_licence"] = "MIT"
    put_manifest(work / "versions/v1", rows)
    page = Path(write_data_report(str(work))).read_text()
    assert '<td>CC0-1.0 and MIT</td><td>not needed: drawn</td><td class="n">1</td>' in page
    assert f'<td>CC0-1.0</td><td>not needed: drawn</td><td class="n">{len(rows) - 1}</td>' in page


def test_pictures_are_found_from_anywhere_and_the_bytes_do_not_tell_from_where(models, clip, tmp_path, monkeypatch):
    """One clip named relative to a list and one named absolutely: the same version, and a report that can draw what was refused."""
    (tmp_path / "lists/clips").mkdir(parents=True)
    shutil.copyfile(clip("single_face"), tmp_path / "lists/clips/single_face.mp4")
    (tmp_path / "lists/w.csv").write_text("source_id,uri,kind\nsingle_face,clips/single_face.mp4,video\n")
    monkeypatch.chdir(tmp_path)
    common = {"analyze": {"workers": 0, "fps": 2.0}, "pairing": {"max_upscale": 6.0}}
    relative = build_dataset(DataConfig(worklist="lists/w.csv", **common), str(tmp_path / "w"), models, [])
    absolute = build_dataset(DataConfig(**common), str(tmp_path / "w2"), models, [item_for(clip("single_face"), source_id="single_face")])
    assert relative.digest == absolute.digest
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    lato("report", "--work-dir", "../w")
    pages = [Path(found.uri, "report.html") for found in (relative, absolute)]
    lato("report", "--work-dir", tmp_path / "w2")
    drawn = [re.findall(r'alt="(just rejected: .*?)"', page.read_text()) for page in pages]
    assert drawn[0] == drawn[1] != []
