"""Versions as training reads them: what is refused and in which words, the mixture, disk and object store."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.forget_versions import shrink
from data_pipeline.removals import Removals, hash_name
from data_pipeline.subset import make_view
from infra.addresses import join
from infra.errors import UserError
from infra.storage import commit, delete, list_files, read_bytes
from tests.training.versions import make_pair, publish
from training import ranges
from training.config import DataSource
from training.data import Dataset, mixture, open_sources
from training.mixture import sample_generator
from training.stage import source_names
from training.stages.tokenizer import TokenizerConfig, TokenizerStage


@pytest.fixture
def version(small, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(small, tmp_path / "v1")
    return tmp_path / "v1"


def upload(folder, uri):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            commit(join(uri, str(path.relative_to(folder))), path.read_bytes())


def withdraw(folder, *sources):
    """Takes sources out of a version for good, as `lato data forget` does."""
    pq.write_table(pa.table({"key": pa.array([], pa.string())}), folder / "candidates.parquet")
    before = json.loads((folder / "index.json").read_text())["digest"]
    assert shrink(str(folder), Removals(frozenset(map(hash_name, sources)), frozenset(), frozenset()), True) == len(sources)
    return before


def test_samples_are_read_as_they_were_packed(small):
    dataset = Dataset.open(str(small))
    dataset.check()
    assert [row["key"] for row in dataset.rows] == [f"k{number:04d}" for number in range(30)]
    assert {split: len(dataset.split(split)) for split in ("train", "val", "test")} == {"train": 20, "val": 6, "test": 4}
    for number in (0, 7, 22, 29):
        row = dataset.row(f"k{number:04d}")
        found, made = dataset.read(row), make_pair(number, row["split"])
        assert (found.source_jpg, found.target_jpg, found.meta) == (made.source_jpg, made.target_jpg, made.meta)
    expected = np.stack([make_pair(number, "train").landmarks for number in (5, 3)])
    assert np.array_equal(dataset.read_landmarks([dataset.row("k0005"), dataset.row("k0003")]), expected)


def test_missing_and_cut_shards_are_named_all_at_once(version):
    (version / "shards/train-000000.tar").unlink()
    shard = version / "shards/val-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(UserError) as caught:
        Dataset.open(str(version))
    said = str(caught.value)
    assert "train-000000.tar: missing" in said
    assert f"val-000000.tar: {shard.stat().st_size:,} bytes, expected {shard.stat().st_size + 512:,}" in said
    assert "Copy the version again" in said


def test_a_shard_of_the_right_size_and_other_bytes_is_found_by_check(version):
    shard = version / "shards/train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    dataset = Dataset.open(str(version))
    with pytest.raises(UserError, match=r"train-000001.tar: sha256 is \w{12}, expected \w{12}"):
        dataset.check()


def spoil_manifest(folder):
    other = folder.parent / "other"
    publish(other, {"train": 20, "val": 6, "test": 4}, first=100)
    shutil.copy(other / "manifest.parquet", folder / "manifest.parquet")


def spoil_index(folder):
    """Shards and manifest of one version, index of another."""
    other = folder.parent / "other"
    publish(other, {"train": 20, "val": 6, "test": 4}, first=100, side=72)
    for name in ("manifest.parquet", "index.json"):
        shutil.copy(other / name, folder / name)


def edit_index(folder, **changes):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | changes))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "index.json").unlink(), "no published dataset version here"),
        (lambda folder: (folder / "index.json").write_text('{"shards": ['), "is not readable"),
        (
            lambda folder: (folder / "index.json").write_text('{"name": "x"}'),
            "is not the index of a dataset version: it has no digest, manifest",
        ),
        (lambda folder: (folder / "manifest.parquet").unlink(), "manifest.parquet is missing"),
        (spoil_manifest, "one of the two is from another version"),
        (spoil_index, "the files here are not those of its index"),
        (lambda folder: edit_index(folder, digest="0" * 64), "index.json was changed"),
    ],
)
def test_what_is_no_version_is_refused(version, spoil, said):
    spoil(version)
    with pytest.raises(UserError, match=said):
        Dataset.open(str(version))


def test_a_withdrawn_version_and_a_view_of_it_are_refused(version):
    digest = Dataset.open(str(version)).digest
    view, _ = make_view(str(version), "some", "source_id != s1")
    assert len(Dataset.open(view).rows) == 29
    assert Dataset.open(str(version), digest).digest == digest
    assert withdraw(version, "s2", "s23") == digest
    after = Dataset.open(str(version))
    assert after.tombstones == (digest,)
    assert len(after.rows) == 28
    with pytest.raises(UserError, match=f"expected the dataset version {digest[:12]}, but it was withdrawn"):
        Dataset.open(str(version), digest)
    with pytest.raises(UserError, match="samples were removed from it"):
        Dataset.open(view)


def test_another_version_than_the_one_asked_for_is_refused(version):
    with pytest.raises(UserError, match="another one lies there"):
        Dataset.open(str(version), "f" * 64)


def test_a_view_moves_with_its_version_and_names_what_it_misses(version, tmp_path):
    make_view(str(version), "some", "source_id != s1", weight=3.0)
    (tmp_path / "elsewhere").mkdir()
    for name in ("v1", "some"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    view = Dataset.open(str(tmp_path / "elsewhere/some"))
    assert view.weight == 3.0
    assert view.read(view.rows[0]).key == "k0000"
    assert view.version == Dataset.open(str(tmp_path / "elsewhere/v1")).digest != view.digest
    shutil.rmtree(tmp_path / "elsewhere/v1")
    with pytest.raises(UserError, match=r"does not lie beside it, at .*elsewhere/v1"):
        Dataset.open(str(tmp_path / "elsewhere/some"))


def test_views_count_by_samples_and_weight_and_given_weights_are_shares(version, tmp_path):
    few, _ = make_view(str(version), "few", "source_id in s0,s1,s2,s3,s4", weight=4.0)
    publish(tmp_path / "other", {"train": 20, "val": 4}, first=50)
    sources = [DataSource(uri=few), DataSource(uri=str(tmp_path / "other"))]
    datasets = open_sources(sources)
    assert mixture(datasets, sources, 0).counts == [512, 512]  # 5 samples, four times as often, and 20
    given = [DataSource(uri=few, weight=3), DataSource(uri=str(tmp_path / "other"), weight=1)]
    mixed = mixture(datasets, given, 0)
    assert mixed.counts == [768, 256]
    drawn = [sample.source for step in range(64) for sample in mixed.batch(step, 16)]
    assert drawn.count(0) == 768
    keys = {row["key"] for row in datasets[0].split("train")}
    assert all((sample.key in keys) == (sample.source == 0) for step in range(8) for sample in mixed.batch(step, 16))
    with pytest.raises(UserError, match=f"Without one: {tmp_path / 'other'}"):
        mixture(datasets, [given[0], sources[1]], 0)
    with pytest.raises(UserError, match=r"other: its share of the mixture is 1\.00e-04, less than one sample in 1024"):
        mixture(datasets, [DataSource(uri=few, weight=1), DataSource(uri=str(tmp_path / "other"), weight=1e-4)], 0)


def test_sources_of_one_name_are_told_apart_in_the_log(tmp_path):
    """Each build calls its first version v1: under one name the loss of one source would take the place of the other's."""
    uris = [str(tmp_path / build / "versions" / "v1") for build in ("new", "old")]
    for first, uri in zip((0, 500), uris, strict=True):
        publish(uri, {"train": 8, "val": 2, "test": 1}, first=first)
    sources = [DataSource(uri=uri) for uri in uris]
    datasets = open_sources(sources)
    settings = TokenizerConfig(widths=(32, 32), code_dim=16, num_codes=32)
    assert TokenizerStage(settings, datasets, mixture(datasets, sources, 0)).sources == ["new-v1", "old-v1"]
    one, other = datasets
    assert source_names([one]) == ["v1"]
    assert source_names([one, replace(one, name="v2", uri="s3://bucket/v2"), other]) == ["new-v1", "v2", "old-v1"]
    assert source_names([one, one, replace(one, name="v1-2")]) == ["v1", "v1-2", "v1-2-2"]
    assert source_names([one, replace(one, name="mine", uri="s3://bucket/mine"), replace(one, uri="s3://bucket/v1")]) == [
        "versions-v1",
        "mine",
        "bucket-v1",
    ]


def test_draws_depend_on_source_epoch_and_purpose(small):
    sources = [DataSource(uri=str(small))]
    mixed = mixture(open_sources(sources), sources, 0)
    first = mixed.batch(0, 20)
    again = next(s for step in range(1, 3) for s in mixed.batch(step, 20) if s.key == first[0].key)
    assert (first[0].epoch, again.epoch) == (0, 1)
    draws = {sample_generator(0, s, purpose).initial_seed() for s in (first[0], again) for purpose in ("", "noise")}
    assert len(draws) == 4


def test_a_sample_held_out_in_one_and_trained_on_in_another_is_refused(version, tmp_path):
    publish(tmp_path / "other", {"train": 25, "val": 5})
    with pytest.raises(UserError, match=r"5 samples that .*other trains on are in the val split of .*v1 \(first: k0020\)"):
        open_sources([DataSource(uri=str(version)), DataSource(uri=str(tmp_path / "other"))])


def test_no_dataset_is_a_message():
    with pytest.raises(UserError, match="no dataset is given"):
        open_sources([])


def test_threads_read_the_same_with_fewer_open_files_than_shards(small, monkeypatch):
    monkeypatch.setattr(ranges, "_OPEN", 2)
    dataset = Dataset.open(str(small))
    order = [dataset.rows[index] for index in np.random.default_rng(0).integers(0, 30, 600)]
    with ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(dataset.read, order))
    expected = {number: make_pair(number, "train").source_jpg for number in range(30)}
    assert all(pair.source_jpg == expected[int(row["key"][1:])] for pair, row in zip(pairs, order, strict=True))


def test_a_reader_of_an_old_version_is_not_given_a_new_file(version):
    """A shard that is replaced under its name while a training runs: what is open stays."""
    old = Dataset.open(str(version))
    first = old.read(old.rows[0]).source_jpg
    shutil.rmtree(version)
    publish(version, {"train": 20, "val": 6, "test": 4}, first=500)
    assert old.read(old.rows[0]).source_jpg == first
    fresh = Dataset.open(str(version))
    assert fresh.read(fresh.rows[0]).key == "k0500"


def test_an_object_store_gives_the_same_and_says_what_is_gone(small, bucket):
    uri = f"{bucket}/versions/v1"
    upload(small, uri)
    local, remote = Dataset.open(str(small)), Dataset.open(uri)
    remote.check()
    assert remote.digest == local.digest
    for row in local.rows[::7]:
        assert remote.read(row).target_jpg == local.read(row).target_jpg
    assert np.array_equal(remote.read_landmarks(local.rows), local.read_landmarks(local.rows))
    shard = local.rows[0]["shard"]
    whole = read_bytes(join(uri, "shards", shard))
    delete(join(uri, "shards", shard))
    with pytest.raises(UserError, match=f"{shard}: this file is gone"):
        remote.read(local.rows[0])
    with pytest.raises(UserError, match=f"{shard}: missing"):
        Dataset.open(uri)
    commit(join(uri, "shards", shard), whole[:700])
    with pytest.raises(UserError, match="cut short"):
        remote.read(remote.rows[0])
    assert len(list_files(join(uri, "shards"))) == 5
