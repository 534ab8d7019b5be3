"""Pairs of two sources: both ends are somebody's, and both have a licence."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.diff import diff_versions
from data_pipeline.forget import PENDING, forget
from data_pipeline.groups import GroupsConfig
from data_pipeline.observe import observe
from data_pipeline.pack import write_shard
from data_pipeline.published import MANIFEST, encode_table, read_index, read_manifest, read_members
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.subset import export, make_view
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.synthetic.warp import WarpConfig
from data_pipeline.taken_out import merged_away
from data_pipeline.verify import verify_version
from data_pipeline.why import why
from data_pipeline.worklist import item_for
from infra.errors import UserError
from infra.storage import sha256_bytes, sha256_file, sha256_json
from infra.tracking import default_uri, open_run
from lato.edits import Expression
from lato.pairs import decode_pair
from tests.data_pipeline.commands import lato
from tests.data_pipeline.test_forget import LOOSE, all_text_of, observed_rows

PHOTOS = DataConfig(analyze=AnalyzeConfig(workers=0, groups=GroupsConfig(names=("identity",))), pairing=LOOSE)
EDITED = PHOTOS.model_copy(update={"synthetic": SyntheticConfig(warp=WarpConfig(workers=0, expressions=(Expression.HAPPY,)))})


@pytest.fixture(scope="module")
def built(models, clip, tmp_path_factory):
    """Two photos of one declared person under two licences: a pair each way."""
    work = tmp_path_factory.mktemp("ends") / "w"
    items = [
        item_for(clip("obama"), licence="CC0-1.0", identity="o", consent="public", url="https://a.example/1"),
        item_for(clip("obama2"), licence="secret-NC", identity="o", consent="asked"),
    ]
    version = build_dataset(PHOTOS, str(work), models, items)
    rows = read_manifest(version.uri)
    assert sorted((row["source_id"], row["target_id"], row["licence"], row["target_licence"]) for row in rows) == [
        ("obama", "obama2", "CC0-1.0", "secret-NC"),
        ("obama2", "obama", "secret-NC", "CC0-1.0"),
    ]
    return work, items


@pytest.fixture
def copied(built, tmp_path):
    """A build of which a test may forget something."""
    shutil.copytree(built[0], tmp_path / "w")
    return tmp_path / "w"


def as_written_before(folder):
    """Takes the columns of the target out of a version, as if an older build had written it."""
    index = json.loads((folder / "index.json").read_text())
    rows = [{name: value for name, value in row.items() if not name.startswith("target_")} for row in read_manifest(str(folder))]
    data = encode_table(rows)
    (folder / MANIFEST).write_bytes(data)
    index["manifest_sha256"] = sha256_bytes(data)
    index["digest"] = sha256_json({"shards": index["shards"], "manifest": index["manifest_sha256"]})
    (folder / "index.json").write_text(json.dumps(index))


def test_the_sample_says_whose_its_target_is(built):
    work, items = built
    row = next(row for row in read_manifest(str(work / "versions/v1")) if row["source_id"] == "obama")
    origin = decode_pair(row["key"], read_members(str(work / "versions/v1"), row)).meta.provenance
    assert (origin.target_id, origin.target_licence, origin.target_sha256) == ("obama2", "secret-NC", sha256_file(items[1].uri))
    assert (origin.consent, origin.url, origin.target_consent, origin.target_url) == ("public", "https://a.example/1", "asked", None)
    assert all(row[name] == getattr(origin, name) for name in ("consent", "url", "target_consent", "target_url"))
    text = "\n".join(why(row["key"], str(work)))
    assert "licence CC0-1.0, consent public, from https://a.example/1" in text and "target obama2, sha256" in text


NEW = ("consent", "url", "target_consent", "target_url")


def test_a_version_without_consents_is_read_extended_and_made_parts_of(copied, built, models, clip, tmp_path):
    """As they were written before samples had consent, URL and how their text came about."""
    folder = str(copied / "versions/v1")
    shutil.copytree(folder, copied / "versions/new")
    index, rows, shards = read_index(folder), [], []
    for shard in index["shards"]:
        samples = []
        for row in (row for row in read_manifest(folder) if row["shard"] == shard["name"]):
            members = read_members(folder, row)
            meta = json.loads(members["json"])
            meta["provenance"] = {name: value for name, value in meta["provenance"].items() if name not in NEW}
            meta = {name: value for name, value in meta.items() if name not in ("template_seed", "rewriting")}
            samples.append(({n: v for n, v in row.items() if n not in NEW}, members | {"json": json.dumps(meta).encode()}))
        data, written = write_shard(samples, shard["name"])
        Path(folder, "shards", shard["name"]).write_bytes(data)
        rows += written
        shards.append({**shard, "bytes": len(data), "sha256": sha256_bytes(data)})
    table = encode_table(rows)
    Path(folder, MANIFEST).write_bytes(table)
    index |= {"shards": shards, "manifest_sha256": sha256_bytes(table)}
    index["digest"] = sha256_json({"shards": shards, "manifest": index["manifest_sha256"]})
    Path(folder, "index.json").write_text(json.dumps(index))
    assert verify_version(folder) == []
    for first, second in (("v1", "new"), ("new", "v1")):
        found = diff_versions(str(copied / "versions" / first), str(copied / "versions" / second))
        assert not (found["changed"] or found["added"] or found["removed"] or found["equal"])
    assert make_view(folder, "view", "licence in CC0-1.0,secret-NC")[1] == {rows[0]["split"]: 2}
    with pytest.raises(UserError, match="there is no such column"):
        make_view(folder, "asked", "consent = asked")
    export(folder, str(tmp_path / "out"))
    assert verify_version(str(tmp_path / "out")) == []
    third = tmp_path / "third.png"
    Image.open(clip("obama2")).convert("RGB").resize((700, 700)).save(third)
    items = [*built[1], item_for(str(third), licence="MIT", identity="o", consent="public")]
    extended = build_dataset(PHOTOS.model_copy(update={"name": "v2", "extends": "v1"}), str(copied), models, items)
    assert verify_version(extended.uri) == []
    there = {row["key"]: row for row in read_manifest(extended.uri)}
    assert all(there[row["key"]]["consent"] is None for row in rows) and len(there) > 2
    kept = make_view(extended.uri, "public", "consent = public")[0]  # of both ends; who does not tell it is left out
    assert {(row["source_id"], row["target_id"]) for row in read_manifest(kept)} == {("obama", "third"), ("third", "obama")}
    assert forget(str(copied), source="obama2").samples == {"v1": 2, "new": 2, "v2": 2}
    assert verify_version(folder) == [] == verify_version(extended.uri)


@pytest.mark.parametrize("asked", [{"source": "obama2"}, {"licence": "secret-NC"}, {"sources": ("obama2",)}, {"source": "obama"}])
@pytest.mark.parametrize("older", [False, True])
def test_either_end_takes_the_pair_with_it(copied, asked, older):
    version = copied / "versions/v1"
    if older:
        as_written_before(version)
    keys = [row["key"] for row in read_manifest(str(version))]
    (copied / "labels.jsonl").write_text("".join(json.dumps({"key": key, "good": True}) + "\n" for key in keys))
    done = forget(str(copied), **asked)
    assert done.sources == 1 and done.samples == {"v1": 2}
    assert read_manifest(str(version)) == [] and verify_version(str(version)) == []
    assert list((version / "shards").iterdir()) == [] and list((copied / "renders").iterdir()) == []
    assert (copied / "labels.jsonl").read_text() == ""
    assert not any(key in all_text_of(path) for path in copied.rglob("*") if path.is_file() for key in keys)


def test_a_pair_is_exported_only_where_both_licences_allow_it(built, tmp_path):
    work, _ = built
    version = str(work / "versions/v1")
    with pytest.raises(Exception, match="no sample has a licence of commercial"):
        export(version, str(tmp_path / "free"), ["commercial"])
    exported, left = export(version, str(tmp_path / "both"), ["commercial", "secret-NC"])
    assert (exported, left) == ({"CC0-1.0 and secret-NC": 2}, {})
    with pytest.raises(Exception, match="no sample is left"):
        make_view(version, "free", "licence = CC0-1.0")
    assert sum(make_view(version, "both", "licence in CC0-1.0,secret-NC")[1].values()) == 2
    card = (Path(version) / "README.md").read_text()
    assert "license: other" in card and "| CC0-1.0 and secret-NC | 2 |" in card
    assert json.loads((Path(version) / "croissant.json").read_text())["license"] == ["CC0-1.0", "secret-NC"]


def test_a_merge_takes_out_pairs_of_which_either_end_is_in_the_lower_split():
    rows = [
        {"key": key, "source_id": source, "target_id": target, "split": split, "identity": f"{source}/0"}
        for key, source, target, split in (("ab", "a", "b", "train"), ("ba", "b", "a", "train"), ("cc", "c", "c", "test"))
    ]
    assert merged_away(rows, [("a", "c")], {}) == {"ab", "ba"}


def test_a_forgotten_photo_does_not_come_back_through_its_edits(models, clip, tmp_path):
    """Nor through a work list that names the edits themselves."""
    work, photos = str(tmp_path / "w"), [item_for(clip("obama"), licence="t"), item_for(clip("obama2"), licence="t")]
    looked = observe(EDITED, work, models, photos)
    assert set(looked.items) == {"obama", "obama2", "obama_warp", "obama2_warp"}
    assert forget(work, source="obama").sources == 2
    again = observe(EDITED, work, models, [*photos, looked.items["obama_warp"]])
    assert set(again.items) == {"obama2", "obama2_warp"}
    assert all(path.read_bytes() != Path(photos[0].uri).read_bytes() for path in (tmp_path / "w/synthetic").iterdir())


def source_ids(work):
    return {row["source_id"] for row in observed_rows(work)}


@pytest.mark.parametrize("asked", [{"source": "obama"}, {"identity": "o"}, {"licence": "old"}])
def test_forgetting_reaches_what_the_last_work_list_does_not_name(models, clip, tmp_path, asked):
    """Parts of an earlier work list and of earlier settings, edited sets of earlier settings with their records, images and parts."""
    work, photo = tmp_path / "w", item_for(clip("obama"), licence="old", identity="o")
    surprised = EDITED.model_copy(update={"synthetic": SyntheticConfig(warp=WarpConfig(workers=0, expressions=(Expression.SURPRISED,)))})
    for config, item in ((EDITED, photo), (surprised, photo), (PHOTOS, photo.model_copy(update={"box": (0.0, 0.0, 1.0, 1.0)}))):
        observe(config, str(work), models, [item])
    observe(EDITED, str(work), models, [item_for(clip("obama2"), licence="new")])
    assert len(list((work / "parts").iterdir())) == 4 + 2  # a photo cut otherwise, and two sets of warps, are superseded
    assert source_ids(work) == {"obama", "obama_warp", "obama2", "obama2_warp"}
    kept = {path.name for path in (work / "synthetic").iterdir() if "obama2" in path.read_text("latin-1")}
    assert forget(str(work), **asked).sources == 2
    assert source_ids(work) == {"obama2", "obama2_warp"}
    assert {path.name.split(".")[0] for path in (work / "columns").rglob("*.*")} <= {path.stem for path in (work / "parts").iterdir()}
    left = list((work / "synthetic").iterdir())
    assert kept and len(left) == 4  # the other photo's set, its record, itself and one edit
    assert all(path.read_bytes() != Path(photo.uri).read_bytes() and '"obama"' not in path.read_text("latin-1") for path in left)
    assert not (work / PENDING).exists()


def test_only_runs_that_may_have_read_somebody_are_told_and_all_that_may_show_them_is_deleted(copied, tmp_path):
    """Whatever its kind: only what is known to show nobody stays. Who was never in the build was in no run."""
    uri = default_uri(str(copied))
    run = open_run(uri, "lato", "mine", str(copied / "backlog"))
    run.dataset("pairs", read_index(str(copied / "versions/v1"))["digest"], "somewhere")
    run.describe({"steps": 3}, {"python": "3"})
    for name in ("grid.gif", "faces.npz", "scores.parquet", "rows.json", "page.html", "face.png"):
        (tmp_path / name).write_text("obama2")
        run.artifact(str(tmp_path / name), "shown" if name == "rows.json" else None)
    run.text("{}", "checkpoints/step-000001.json")
    for name in ("pictures/edits-000001.png", "failures/rank-00000.json", "metrics.jsonl"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    run.tags({"folder": str(tmp_path / "run")})
    run.close(seconds=300)
    assert "mine" not in lato("forget", "--source", "nobody", "--work-dir", copied)
    first = lato("forget", "--source", "obama2", "--work-dir", copied)
    assert "1 sources taken out" in first and f"lato / mine ({run.run_id}); 8 files deleted there" in first
    assert "left in MLflow: parameters, metrics" in first
    kept = [path for path in (copied / "mlartifacts").rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == ["config.yaml", "environment.yaml", "step-000001.json"]
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["metrics.jsonl"]
    again = lato("forget", "--source", "obama2", "--work-dir", copied)  # the first may have ended before it told
    assert "0 sources taken out" in again and f"lato / mine ({run.run_id}); 0 files deleted there" in again


def test_a_version_that_was_never_published_goes(copied):
    """A build killed between shards and index: what it packed holds people that no index says are there."""
    (copied / "versions/v1/index.json").unlink()
    assert list((copied / "versions/v1/shards").iterdir())
    forget(str(copied), source="obama2")
    assert not (copied / "versions/v1").exists() and list((copied / "renders").iterdir()) == []


def test_names_that_forgetting_would_not_see_are_refused(models, tmp_path):
    for name in ("a/b", "../v1", ".", ""):
        with pytest.raises(ValidationError, match="name"):
            DataConfig(name=name)
    config = DataConfig(analyze=AnalyzeConfig(workers=0), synthetic=SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0)))
    with pytest.raises(UserError, match="cannot extend itself"):
        build_dataset(config.model_copy(update={"extends": "v1"}), str(tmp_path), models, [])
    version = build_dataset(config, str(tmp_path), models, [])
    make_view(version.uri, "mine", "kind = synthetic")
    with pytest.raises(UserError, match="a view of that name"):
        build_dataset(config.model_copy(update={"name": "mine"}), str(tmp_path), models, [])
