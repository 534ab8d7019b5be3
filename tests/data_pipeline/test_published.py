"""A published version: verify, views, exports, its card and Croissant file."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline import card
from data_pipeline.build import build_dataset
from data_pipeline.candidates import SCHEMA, read_candidates_table, write_candidates
from data_pipeline.card import _card, write_card
from data_pipeline.config import DataConfig
from data_pipeline.diff import diff_versions
from data_pipeline.pack import PackConfig, Planned, pack, write_shard
from data_pipeline.published import read_index, read_manifest, read_manifest_table, read_members
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.subset import export, make_view
from data_pipeline.verify import verify_samples, verify_version
from data_pipeline.worklist import item_for
from infra.errors import UserError
from infra.storage import sha256_bytes, sha256_file
from lato.pairs import MEMBERS
from tests.data_pipeline.commands import put_manifest
from tests.data_pipeline.many_candidates import write_version
from tests.data_pipeline.small import build, read_candidates
from tests.data_pipeline.videos import write
from tests.training.versions import publish
from training.data import Dataset


def test_verify_asks_the_index_too(built, tmp_path):
    _, version = built
    folder = tmp_path / "v1"
    shutil.copytree(version.uri, folder)
    index = json.loads((folder / "index.json").read_text())

    def wrong(**changes):
        (folder / "index.json").write_text(json.dumps(index | changes))
        return "\n".join(verify_version(str(folder)))

    assert wrong() == ""
    assert "says 999 samples" in wrong(samples=999)
    assert "its digest is not that" in wrong(digest="0" * 64)
    left = index["shards"][1:]
    told = wrong(shards=left)
    assert f"{index['shards'][0]['name']}: {index['shards'][0]['count']} samples in the manifest, but not in the index" in told
    (folder / "shards/train-000099.tar").write_bytes(b"")
    assert wrong() == "train-000099.tar: lies in shards, but is not in the index; readers of shards/*.tar would take it in"


def test_verify_reads_all_that_lies_beside_the_samples(built, tmp_path):
    _, version = built
    folder = tmp_path / "v1"
    shutil.copytree(version.uri, folder)
    view, _ = make_view(str(folder), "happy", "expression in happy,sad")
    exported, _ = export(str(folder), str(tmp_path / "out"))
    named = read_index(str(folder))["files"]
    assert named.keys() == {path.name for path in folder.iterdir() if path.is_file()} - {"index.json", "manifest.parquet", "report.html"}
    for name in sorted(named):
        file = folder / name
        whole = file.read_bytes()
        for content, told in ((whole[: len(whole) // 2], "sha256 differs"), (b"garbage", "sha256 differs"), (None, "missing")):
            file.unlink() if content is None else file.write_bytes(content)
            for asked in (str(folder), view):
                (line,) = verify_version(asked)
                assert line.startswith(f"{name}: {told}")
        file.write_bytes(whole)
    assert verify_version(str(folder)) == verify_version(str(tmp_path / "out")) == []
    (tmp_path / "out/croissant.json").unlink()
    assert verify_version(str(tmp_path / "out")) == ["croissant.json: missing"]


def test_a_card_that_is_worded_anew_is_what_its_index_says(built, tmp_path, monkeypatch):
    """A later LaTo writes the card again where a version stands."""
    _, version = built
    shutil.copytree(version.uri, tmp_path / "v1")
    folder, before = str(tmp_path / "v1"), read_index(version.uri)
    monkeypatch.setattr(card, "_models", lambda index: "Other words.\n")
    write_card(folder)
    after = read_index(folder)
    assert verify_version(folder) == []
    assert {name for name in after["files"] if after["files"][name] != before["files"][name]} == {"README.md"}
    assert after | {"files": 0} == before | {"files": 0}


def test_a_table_without_candidates_has_all_its_columns(tmp_path):
    """As of an extension of a version of which all was forgotten."""
    folder = write_version(tmp_path, 6)
    write_candidates([], [], {}, {}, {}, folder)
    assert read_candidates_table(folder, ["key", "verdict"]).to_pylist() == []
    assert pq.read_schema(f"{folder}/candidates.parquet").names == SCHEMA.names


def test_two_samples_under_one_key_are_no_version(built, tmp_path):
    """Readers of the shard fail, or give one sample the other's pictures: `pack` refuses them, and `verify` says it of a shard that others wrote."""
    _, version = built
    row = read_manifest(version.uri)[0]
    twice = [Planned(row["key"], "train", lambda: pytest.fail("no picture is read")) for _ in range(2)]
    with pytest.raises(AssertionError, match=f"1 keys are those of two samples each .{row['key']}"):
        pack(twice, PackConfig(), str(tmp_path / "v0"), "v0", "test")
    assert not (tmp_path / "v0").exists()
    data, rows = write_shard([(row, read_members(version.uri, row))] * 2, "train-000000.tar")
    (tmp_path / "v1/shards").mkdir(parents=True)
    (tmp_path / "v1/shards/train-000000.tar").write_bytes(data)
    shard = {"name": "train-000000.tar", "split": "train", "count": 2, "bytes": len(data), "sha256": sha256_bytes(data)}
    index = {"name": "v1", "samples": 2, "shards": [shard], "manifest": "manifest.parquet"}
    (tmp_path / "v1/index.json").write_text(json.dumps(index | {"digest": ""}))
    put_manifest(tmp_path / "v1", rows)
    (told,) = verify_version(str(tmp_path / "v1"))
    assert told.startswith("train-000000.tar: webdataset cannot read it") and "duplicate file name" in told


@pytest.mark.parametrize("member", ["landmarks.npy", "json", "source.jpg"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{", b"{"])
def test_verify_names_a_member_that_cannot_be_read(tmp_path, member, content):
    """Whatever is wrong with it, it is a line, in a shard whose hash is right."""
    folder = tmp_path / "v1"
    publish(str(folder), {"train": 3})
    rows = read_manifest(str(folder))
    samples = [(row, read_members(str(folder), row) | ({member: content} if row["key"] == "k0001" else {})) for row in rows]
    data, rows = write_shard(samples, "train-000000.tar")
    (folder / "shards/train-000000.tar").write_bytes(data)
    index = read_index(str(folder))
    index["shards"][0] |= {"bytes": len(data), "sha256": sha256_bytes(data)}
    (folder / "index.json").write_text(json.dumps(index))
    put_manifest(folder, rows)
    (told,) = verify_samples(str(folder))
    assert told.startswith("train-000000.tar: ") and "k0001" in told and member in told


def test_a_video_of_less_than_a_frame_a_second_gives_shards_that_can_be_read(models, person, tmp_path):
    """Several of its frames lie within what one lasts at the average rate: each is one of its own all the same."""
    times = [0.0, 1.2, 1.7, 1.75, 1.8, 1.85, 1.9, *(30.0 * n for n in range(1, 4))]
    draw = person(3)
    path = write(
        tmp_path / "burst.mp4",
        len(times),
        (512, 512),
        times=times,
        make=lambda number, *_: draw("happy" if number % 3 else "neutral", "strongly", roll=30.0 * (number % 2)),
        options={"crf": "10"},
    )
    loose = PairingConfig(max_upscale=9, max_padding=1, min_expression=0, per_cell=99, per_identity=999, min_similarity=-1)
    config = DataConfig(analyze=AnalyzeConfig(workers=0, fps=30), pairing=loose)
    version = build_dataset(config, str(tmp_path / "w"), models, [item_for(path, start=1.5)])
    rows = read_candidates(version.uri)
    assert len({row["from_frame"] for row in rows}) == len({row["from_pts"] for row in rows}) >= 6
    assert len({row["key"] for row in rows}) == len(rows)
    assert read_manifest(version.uri) and verify_version(version.uri) == []


def test_shards_of_a_split_have_equally_many_samples_but_the_last(built, models):
    work, version = built
    index = json.loads((Path(build(work, models, name="sevens", pack=PackConfig(samples_per_shard=7)).uri) / "index.json").read_text())
    for split, samples in version.samples.items():
        counts = [shard["count"] for shard in index["shards"] if shard["split"] == split]
        assert counts == [7] * (samples // 7) + [samples % 7] * (samples % 7 > 0)
    assert len(index["shards"]) > len(version.samples)


def test_a_view_trains_and_knows_when_its_version_changed(built, tmp_path):
    _, version = built
    rows = read_manifest(version.uri)
    folder, samples = make_view(version.uri, "happy", "expression in happy,sad and identity_similarity >= 0.1 and edit_kind != compound")
    chosen = {
        r["key"] for r in rows if r["expression"] in ("happy", "sad") and r["edit_kind"] != "compound" and r["identity_similarity"] >= 0.1
    }
    view = Dataset.open(folder)
    assert {row["key"] for row in view.rows} == chosen
    assert sum(samples.values()) == len(chosen)
    assert view.digest != version.digest
    assert view.read(view.rows[0]).meta.edit.expression in ("happy", "sad")
    for wrong, message in (
        ("mood = happy", "cannot read"),
        ("expression ~ happy", "cannot read"),
        ("yaw = far", "is a number"),
        ("yaw = 5", "no sample"),
    ):
        with pytest.raises(UserError, match=message):
            make_view(version.uri, "wrong", wrong)
    assert verify_version(folder) == []
    assert set(diff_versions(version.uri, folder)["removed"]) == {row["key"] for row in rows} - chosen
    exported, _ = export(folder, str(tmp_path / "out"))
    assert sum(exported.values()) == len(chosen)
    assert {row["key"] for row in read_manifest(str(tmp_path / "out"))} == chosen
    assert verify_version(str(tmp_path / "out")) == []
    for name, of, message in (("../out", version.uri, "expected letters"), ("again", folder, "is a view itself")):
        with pytest.raises(UserError, match=message):
            make_view(of, name, "expression = happy")
    index = Path(folder) / "index.json"
    index.write_text(index.read_text().replace(version.digest, "0" * 64))
    for read in (Dataset.open, verify_version):
        with pytest.raises(UserError, match="has changed"):
            read(folder)


def test_an_export_stands_alone(built, tmp_path):
    work, version = built
    exported, left = export(version.uri, str(tmp_path / "out"), ["commercial"])
    assert exported == {"CC0-1.0": len(read_manifest(version.uri))}
    assert left == {}
    assert verify_version(str(tmp_path / "out")) == []
    with pytest.raises(UserError, match="published there already"):
        export(version.uri, str(tmp_path / "out"), ["commercial"])


def test_card_and_croissant_name_every_file_by_hash(built):
    import yaml

    _, version = built
    text = (Path(version.uri) / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert {entry["split"] for entry in front["configs"][0]["data_files"]} == {row["split"] for row in read_manifest(version.uri)}
    assert version.digest in text
    croissant = json.loads((Path(version.uri) / "croissant.json").read_text())
    for entry in croissant["distribution"]:
        assert sha256_file(str(Path(version.uri) / entry["contentUrl"])) == entry["sha256"]
    assert {field["name"] for field in croissant["recordSet"][0]["field"]} >= {"key", "split", "instruction", "licence"}


@pytest.mark.parametrize("name", ["2026", "1.0", "no", "null"])
def test_a_version_whose_name_yaml_would_read_as_something_else_is_still_a_text(built, name):
    import yaml

    _, version = built
    text = _card(read_index(version.uri) | {"name": name}, read_manifest_table(version.uri), None)
    assert yaml.safe_load(text.split("---")[1])["pretty_name"] == name


def test_the_reference_reader_of_croissant_takes_the_file_and_reads_the_samples_by_it(built):
    import mlcroissant

    _, version = built
    dataset = mlcroissant.Dataset(str(Path(version.uri) / "croissant.json"))
    assert dataset.metadata.ctx.issues.errors == set()
    said = sorted(dataset.metadata.ctx.issues.warnings)  # whom to cite is not ours to say, and a date would make equal builds differ
    assert [re.search(r"/(\w+)\" is recommended, but does not exist", line)[1] for line in said] == ["citeAs", "datePublished"]
    read = [
        {name.removeprefix("samples/"): value.decode() if isinstance(value, bytes) else value for name, value in record.items()}
        for record in dataset.records("samples")
    ]
    assert read == read_manifest(version.uri)


def test_a_shard_has_the_bytes_that_tarfile_writes():
    members = {name: bytes(range(length)) for name, length in zip(MEMBERS, (5, 0, 200, 255), strict=True)}
    members["source.jpg"] *= 64  # whole blocks
    samples = [({"key": key}, members) for key in ("a", "b" * 60)]
    data, rows = write_shard(samples, "train-000000.tar")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row, _ in samples:
            for name in MEMBERS:
                header = tarfile.TarInfo(f"{row['key']}.{name}")
                header.size, header.mode, header.mtime = len(members[name]), 0o644, 0
                archive.addfile(header, io.BytesIO(members[name]))
    assert data == buffer.getvalue()
    for row in rows:
        assert all(data[row[f"{name}_offset"] :][: row[f"{name}_length"]] == members[name] for name in MEMBERS)
