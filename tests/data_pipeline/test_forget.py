"""Forgetting a person wherever they stand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.audit import add_label
from data_pipeline.build import build_dataset
from data_pipeline.forget import PENDING, forget, sources_like
from data_pipeline.observations import commit_part
from data_pipeline.observe import observe
from data_pipeline.published import read_index, read_manifest, read_members
from data_pipeline.report import write_data_report
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.subset import make_view
from data_pipeline.succession import WITHDRAWN
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.synthetic.warp import WarpConfig
from data_pipeline.verify import verify_version
from data_pipeline.worklist import item_for, write_worklist
from infra.errors import UserError
from infra.storage import sha256_file
from lato.edits import Expression
from tests.data_pipeline.many_candidates import write_version
from tests.data_pipeline.small import CONFIG, build, config, read_candidates
from training.data import Dataset

LOOSE = PairingConfig(
    max_upscale=20, max_padding=1, same_person=True, min_background=-1, min_clothing=-1, min_similarity=-1, min_expression=0, max_occlusion=9,
    near_duplicate_bits=-1, pose_tolerance=15.0, min_sharpness=0, max_writing=1, max_noise=99, max_clipped=1, max_blockiness=99, per_cell=99,
    min_agreement=0, max_intensity_gap=9,
)  # fmt: skip


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


def kill_at_every_step(start, scratch, **asked):
    """Forgets in copies of a build's folder, killed at each step (`forget_chain`): how often, and the folder that an undisturbed removal left."""
    scratch.mkdir()
    (scratch / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "tests.data_pipeline.forget_chain", str(start), str(scratch), str(scratch / "asked.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]), scratch / "calm"


def begin_with_all_kinds_of_files(work, models, clip):
    """A build in which people are in every place that there is: two versions, a view, what was never published, what is replaced, what was made of samples.
    One of them the last work list does not name. The first version had somebody removed before the second extended it: that one has revised shards, and an
    index without a revision."""
    warped = SyntheticConfig(warp=WarpConfig(workers=0, expressions=(Expression.HAPPY,)), anny=AnnyConfig(people=3, images=3, workers=0))
    config = CONFIG.model_copy(
        update={"synthetic": warped, "analyze": AnalyzeConfig(workers=0), "pairing": LOOSE, "split": SplitConfig(val=0, test=0)}
    )
    photos = [item_for(clip(name), licence="theirs", identity=name) for name in ("obama", "obama2")]
    version = build_dataset(config, str(work), models, photos)
    assert forget(str(work), source="anny_0_00002").samples.keys() == {"v1"}
    second = build_dataset(config.model_copy(update={"name": "v2", "extends": "v1"}), str(work), models, photos)
    assert all(".r1." in shard["name"] for shard in read_index(second.uri)["shards"]) and "revision" not in read_index(second.uri)
    make_view(version.uri, "all", "kind in image,synthetic")
    write_data_report(str(work))
    for name in ("begun", "replaced"):  # a build that was killed before it published, and one that was replacing a version
        shutil.copytree(version.uri, work / "versions" / name)
    (work / "versions/begun/index.json").unlink()
    (work / "versions/replaced/index.json").rename(work / "versions/replaced" / WITHDRAWN)
    observe(config, str(work), models, photos[:1])
    theirs = sorted(row["key"] for row in read_manifest(version.uri) if row["source_id"].startswith("obama"))
    add_label(str(work), theirs[0], True, "accepted", 0)
    files = (
        "edits/x.jpg",
        "text_states/a.safetensors",
        "runs/dit/failures/rank-00000.json",
        "attempts/a.json",
        "parts/.b.parquet.c.tmp",
        "pairs/d",
    )
    for name in files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(json.dumps({"theirs": theirs[0], "source": "obama2"}))
    return version, theirs


@pytest.mark.slow
def test_a_person_is_forgotten_even_if_killed_at_any_step(models, clip, tmp_path):
    """Before and after every commit and before every deletion, once and again and again: the files are then those of a removal that nothing ended. Nothing of
    them is left in any, and of the others' samples no byte is changed."""
    work = tmp_path / "w"
    version, theirs = begin_with_all_kinds_of_files(work, models, clip)
    before = {row["key"]: row for row in read_manifest(version.uri)}
    others = {key: read_members(version.uri, row) for key, row in before.items() if key not in theirs}
    shared = {before[key]["shard"] for key in theirs} & {before[key]["shard"] for key in others}
    assert shared  # shards that must be written anew
    traces = {row["source_sha256"] for row in observed_rows(work) if row["source_id"].startswith("obama")} | {"obama", *theirs}
    assert all(any(trace in all_text_of(path) for path in work.rglob("*") if path.is_file()) for trace in traces)  # the scan below can fail
    kills, calm = kill_at_every_step(work, tmp_path / "scratch", licence="theirs")
    assert kills > 50
    for path in calm.rglob("*"):
        assert not any(trace in path.name for trace in traces), path
        if path.is_file():
            content = all_text_of(path)
            assert not [trace for trace in traces if trace in content], path
    for name in ("v1", "v2"):
        folder = str(calm / "versions" / name)
        after = {row["key"]: row for row in read_manifest(folder)}
        assert {key: read_members(folder, row) for key, row in after.items()} == others
        assert verify_version(folder) == []
    assert {row["key"] for row in read_manifest(str(calm / "versions/all"))} == others.keys()
    assert not (calm / "versions/begun").exists() and [path.name for path in (calm / "versions/replaced").iterdir()] == [WITHDRAWN]
    assert [row.name for row in (calm / "attempts").iterdir()] == [] and not (calm / PENDING).exists()


def test_what_is_published_without_a_person_is_another_version(models, tmp_path):
    """Its digest and its views' are others, the old ones are tombstones, shards without the person stay; and a later build does not bring them back."""
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
    (work / "mine.txt").write_text("")
    forget(str(work), identity="anny_0_00003")
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
    assert (
        column_parts(work) == {path.stem for path in (work / "parts").iterdir()} < scored
    )  # vectors of a face name nobody, and are theirs
    assert (work / "mine.txt").exists()
    again = build(work, models)
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


@pytest.mark.parametrize("name", ["noisy", "accepted"])
def test_a_source_that_is_named_like_a_verdict_takes_no_labels_with_it(tmp_path, name):
    items = [item_for(str(tmp_path / f"{source}.mp4"), licence="test") for source in (name, "a", "b")]
    write_version(tmp_path, 20)
    write_worklist(items, str(tmp_path / "worklist.parquet"))
    for number, stratum in enumerate(("noisy", "noisy", "accepted")):
        add_label(str(tmp_path), f"k{number:04d}", True, stratum, 0)
    labels = (tmp_path / "labels.jsonl").read_bytes()
    merges = [json.dumps({"first": first, "second": second}) for first, second in (("a", "b"), (name, "a"), ("b", name))]
    (tmp_path / "merges.jsonl").write_text("".join(f"{line}\n" for line in merges))
    assert forget(str(tmp_path), source=name).sources == 1
    assert (tmp_path / "labels.jsonl").read_bytes() == labels
    assert (tmp_path / "merges.jsonl").read_text() == merges[0] + "\n"


def test_what_no_version_has_any_more_is_forgotten_too(tmp_path):
    """Of a source that left the work list, and the version that was then built anew under the same name: nothing says which keys were theirs."""
    write_version(tmp_path, 20)
    commit_part(str(tmp_path), "f" * 64, [], {"source_id": "x", "licence": "test", "status": "ok"}, {"of": {}, "with": {}})
    for key in ("p_x", "k0001", f"p_{8:020d}"):
        add_label(str(tmp_path), key, True, "accepted", 0)
    made = ("edits/lato/p_x.jpg", "text_states/r/states-0.safetensors", "runs/dit/pictures/val-1.png", "scores.parquet")
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x's face")
    labels = (tmp_path / "labels.jsonl").read_text().splitlines(keepends=True)
    assert forget(str(tmp_path), source="nobody").sources == 0
    assert all((tmp_path / name).exists() for name in made) and (tmp_path / "labels.jsonl").read_text() == "".join(labels)
    done = forget(str(tmp_path), source="x")
    assert done.sources == 1 and done.samples == {}
    assert not [name for name in made if (tmp_path / name).exists()]
    assert (tmp_path / "labels.jsonl").read_text() == "".join(labels[1:])  # the others' stay: of a sample, and of a refused pair


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
