"""After the build: why, diff, report, and forgetting a person wherever they stand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.analyze import AnalyzeConfig
from data_pipeline.audit import wilson
from data_pipeline.build import DataConfig, build_dataset
from data_pipeline.candidates import read_candidates
from data_pipeline.decode import sample_frames
from data_pipeline.diff import diff_versions
from data_pipeline.forget import Removals, apply_removals, forget
from data_pipeline.holdout import HoldoutConfig
from data_pipeline.judge import LIMITS, PairingConfig
from data_pipeline.pack import read_manifest
from data_pipeline.plan import plan_build
from data_pipeline.report import write_data_report
from data_pipeline.retry import reopen
from data_pipeline.split import SplitConfig
from data_pipeline.subset import export, make_view
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.verify import verify_version
from data_pipeline.why import why
from data_pipeline.worklist import item_for, write_worklist
from infra.errors import UserError
from infra.storage import sha256_file
from training.data import Dataset

CONFIG = DataConfig(synthetic=SyntheticConfig(anny=AnnyConfig(people=8, images=4)), split=SplitConfig(val=0.2, test=0.2))


def build(work, models, **changes):
    return build_dataset(CONFIG.model_copy(update=changes), str(work), models, [])


@pytest.fixture(scope="module")
def built(ray_session, models, tmp_path_factory):
    work = tmp_path_factory.mktemp("manage")
    return work, build(work, models)


def test_why_tells_the_whole_path(built):
    work, version = built
    accepted = next(row for row in read_candidates(version.uri) if row["verdict"] == "accepted")
    lines = why(accepted["key"], str(work))
    assert lines[0] == f"{accepted['key']}: accepted, in {accepted['split']}"
    assert sum("passed" in line for line in lines) == len(LIMITS) - 1
    assert any("declared" in line for line in lines)  # a synthetic person's identity is not judged
    assert why(accepted["source_id"], str(work))[0] == f"source {accepted['source_id']}: ok"
    assert "candidate pairs start or end there" in "".join(why(f"{accepted['source_id']}@1.0", str(work)))
    with pytest.raises(UserError, match="neither a sample's key nor a source"):
        why("nobody", str(work))


def test_every_candidate_is_in_the_table(built):
    _, version = built
    rows = read_candidates(version.uri)
    counts = {(row["step"], row["name"]): row["count"] for row in version.funnel}
    assert len(rows) == counts["candidate pairs", "in"]
    assert {row["key"] for row in rows if row["split"]} == {row["key"] for row in read_manifest(version.uri)}


def test_near_duplicates_are_refused(built, models):
    """With hashes allowed to differ in every bit, one pair of each edit of a person is left."""
    work, version = built
    alike = build(work, models, name="alike", pairing=PairingConfig(near_duplicate_bits=256, per_cell=10))
    other = build(work, models, name="other", pairing=PairingConfig(near_duplicate_bits=-1, per_cell=10))
    rows = [row for row in read_candidates(alike.uri) if row["verdict"] == "accepted"]
    cells = [(row["person"], row["edit"]) for row in rows]
    assert len(cells) == len(set(cells))
    found = diff_versions(other.uri, alike.uri)
    assert not found["equal"]
    assert set(found["removed_because"]) <= {"near-duplicate", "quota"}
    assert diff_versions(version.uri, version.uri)["equal"]


def test_the_report_shows_every_filter(built):
    work, version = built
    page = Path(write_data_report(str(work))).read_text()
    for word in ("Funnel", "identity: ", "Coverage", "skin tone (ITA)", "CC0-1.0", version.digest[:16]):
        assert word in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere


def test_wilson():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.49, 0.943)  # the textbook's example


_KILLED = """
import os, sys
import data_pipeline.forget as module
left = int(sys.argv[2])
def counted(real):
    def act(*args, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*args, **options)
    return act
module.commit, module.delete = counted(module.commit), counted(module.delete)
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
    digest = Dataset.open(version.uri).digest
    view, _ = make_view(version.uri, "some", f"yaw >= {min(row['yaw'] for row in before.values())}")
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
    for path in work.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"anny_0_00003" not in content, path
            assert not any(key.encode() in content for key in theirs), path
    again = build(work, models)  # and a later build does not bring them back
    assert {row["key"] for row in read_manifest(again.uri)} == before.keys() - theirs


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
    exported, _ = export(folder, str(tmp_path / "out"), commercial_only=False)
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
    exported, left = export(version.uri, str(tmp_path / "out"), commercial_only=True)
    assert exported == {"CC0-1.0": len(read_manifest(version.uri))}
    assert left == {}
    assert verify_version(str(tmp_path / "out")) == []
    with pytest.raises(UserError, match="published there already"):
        export(version.uri, str(tmp_path / "out"), commercial_only=True)


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


def test_failures_are_reopened_by_reason(ray_session, models, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/broken.mp4").write_bytes(b"no video")
    work = tmp_path / "w"
    config = CONFIG.model_copy(update={"folder": str(tmp_path / "src")})
    build_dataset(config, str(work), models, [])
    with pytest.raises(UserError, match=r"no source failed with 'crash'; reasons in this build: decode"):
        reopen(str(work), "crash")
    parts = len(list((work / "parts").iterdir()))
    assert reopen(str(work), "decode") == ["broken"]
    assert len(list((work / "parts").iterdir())) == parts - 1
    build_dataset(config, str(work), models, [])
    assert len(list((work / "parts").iterdir())) == parts


def test_evaluation_sets_are_kept_out(ray_session, models, clip, tmp_path):
    """By declared name, by content, and a real person by looks: other photos of them are barred."""
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    frame = next(iter(sample_frames(clip("single_face"), 5.0)))
    Image.fromarray(frame.image).save(evaluation / "frame.png")
    clips = [item_for(clip("single_face"), licence="test")]
    plain = CONFIG.model_copy(update={"pairing": PairingConfig(max_upscale=6.0)})
    free = build_dataset(plain, str(tmp_path / "w"), models, clips)
    assert any(row["kind"] == "video" for row in read_candidates(free.uri) if row["verdict"] == "accepted")
    barred = plain.model_copy(update={"name": "barred", "holdout": HoldoutConfig(identities=("anny_0_00001",), folder=str(evaluation))})
    rows = read_candidates(build_dataset(barred, str(tmp_path / "w"), models, clips).uri)
    assert {row["source_id"] for row in rows if row["verdict"] == "held out"} == {"single_face", "anny_0_00001"}
    assert not {"single_face", "anny_0_00001"} & {row["source_id"] for row in rows if row["split"]}
    Image.new("RGB", (64, 64)).save(evaluation / "blank.png")
    with pytest.raises(UserError, match=r"no face is found in blank.png"):
        build_dataset(barred, str(tmp_path / "w"), models, clips)


def test_the_plan_counts_what_will_be_looked_at(models, clip, tmp_path):
    (tmp_path / "fake.mp4").write_text("no video")
    items = [item_for(clip("single_face")), item_for(clip("obama")), item_for(str(tmp_path / "fake.mp4"))]
    plan = plan_build(items, AnalyzeConfig(fps=5.0), models)
    assert plan.sources == {"video": 2, "image": 1}
    assert plan.unreadable == ["fake"]
    looked_at = len(list(sample_frames(clip("single_face"), 5.0))) + 1
    assert abs(plan.frames - looked_at) <= 1
    assert 0 < plan.seconds_per_frame < 5


def test_forget_asks_whom(built):
    work, _ = built
    with pytest.raises(UserError, match="nothing to forget"):
        forget(str(work))
    with pytest.raises(UserError, match="no build here"):
        forget(str(work / "nowhere"), identity="x")
    assert Removals.read(str(work)).identities == frozenset()
    assert apply_removals(str(work)).sources == 0


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
