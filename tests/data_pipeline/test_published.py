"""A published version: verify, views, exports, its card and Croissant file."""

import json
import re
import shutil
from pathlib import Path

import pytest

from data_pipeline.card import _card
from data_pipeline.diff import diff_versions
from data_pipeline.pack import PackConfig
from data_pipeline.published import read_index, read_manifest
from data_pipeline.subset import export, make_view
from data_pipeline.verify import verify_version
from infra.errors import UserError
from infra.storage import sha256_file
from tests.data_pipeline.small import build
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
    card = (Path(version.uri) / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert {entry["split"] for entry in front["configs"][0]["data_files"]} == {row["split"] for row in read_manifest(version.uri)}
    assert version.digest in card
    croissant = json.loads((Path(version.uri) / "croissant.json").read_text())
    for entry in croissant["distribution"]:
        assert sha256_file(str(Path(version.uri) / entry["contentUrl"])) == entry["sha256"]
    assert {field["name"] for field in croissant["recordSet"][0]["field"]} >= {"key", "split", "instruction", "licence"}


@pytest.mark.parametrize("name", ["2026", "1.0", "no", "null"])
def test_a_version_whose_name_yaml_would_read_as_something_else_is_still_a_text(built, name):
    import yaml

    _, version = built
    card = _card(read_index(version.uri) | {"name": name}, read_manifest(version.uri), None)
    assert yaml.safe_load(card.split("---")[1])["pretty_name"] == name


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
