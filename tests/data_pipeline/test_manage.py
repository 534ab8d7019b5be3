"""After the build: why, diff, report, views, exports."""

import json
import os
import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_pipeline.analyze import AnalyzeConfig
from data_pipeline.audit import add_label, choose, wilson
from data_pipeline.build import DataConfig, Stopped, build_dataset
from data_pipeline.candidates import read_candidates
from data_pipeline.decode import sample_frames
from data_pipeline.diff import diff_versions
from data_pipeline.forget import apply_removals, forget
from data_pipeline.groups import GroupsConfig, backfill, group_digests
from data_pipeline.holdout import HoldoutConfig
from data_pipeline.pack import read_manifest
from data_pipeline.plan import plan_build
from data_pipeline.removals import Removals
from data_pipeline.report import _correlate, write_data_report
from data_pipeline.retry import reopen
from data_pipeline.rules import LIMITS, PairingConfig
from data_pipeline.split import SplitConfig
from data_pipeline.subset import export, make_view
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.verify import verify_version
from data_pipeline.why import why
from data_pipeline.worklist import item_for
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
    assert sum("passed" in line for line in lines) == len(LIMITS) - 1 + 4  # verifier, discriminator, step, evaluation sets
    assert any("declared" in line for line in lines)  # a synthetic person's identity is not judged
    sample = next(row for row in read_manifest(version.uri) if row["key"] == accepted["key"])
    told = "\n".join(lines)
    assert f"shard {sample['shard']} from byte {sample['json_offset']}" in told and sample["instruction"] in told
    assert all(f"model {name}" in told for name in ("detector", "mesh", "identity/face_recognition_sface_2021dec.onnx"))
    refused = next(row for row in read_candidates(version.uri) if row["misread"] and row["verdict"] == "expression verifier")
    assert any(line.endswith("failed") for line in why(refused["key"], str(work)))
    assert why(accepted["source_id"], str(work))[0] == f"source {accepted['source_id']}: ok"
    end = f"{accepted['source_id']}@{accepted['from_pts']}"
    assert "a representative of its track: sharpness" in "\n".join(why(end, str(work)))
    assert accepted["key"] in "\n".join(why(end, str(work)))
    for wrong, message in (("nobody", "neither a sample's key nor a source"), (f"{accepted['source_id']}@noon", "expected seconds")):
        with pytest.raises(UserError, match=message):
            why(wrong, str(work))


def test_a_build_can_stop_after_a_stage(models, tmp_path):
    """Pairing alone cuts no crop, rendering alone packs nothing, and the build that follows has the bytes of one that never stopped."""
    small = CONFIG.model_copy(
        update={"synthetic": SyntheticConfig(anny=AnnyConfig(people=4, images=3, workers=0)), "analyze": AnalyzeConfig(workers=0)}
    )
    work = tmp_path / "stopped"
    with pytest.raises(Stopped) as paired:
        build_dataset(small, str(work), models, [], until="pair")
    assert any(row["name"] == "accepted" and row["count"] for row in paired.value.funnel)
    assert not (work / "renders").exists()
    with pytest.raises(Stopped):
        build_dataset(small, str(work), models, [], until="render")
    assert list((work / "renders").iterdir()) and not (work / "versions").exists()
    straight = build_dataset(small, str(tmp_path / "straight"), models, [])
    assert build_dataset(small, str(work), models, []).digest == straight.digest


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


def test_the_report_shows_every_part(built, models):
    """Thresholds are those of its version, whatever was built since; nothing is loaded from elsewhere."""
    work, version = built
    rows = read_manifest(version.uri)
    middle = float(np.median([row["sharpness"] for row in read_candidates(version.uri) if row["split"]])) + 0.01
    strict = build(work, models, name="strict", pairing=PairingConfig(min_sharpness=middle))
    add_label(str(work), rows[0]["key"], False, "accepted", 0)
    try:
        pages = {name: Path(write_data_report(str(work), name)).read_text() for name in ("v1", "strict")}
        refused = next(row for row in read_candidates(strict.uri) if row["verdict"] == "blurred")
        assert any(
            line.split()[:4] == ["blurred", f"{refused['sharpness']:.3g}", ">=", "15"] for line in why(refused["key"], str(work), "v1")
        )
    finally:
        (work / "labels.jsonl").unlink()
    page = pages["v1"]
    for word in (
        "Funnel",
        *(f"{verdict}: " for verdict in LIMITS),
        "pose discriminator: ",
        "skin tone (ITA)",
        "CC0-1.0",
        version.digest[:16],
    ):
        assert word in page
    happy = sum(row["expression"] == "happy" and row["edit_kind"] == "expression" for row in rows)
    assert re.search(rf'<td>happy</td><td class="n short">{happy} <span class="lack">&minus;{50 - happy}</span>', page)
    assert "<td>accepted</td>" in page  # of the audit
    assert 'alt="just rejected: expression verifier"' in page and "of sources that share a person" in page
    assert [name for name in pages if 'alt="just rejected: blurred"' in pages[name]] == ["strict"]
    assert "identity</b>" not in page  # of drawn people it is declared
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_second_opinion_is_told_in_the_report_and_changes_no_verdict(built, models):
    """The two often differ on drawn people: used as a filter, it would show."""
    work, version = built
    assert "second opinion" not in Path(write_data_report(str(work))).read_text()
    config = GroupsConfig(names=("fer",))
    ledger = [json.loads(line) for line in (work / "ledger.jsonl").read_text().splitlines()]
    backfill([part for row in ledger for part in row["parts"]], group_digests(models, config), config, models, str(work), 0)
    page = Path(write_data_report(str(work))).read_text()
    said = re.search(r"they agree on (\d+) of (\d+)\. No pair is judged by it\. Computed for (\d+) of (\d+) parts; (\S+), sha256", page)
    assert int(said[2]) == sum(row["representatives"] for row in ledger) > int(said[1])
    assert int(said[3]) == int(said[4]) and said[5] == "emotion_model_quantized.tflite"
    assert build(work, models).digest == version.digest
    with_it = CONFIG.analyze.model_copy(update={"groups": GroupsConfig(names=(*GroupsConfig().names, "fer"))})
    asked = build(work, models, name="asked", analyze=with_it)
    verdicts = [{row["key"]: row["verdict"] for row in read_candidates(found.uri)} for found in (version, asked)]
    assert verdicts[0] == verdicts[1]
    assert "model fer/emotion_model_quantized.tflite" in "\n".join(why(read_manifest(asked.uri)[0]["key"], str(work), "asked"))


def test_every_refusal_by_a_reading_is_audited(built):
    work, version = built
    refused = {row["verdict"] for row in read_candidates(version.uri)} & {*LIMITS, "expression verifier", "pose discriminator"}
    entries = choose(str(work), "v1", 3, 0)
    assert "expression verifier" in refused and {entry.stratum for entry in entries} == refused | {"accepted"}
    assert all(entry.score.startswith("reads as ") for entry in entries if entry.stratum == "expression verifier")


def test_scores_are_correlated_over_the_pairs_that_have_both():
    """A score that is known of few rows does not hide how the others go together."""
    line = np.arange(10.0)
    few = np.where(line < 3, [0.0, 2.0, 1.0] + [0.0] * 7, np.nan)
    found = _correlate(np.column_stack([line, line**3, few, np.ones(10)]))
    assert found[0, 1] == pytest.approx(np.corrcoef(line, line**3)[0, 1])
    assert found[0, 2] == found[2, 0] == pytest.approx(0.5)
    assert np.isnan(found[3]).all()


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


def test_wilson():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.49, 0.943)  # the textbook's example


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


def lying(clip, target, states):
    """The clip in another container, which says of itself that it has so many frames."""
    with av.open(clip) as given, av.open(str(target), "w") as made:
        if target.suffix == ".mkv":  # Matroska's writers leave it in a tag
            stream = made.add_stream_from_template(given.streams.video[0])
            stream.metadata["NUMBER_OF_FRAMES"] = str(states)
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    made.mux(packet)
            return
        stream = made.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.bit_rate = given.streams.video[0].width, given.streams.video[0].height, 4_000_000
        for frame in given.decode(video=0):
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    content = bytearray(target.read_bytes())
    at = content.index(b"strh") + 8 + 32
    content[at : at + 4] = states.to_bytes(4, "little")
    target.write_bytes(content)


def test_another_number_of_frames_than_stated_is_a_warning_and_no_verdict(models, clip, tmp_path):
    (tmp_path / "src").mkdir()
    states = {"tagged.mkv": 999, "header.avi": 50}
    for name, count in states.items():
        lying(clip("single_face"), tmp_path / "src" / name, count)
    shutil.copyfile(clip("single_face"), tmp_path / "src/honest.mp4")
    alone = AnalyzeConfig(workers=0)
    config = DataConfig(
        folder=str(tmp_path / "src"), analyze=alone, synthetic=SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0))
    )
    work = str(tmp_path / "w")
    build_dataset(config, work, models, [])
    page = Path(write_data_report(work)).read_text()
    rows = {row["source_id"]: row for row in map(json.loads, (tmp_path / "w/ledger.jsonl").read_text().splitlines())}
    for name, count in states.items():
        source = name.split(".")[0]
        said = f"its container states {count} frames, it has 72"
        assert (rows[source]["status"], rows[source]["warnings"]) == ("ok", [said])
        assert rows[source]["faces"]
        assert f"warning: {said}" in why(source, work)
        assert f"<td>{source}</td><td>{said}</td>" in page
    assert rows["honest"]["status"] == "ok" and "warnings" not in rows["honest"]
    assert not [line for line in why("honest", work) if "warning" in line]


def test_failures_are_reopened_by_reason(ray_session, models, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/broken.mp4").write_bytes(b"no video")
    work = tmp_path / "w"
    config = CONFIG.model_copy(update={"folder": str(tmp_path / "src"), "synthetic": SyntheticConfig(anny=AnnyConfig(people=3, images=3))})
    build_dataset(config, str(work), models, [])
    with pytest.raises(UserError, match=r"no source failed with 'crash'; reasons in this build: decode"):
        reopen(str(work), "crash")
    parts = len(list((work / "parts").iterdir()))
    assert reopen(str(work), "decode") == ["broken"]
    assert len(list((work / "parts").iterdir())) == parts - 1
    build_dataset(config, str(work), models, [])
    assert len(list((work / "parts").iterdir())) == parts


def test_failed_renders_are_reopened(models, clip, tmp_path):
    """A source that was away when its crops were cut; once it is back the version is that of a build in which it never was."""
    (tmp_path / "src").mkdir()
    file = tmp_path / "src/clip.mp4"
    shutil.copyfile(clip("single_face"), file)
    config = DataConfig(
        folder=str(tmp_path / "src"),
        analyze=AnalyzeConfig(workers=0),
        synthetic=SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0)),
        pairing=PairingConfig(max_upscale=6.0),
    )
    work = str(tmp_path / "w")
    with pytest.raises(Stopped):
        build_dataset(config, work, models, [], until="pair")
    state = file.stat()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    torn = build_dataset(config, work, models, [])
    assert {row["source_id"] for row in read_candidates(torn.uri) if row["verdict"] == "render failed"} == {"clip"}
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert build_dataset(config, work, models, []).digest == torn.digest
    assert reopen(work, "render") == ["clip"]
    assert verify_version(torn.uri) == []
    whole = build_dataset(config, work, models, [])
    assert whole.digest == build_dataset(config, str(tmp_path / "w2"), models, []).digest != torn.digest
    with pytest.raises(UserError, match="no pair of a version here is 'render failed'"):
        reopen(work, "render")


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
    items = [item_for(clip(name), licence="MIT") for name in ("single_face", "obama")]
    items += [item_for(str(tmp_path / "fake.mp4"), licence="MIT"), item_for(clip("carphone"), licence="unknown")]
    synthetic = SyntheticConfig(anny=AnnyConfig(people=3, images=4))
    config = DataConfig(analyze=AnalyzeConfig(fps=5.0, licences=("MIT",)), synthetic=synthetic, pairing=PairingConfig(per_identity=2))
    plan = plan_build(items, config, models)
    assert plan.sources == {"video": 3, "image": 1, "synthetic": 3}
    assert (plan.unreadable, plan.refused) == (["fake"], {"licence unknown": 1})
    looked_at = len(list(sample_frames(clip("single_face"), 5.0)))
    assert abs(plan.frames - (looked_at + 1 + 3 * 4)) <= 1
    assert plan.most_samples == 120 + 0 + 3 * 4  # a source's quota, a photo alone, a person's quota; both directions
    assert plan.megabytes == pytest.approx(sum(Path(clip(name)).stat().st_size for name in ("single_face", "obama")) / 1e6 + 8e-6)
    assert 0 < plan.probe.seconds_per_frame < 5 and 100 < plan.probe.worker_megabytes < 20_000
    work = tmp_path / "w"
    build_dataset(config.model_copy(update={"pairing": PairingConfig(max_upscale=9.0)}), str(work), models, items)
    written = sum(path.stat().st_size for path in (work / "parts").iterdir()) / 1e6
    assert written / 4 < plan.observation_megabytes < written * 4
    sizes = [path.stat().st_size for path in (work / "renders").iterdir()]
    assert 2 * min(sizes) < plan.probe.bytes_per_sample < 4 * max(sizes)


def test_forget_asks_whom(built):
    work, _ = built
    with pytest.raises(UserError, match="nothing to forget"):
        forget(str(work))
    with pytest.raises(UserError, match="no build here"):
        forget(str(work / "nowhere"), identity="x")
    assert Removals.read(str(work)).identities == frozenset()
    assert apply_removals(str(work)).sources == 0


def test_a_score_that_was_not_computed_is_told_and_refuses_nothing(models, clip, tmp_path, capsys):
    alone = AnalyzeConfig(workers=0, groups=GroupsConfig(names=("identity",)))
    synthetic = SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0))
    pairing = PairingConfig(
        same_person=True, max_upscale=20.0, max_padding=1.0, min_similarity=-1.0, min_expression=0.0, pose_tolerance=15.0
    )
    photos = [item_for(clip(name), licence="test", identity="o") for name in ("obama", "obama2")]
    version = build_dataset(DataConfig(analyze=alone, pairing=pairing, synthetic=synthetic), str(tmp_path), models, photos)
    said = " ".join(capsys.readouterr().out.split())
    assert "analyze.groups.names has no occlusion: not computed, and no pair is refused as occluded" in said
    assert "refused as other background or other clothes" in said
    rows = read_candidates(version.uri)
    assert {row["occlusion"] for row in rows} == {row["writing"] for row in rows} == {None}
    assert {row["background"] for row in rows if row["scope"] == "same_person"} == {None}
    assert not {"occluded", "writing", "other background", "other clothes"} & {row["verdict"] for row in rows}
    key = read_manifest(version.uri)[0]["key"]
    lines = [line.split() for line in why(key, str(tmp_path))]
    assert ["occluded", "-", "<=", "0.15", "not", "computed"] in lines
    assert verify_version(version.uri) == []
    assert "occlusion (not computed)" in Path(write_data_report(str(tmp_path))).read_text()
