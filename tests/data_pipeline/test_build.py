"""The build on real clips, photos, synthetic people and bad files: everything is accounted for, and bytes depend on nothing but input and config."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from data_pipeline import tables
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.groups import GroupsConfig, group_digests
from data_pipeline.identities import NAME, AskedGroup
from data_pipeline.judge import judge
from data_pipeline.render import RenderConfig
from data_pipeline.rules import CODE, PairingConfig, Rules
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.verify import verify_version
from data_pipeline.worklist import WorkItem, item_for
from infra.errors import UserError
from lato.edits import parse_instruction
from lato.pairs import decode_pair
from tests.data_pipeline import crash_chain
from tests.data_pipeline.small import read_candidates

CONFIG = DataConfig(
    synthetic=SyntheticConfig(anny=AnnyConfig(people=12, images=4)),
    pairing=PairingConfig(max_upscale=6.0),
    split=SplitConfig(val=0.15, test=0.15),
)


def sources(clip, folder: Path) -> list[WorkItem]:
    (folder / "fake.mp4").write_text("this is a text file")
    data = Path(clip("single_face")).read_bytes()
    (folder / "cut_short.mp4").write_bytes(data[: len(data) // 3])
    names = [clip(name) for name in ("single_face", "carphone", "no_face")]
    paths = [*names, str(folder / "fake.mp4"), str(folder / "cut_short.mp4"), str(folder / "gone.mp4")]
    return [item_for(path, licence="test") for path in paths]


def shard_hashes(version):
    return {path.name: path.read_bytes() for path in sorted(Path(version, "shards").glob("*.tar"))}


@pytest.fixture(scope="module")
def built(ray_session, models, clip, tmp_path_factory):
    work = tmp_path_factory.mktemp("build")
    version = build_dataset(CONFIG, str(work), models, sources(clip, work))
    return work, version


def test_every_source_is_accounted_for(built):
    import json

    work, version = built
    rows = {row["source_id"]: row for row in map(json.loads, (work / "ledger.jsonl").read_text().splitlines())}
    assert len(rows) == 6 + 12
    assert rows["single_face"]["status"] == "ok"
    assert (rows["no_face"]["status"], rows["no_face"]["reason"]) == ("rejected", "no face")
    assert (rows["fake"]["status"], rows["fake"]["reason"]) == ("failed", "decode")
    assert rows["cut_short"]["status"] == "failed"
    assert (rows["gone"]["status"], rows["gone"]["reason"]) == ("failed", "missing")
    counts = {(row["step"], row["name"]): row["count"] for row in version.funnel}
    judged = sum(count for (step, name), count in counts.items() if step == "candidate pairs" and name != "in")
    assert judged == counts["candidate pairs", "in"]
    assert counts["candidate pairs", "accepted"] == sum(version.samples.values())


def test_shards_open_with_plain_tools(built):
    _, version = built
    manifest = pq.read_table(f"{version.uri}/manifest.parquet").to_pylist()
    by_key = {row["key"]: row for row in manifest}
    seen = 0
    for shard in sorted(Path(version.uri, "shards").glob("*.tar")):
        with tarfile.open(shard) as archive:
            assert len(archive.getnames()) == 4 * sum(row["shard"] == shard.name for row in manifest)
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False):
            row = by_key[sample["__key__"]]
            assert row["shard"] == shard.name
            data = shard.read_bytes()
            member = data[row["landmarks.npy_offset"] :][: row["landmarks.npy_length"]]
            assert member == sample["landmarks.npy"]
            assert np.load(io.BytesIO(member)).shape == (2, 68, 2)
            seen += 1
    assert seen == len(manifest) == sum(version.samples.values()) > 60


def test_landmarks_and_instructions_fit_the_pictures(built, reader):
    _, version = built
    manifest = pq.read_table(f"{version.uri}/manifest.parquet").to_pylist()
    errors = []
    for row in manifest[::6]:
        data = Path(version.uri, "shards", row["shard"]).read_bytes()
        members = {m: data[row[f"{m}_offset"] :][: row[f"{m}_length"]] for m in ("json", "landmarks.npy", "source.jpg", "target.jpg")}
        pair = decode_pair(row["key"], members)
        assert parse_instruction(pair.meta.instruction) == pair.meta.edit
        for picture, landmarks in ((pair.source_image(), pair.landmarks[0]), (pair.target_image(), pair.landmarks[1])):
            found = reader.read(picture)
            errors.append(np.abs(found.mesh.landmarks68 - landmarks).mean())
        if pair.meta.edit.yaw:  # left is image-left: the nose goes where the instruction says
            moved = pair.landmarks[1][30, 0] - pair.landmarks[0][30, 0]
            assert np.sign(moved) == np.sign(pair.meta.edit.yaw)
            assert ("left" if pair.meta.edit.yaw < 0 else "right") in pair.meta.instruction
    assert np.median(errors) < 4, errors


def test_nobody_is_on_two_sides_and_both_directions_are_there(built):
    _, version = built
    manifest = pq.read_table(f"{version.uri}/manifest.parquet").to_pylist()
    sides = {}
    for row in manifest:
        assert sides.setdefault(row["identity"], row["split"]) == row["split"]
    assert {row["split"] for row in manifest} == {"train", "val", "test"}
    yaws = [row["yaw"] for row in manifest if row["kind"] == "synthetic"]
    assert yaws.count(30) == yaws.count(-30) > 0


def test_again_does_nothing_and_other_thresholds_decode_nothing(built, models, clip):
    work, version = built
    before = {path.name for path in (work / "parts").iterdir()}
    again = build_dataset(CONFIG, str(work), models, sources(clip, work))
    assert again.digest == version.digest
    stricter = CONFIG.model_copy(update={"name": "strict", "pairing": PairingConfig(max_upscale=6.0, per_identity=2)})
    other = build_dataset(stricter, str(work), models, sources(clip, work))
    assert sum(other.samples.values()) < sum(version.samples.values())
    crops = len(list((work / "renders").iterdir()))
    sought = CONFIG.model_copy(update={"name": "sought", "render": RenderConfig(seeker="decord")})
    cut_otherwise = build_dataset(sought, str(work), models, sources(clip, work))
    assert cut_otherwise.samples == version.samples
    assert len(list((work / "renders").iterdir())) > crops
    assert {path.name for path in (work / "parts").iterdir()} == before


def test_judged_on_ray_by_tables_the_verdicts_are_the_same(built, models, monkeypatch, tmp_path):
    """Above very many pairs; the quota of a source counts over all row groups of its table."""
    work, _ = built
    uris = [shutil.copy(path, tmp_path / f"{copy}_{path.name}") for copy in range(2) for path in sorted((work / "pairs").glob("*.parquet"))]
    rules = Rules(PairingConfig(max_upscale=6.0, per_source=3))
    groups = GroupsConfig()
    identities = AskedGroup.open(NAME, str(work), group_digests(models, groups), groups, models, 0)
    here = judge([str(uri) for uri in uris], rules, identities)
    monkeypatch.setattr(tables, "MANY", 10)
    monkeypatch.setattr(tables, "_JOB", 10)
    shared = judge([str(uri) for uri in uris], rules, identities, 2)
    assert len(here) >= 2
    assert all((a.codes == b.codes).all() for a, b in zip(here, shared, strict=True))
    assert 0 < sum((found.codes == 0).sum() for found in here) < sum(len(found.codes) for found in here)
    shared[0].codes[0] = CODE["bridge"]  # later steps add their verdicts


def test_verify_finds_a_flipped_byte_and_a_cut_shard(built, tmp_path):
    _, version = built
    assert verify_version(version.uri) == []
    copy = tmp_path / "v"
    shutil.copytree(version.uri, copy)
    shard = next(iter((copy / "shards").glob("train-*.tar")))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert any("sha256 differs" in line for line in verify_version(str(copy)))
    shard.unlink()
    assert any("missing" in line for line in verify_version(str(copy)))


def test_nothing_to_pair_is_said(models, clip, tmp_path, ray_session):
    with pytest.raises(UserError, match="no pair was accepted"):
        build_dataset(DataConfig(), str(tmp_path), models, [item_for(clip("no_face"))])


def test_a_source_that_changes_or_goes_before_it_is_cut_loses_its_pairs_and_is_named(models, clip, tmp_path, monkeypatch, capsys):
    import data_pipeline.publish as module

    boxes = {"changes": (0.0, 0.0, 1.0, 1.0), "goes": (0.0, 0.0, 1.0, 0.99), "stays": None}  # equal content and crops, and no duplicates
    for name in boxes:
        shutil.copy(clip("single_face"), tmp_path / f"{name}.mp4")
    real = module.divide

    def meanwhile(*args):
        with (tmp_path / "changes.mp4").open("ab") as file:
            file.write(b"x")
        (tmp_path / "goes.mp4").unlink()
        return real(*args)

    monkeypatch.setattr(module, "divide", meanwhile)
    items = [item_for(str(tmp_path / f"{name}.mp4"), licence="test", box=box) for name, box in boxes.items()]
    given = crash_chain.CONFIG
    roomy = {"near_duplicate_bits": -1, "per_identity": 99, "per_cell": 99}  # they show the same, of one person
    apart = given.model_copy(update={"pairing": given.pairing.model_copy(update=roomy)})
    version = build_dataset(apart, str(tmp_path / "w"), models, items)
    lost = [row["source_id"] for row in read_candidates(version.uri) if row["verdict"] == "render failed"]
    assert set(lost) == {"changes", "goes"}
    packed = pq.read_table(f"{version.uri}/manifest.parquet").to_pylist()
    assert {row["source_id"] for row in packed if row["kind"] == "video"} == {"stays"}
    assert verify_version(version.uri) == []
    said = capsys.readouterr().out
    assert "render failed: changes: ValueError" in said and "changed after it was looked at" in said
    assert "render failed: goes: " in said
