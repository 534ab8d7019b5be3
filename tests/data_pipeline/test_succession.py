"""A version that is built again under its name: what is kept of the one before, and what a build that is killed between the two leaves."""

from pathlib import Path

import pytest

from data_pipeline import pack as pack_module
from data_pipeline import publish as publish_module
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.forget import forget
from data_pipeline.pack import PackConfig
from data_pipeline.published import read_index, read_manifest
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.subset import export, make_view
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.verify import verify_version
from infra.errors import UserError
from training.data import Dataset

PEOPLE = DataConfig(analyze=AnalyzeConfig(workers=0), synthetic=SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0)))
FEWER = PEOPLE.model_copy(update={"synthetic": SyntheticConfig(anny=AnnyConfig(people=2, images=3, workers=0))})
CUT = PEOPLE.model_copy(update={"pack": PackConfig(samples_per_shard=1)})


def interrupt(folder):
    raise KeyboardInterrupt


def test_tombstones_outlive_the_next_build_of_the_name(models, tmp_path):
    build_dataset(CUT, str(tmp_path), models, [])
    before = forget(str(tmp_path), source="anny_0_00001").digests
    version = build_dataset(PEOPLE, str(tmp_path), models, [])
    assert read_manifest(version.uri) and verify_version(version.uri) == []
    assert len(before) == 1 and read_index(version.uri)["tombstones"] == before
    assert forget(str(tmp_path), source="anny_0_00001").digests == before


def test_a_version_that_was_replaced_before_the_removal_is_a_tombstone(models, tmp_path):
    """What it held nobody can say any more: runs on it may have seen the person, also where the version that replaced it never held them."""
    for name, second, taken in (("same people", CUT, True), ("without the person", FEWER, False)):
        work = str(tmp_path / name)
        first = build_dataset(PEOPLE, work, models, [])
        view = make_view(first.uri, "view", "kind = synthetic")[0]
        seen = [first.digest, read_index(view)["digest"]]
        replacing = build_dataset(second, work, models, [])
        make_view(replacing.uri, "view", "kind = synthetic")
        assert "tombstones" not in read_index(replacing.uri) and first.digest != replacing.digest
        assert forget(work, source="nobody").digests == []  # nothing was removed: it is another version, no more
        with pytest.raises(UserError, match="another one lies there"):
            Dataset.open(first.uri, first.digest)
        held = [replacing.digest, read_index(view)["digest"]] if taken else []
        done = forget(work, source="anny_0_00002")
        assert done.digests == sorted(seen + held) and bool(done.samples) == taken
        for folder, digest in zip((first.uri, view), seen, strict=True):
            with pytest.raises(UserError, match="it was withdrawn"):
                Dataset.open(folder, digest)
        assert verify_version(first.uri) == [] and (Dataset.open(first.uri).digest == replacing.digest) != taken
        assert forget(work, source="anny_0_00002").digests == done.digests


def test_a_version_that_is_half_replaced_is_a_tombstone_too(models, tmp_path, monkeypatch):
    work = str(tmp_path)
    first = build_dataset(PEOPLE, work, models, [])
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "encode_table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(CUT, work, models, [])
    assert forget(work, source="anny_0_00001").digests == [first.digest]
    assert [path.name for path in Path(first.uri).iterdir()] == ["index.withdrawn.json"]  # no sample of theirs is left
    again = build_dataset(CUT, work, models, [])
    assert read_index(again.uri)["tombstones"] == [first.digest] and verify_version(again.uri) == []
    with pytest.raises(UserError, match="it was withdrawn"):
        Dataset.open(again.uri, first.digest)


def test_building_a_version_again_to_the_same_bytes_replaces_nothing(models, tmp_path):
    first = build_dataset(PEOPLE, str(tmp_path), models, [])
    for config in (CUT, PEOPLE):
        last = build_dataset(config, str(tmp_path), models, [])
    assert last.digest == first.digest and read_index(last.uri)["replaced"] != [first.digest] and len(read_index(last.uri)["replaced"]) == 1


def test_shards_of_an_earlier_version_of_the_name_go(models, tmp_path, monkeypatch):
    """Who reads `shards/*.tar` reads no sample twice; a build killed right after it published is tidied, and described anew, by a rerun."""
    version = build_dataset(CUT, str(tmp_path), models, [])
    assert len(list(Path(version.uri, "shards").iterdir())) > 3
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "sweep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(PEOPLE, str(tmp_path), models, [])
    again = build_dataset(PEOPLE, str(tmp_path), models, [])
    named = {shard["name"] for shard in read_index(again.uri)["shards"]}
    assert {path.name for path in Path(again.uri, "shards").iterdir()} == named
    assert again.digest in Path(again.uri, "README.md").read_text()


def test_a_version_that_is_half_replaced_is_no_version(models, tmp_path, monkeypatch):
    """A build of another plan that is killed while it writes over a published name: neither plan finds it done, and either mends it."""
    build_dataset(PEOPLE, str(tmp_path), models, [])
    told = forget(str(tmp_path), source="anny_0_00001").digests
    version = build_dataset(PEOPLE, str(tmp_path), models, [])
    before = {path.name: path.read_bytes() for path in Path(version.uri).rglob("*") if path.is_file()}
    for stopped_at in ("encode_table", "withdraw"):
        with monkeypatch.context() as patch:
            patch.setattr(pack_module if stopped_at == "encode_table" else publish_module, stopped_at, interrupt)
            with pytest.raises(KeyboardInterrupt):
                build_dataset(CUT, str(tmp_path), models, [])
        assert Path(version.uri, "index.json").exists() == (stopped_at == "withdraw")
        again = build_dataset(PEOPLE, str(tmp_path), models, [])
        assert verify_version(again.uri) == []
        assert {path.name: path.read_bytes() for path in Path(version.uri).rglob("*") if path.is_file()} == before
        assert read_index(again.uri)["tombstones"] == told


def test_a_damaged_version_is_told_written_again_and_not_exported(models, tmp_path):
    version = build_dataset(PEOPLE, str(tmp_path / "w"), models, [])
    folder = Path(version.uri)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shard = next((folder / "shards").iterdir())
    shard.write_bytes(whole[shard][:5000])
    with pytest.raises(UserError, match=r"is damaged, and is not exported: .*sha256 differs"):
        export(version.uri, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    for lost in (shard, folder / "manifest.parquet", folder / "candidates.parquet", folder / "funnel.json"):
        lost.unlink()
        build_dataset(PEOPLE, str(tmp_path / "w"), models, [])
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole
    (folder / "manifest.parquet").unlink()
    assert verify_version(version.uri) == ["manifest.parquet: is missing"]
    with pytest.raises(UserError, match="is missing or damaged"):
        read_manifest(version.uri)
    (folder / "index.json").write_text("{bad")
    with pytest.raises(UserError, match=r"index.json is damaged"):
        verify_version(version.uri)
