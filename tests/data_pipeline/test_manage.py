"""After the build: why, the report and what it is made of, other settings."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.audit import _WHOLE, add_label, choose
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.diff import diff_versions
from data_pipeline.groups import GroupsConfig
from data_pipeline.intervals import wilson
from data_pipeline.publish import Stopped
from data_pipeline.published import read_index, read_manifest
from data_pipeline.report import _rates, one_of_twins, write_data_report
from data_pipeline.report_plots import correlate
from data_pipeline.rules import LIMITS, PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.verify import verify_version
from data_pipeline.why import why
from data_pipeline.worklist import item_for
from infra.errors import UserError
from lato.edits import parse_instruction
from tests.data_pipeline.small import CONFIG, build, read_candidates


def test_why_tells_the_whole_path(built):
    work, version = built
    accepted = next(row for row in read_candidates(version.uri) if row["verdict"] == "accepted")
    lines = why(accepted["key"], str(work))
    assert lines[0] == f"{accepted['key']}: accepted, in {accepted['split']}"
    assert sum("passed" in line for line in lines) == len(LIMITS) - 1 + 5  # verifier, discriminator, step, like intensity, evaluation sets
    assert any("declared" in line for line in lines)  # a synthetic person's identity is not judged
    sample = next(row for row in read_manifest(version.uri) if row["key"] == accepted["key"])
    told = "\n".join(lines)
    assert f"shard {sample['shard']} from byte {sample['json_offset']}" in told and sample["instruction"] in told
    assert all(f"model {name}" in told for name in ("detector", "mesh", "identity/face_recognition_sface_2021dec.onnx"))
    refused = next(row for row in read_candidates(version.uri) if row["misread"] and row["verdict"] == "expression verifier")
    assert any(line.endswith("failed") for line in why(refused["key"], str(work)))
    unasked = next(row for row in read_candidates(version.uri) if row["similarity"] is None)
    (line,) = (line for line in why(unasked["key"], str(work)) if line.startswith("  identity "))
    assert line.endswith(f" not asked: refused before by {unasked['verdict']}")
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
        "individual typology angle",
        f"from {len({row['source_id'] for row in rows})} of ",
        *(model["name"] for model in read_index(version.uri)["models"]),
        "CC0-1.0",
        version.digest[:16],
    ):
        assert word in page
    pairs = {
        frozenset((row[f"{side}_part"], row[f"{side}_row"]) for side in ("from", "to"))
        for row in read_candidates(version.uri)
        if row["split"]
    }
    goal = max(1, round(len(pairs) / 150 / 2))  # 21 changes x 7 poses, and a turn on each axis without one
    assert f"lacks to {goal} (half of an even share of the pairs)" in re.sub(r"\s+", " ", page)
    assert "<td>accepted</td>" in page  # of the audit
    assert 'alt="just rejected: expression verifier"' in page and "of sources that share a person" in page
    assert [name for name in pages if 'alt="just rejected: blurred"' in pages[name]] == ["strict"]
    assert "identity asked" not in page  # of drawn people it is declared
    shown = re.findall(r'alt="accepted pair.*?<b>(.*?)</b>.*?<code>(p_\w+)</code>', page)
    said = {row["key"]: row["instruction"] for row in rows}
    assert shown and all(said[key] == html.unescape(text) for text, key in shown)
    assert "last build in this folder left" not in page and "Not drawn" not in page  # it looked at the same
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_second_opinion_is_told_in_the_report_and_changes_no_verdict_on_drawn_people(built, models):
    """The two often differ on them, and their expressions are declared: used as a filter there, it would show."""
    work, version = built
    ledger = [json.loads(line) for line in (work / "ledger.jsonl").read_text().splitlines()]
    page = Path(write_data_report(str(work))).read_text()
    said = re.search(r"they agree on (\d+) of (\d+)\. .* Computed for (\d+) of (\d+) parts; (\S+), sha256", page)
    assert int(said[2]) == sum(row["representatives"] for row in ledger) > int(said[1])
    assert int(said[3]) == int(said[4]) and said[5] == "emotion_model_quantized.tflite"
    without = CONFIG.analyze.model_copy(update={"groups": GroupsConfig(names=GroupsConfig().names[:-1])})
    left_out = build(work, models, name="left_out", analyze=without)
    verdicts = [{row["key"]: row["verdict"] for row in read_candidates(found.uri)} for found in (version, left_out)]
    assert verdicts[0] == verdicts[1]
    assert "model fer/emotion_model_quantized.tflite" in "\n".join(why(read_manifest(version.uri)[0]["key"], str(work), "v1"))


def test_every_refusal_by_a_reading_is_audited(built):
    work, version = built
    refused = {row["verdict"] for row in read_candidates(version.uri)} & {*LIMITS, *_WHOLE, "expression verifier", "pose discriminator"}
    entries = choose(str(work), "v1", 3, 0)
    assert "expression verifier" in refused and {entry.stratum for entry in entries} == refused | {"accepted"}
    assert all(parse_instruction(entry.instruction) for entry in entries if entry.stratum not in _WHOLE)  # else nobody could judge
    assert all(entry.instruction == _WHOLE[entry.stratum] for entry in entries if entry.stratum in _WHOLE)  # another question
    strata = [entry.stratum for entry in entries]
    assert strata != sorted(strata) and strata != sorted(strata, reverse=True)  # mixed, as who labels should not know them
    assert all(entry.score.startswith("reads as ") for entry in entries if entry.stratum == "expression verifier")


def test_a_label_makes_no_sample_of_a_pair_that_no_instruction_joins(built, models):
    """Misread on both pictures as one expression: the verifier refused it first, and it stays refused."""
    work, version = built
    labels = work / "labels.jsonl"
    misread = [row for row in read_candidates(version.uri) if row["verdict"] == "expression verifier"]
    try:
        for row in misread:
            add_label(str(work), row["key"], True, row["verdict"], 0)
        verdicts = {row["key"]: row["verdict"] for row in read_candidates(build(work, models, name="kind_hearted").uri)}
    finally:
        labels.unlink()
    without = {row["key"] for row in misread if not row["edit"]}
    assert without and {verdicts[key] for key in without} <= {"expression verifier", "near-duplicate"}
    assert any(verdicts[row["key"]] == "accepted" for row in misread)


def test_scores_are_correlated_over_the_pairs_that_have_both():
    """A score that is known of few rows does not hide how the others go together."""
    line = np.arange(10.0)
    few = np.where(line < 3, [0.0, 2.0, 1.0] + [0.0] * 7, np.nan)
    found = correlate(np.column_stack([line, line**3, few, np.ones(10)]))
    assert found[0, 1] == pytest.approx(np.corrcoef(line, line**3)[0, 1])
    assert found[0, 2] == found[2, 0] == pytest.approx(0.5)
    assert np.isnan(found[3]).all()


def test_groups_tell_their_sources_and_the_smallest_of_many_are_only_counted():
    """A title of each video as an attribute would make a page of any length."""
    names = np.array([f"g{n:02d}" for n in range(30) for _ in range(31 - n)])
    columns = {"similarity": [0.9] * len(names), "kind": ["video"] * len(names), "verdict": ["accepted"] * len(names)}
    judged = pa.table(columns | {"source_id": [f"s{n % 2}" for n in range(len(names))]})
    rows, asked, left = _rates(names, (), judged, np.arange(len(names)) % 2 == 0)
    assert asked and left == 10 and [row["group"] for row in rows] == [f"g{n:02d}" for n in range(20)]
    assert (rows[0]["sources"], rows[0]["pairs"], rows[0]["passed"], rows[0]["one"]) == (2, 31, 16, 31)


def test_wilson():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.49, 0.943)  # the textbook's example
    assert wilson(0, 7)[0] == 0.0 and wilson(7, 7)[1] == 1.0


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


def test_a_pair_and_its_reverse_are_one_observation():
    """Counted twice, the interval of a rate would be too narrow by the root of two."""
    ends = {
        "from_part": ["p", "p", "p", "p", "q"],
        "from_row": [0, 1, 0, 2, 0],
        "to_part": ["p", "p", "p", "p", "q"],
        "to_row": [1, 0, 2, 0, 1],
    }
    judged = pa.table(ends | {"key": ["b", "a", "c", "d", "e"]})
    assert one_of_twins(judged, np.array([True, True, False, True, False])).tolist() == [1, 3, 4]
