"""Of what passed every filter and is no sample: what it repeats, and which quota was full; and what is told of a source. (The rest of `why`: test_manage.py.)"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.observations import read_columns
from data_pipeline.published import read_manifest
from data_pipeline.report import write_data_report
from data_pipeline.rules import PairingConfig
from data_pipeline.why import why
from data_pipeline.why_refused import explain_refusal
from lato.faces.quality import hash_distance
from tests.data_pipeline.small import config, read_candidates

TIGHT = PairingConfig(near_duplicate_bits=70, per_identity=2, cell_quota=2, min_sharpness=50.0)


@pytest.fixture
def tight(work, models):
    """`(work folder, version's folder, its candidates)` of the small build's people, of whom more is refused after the filters."""
    uri = build_dataset(config(12, name="tight", pairing=TIGHT), str(work), models, []).uri
    return str(work), uri, read_candidates(uri)


def told(row, work):
    """What is told of a pair after its filters."""
    lines = why(row["key"], work, "tight")
    return lines[next(n for n, line in enumerate(lines) if line.startswith("  other clothes")) + 1 :]


def apart(row, other, work):
    """Bits between two pairs, by their observations."""
    ends = [
        [read_columns(work, one[f"{side}_part"], ["phash"])["phash"][one[f"{side}_row"]].as_py() for one in (row, other)]
        for side in ("from", "to")
    ]
    return max(hash_distance(*hashes) for hashes in ends)


def test_of_what_was_refused_after_the_filters_why_says_against_what(tight):
    """Every line said passed, and nothing what a near-duplicate repeats, nor which quota was full."""
    work, folder, rows = tight
    by_verdict = {
        verdict: [row for row in rows if row["verdict"] == verdict] for verdict in ("accepted", "near-duplicate", "quota", "cell quota")
    }
    accepted = {row["key"]: row for row in by_verdict["accepted"]}
    for row in by_verdict["near-duplicate"]:
        score, repeated = told(row, work)
        near = repeated.split()[1]
        reverse = next(
            other
            for other in rows
            if other["from_row"] == row["to_row"] and other["to_row"] == row["from_row"] and other["to_part"] == row["from_part"]
        )
        mine = next(one for one in (row, reverse) if one["edit"] == accepted[near]["edit"])
        assert score.split() == ["near-duplicate", str(apart(mine, accepted[near], work)), ">", "70", "bits", "failed"]
        assert int(score.split()[1]) <= 70 and accepted[near]["person"] == row["person"] and repeated.endswith("(accepted)")
    full = next(row for row in by_verdict["quota"] if sum(one["person"] == row["person"] for one in accepted.values()) == 4)
    name = full["person"]
    lines = told(full, work)
    assert lines[0].split() == [*f"quota of the person {name} 2 < 2 full".split()] and len(lines) == 4
    assert lines[1].split() == [*f"quota of the source {name} 2 < 60 has room".split()]
    (line,) = told(by_verdict["cell quota"][0], work)
    assert line.startswith("  quota of the cell ") and line.endswith(" full") and line.split()[-4:-1] == ["2", "<", "2"]
    for verdict in ("near-duplicate", "quota", "cell quota"):
        assert by_verdict[verdict]
    parts = {row["from_part"] for row in rows}
    for part in parts:
        Path(work, "parts", f"{part}.parquet").unlink()
    assert "nobody can say" in told(by_verdict["near-duplicate"][0], work)[0]
    row = accepted.popitem()[1]
    found = json.loads(Path(folder, "components.json").read_text())
    Path(folder, "components.json").write_text(json.dumps(found | {"bridges": [f"{row['source_id']}/0"]}))
    assert explain_refusal(row | {"verdict": "bridge"}, TIGHT, folder, work)[1][0].startswith(f"track {row['source_id']}/0 is the bridge")
    Path(folder, "components.json").unlink()  # as after something was forgotten
    assert "nobody can say any more" in explain_refusal(row | {"verdict": "bridge"}, TIGHT, folder, work)[1][0]
    assert explain_refusal(row, TIGHT, folder, work) == ([], [])


def test_the_report_shows_near_duplicates_and_what_makes_an_edit(tight):
    """Of the filters, those without a sheet or a distribution."""
    work, _, rows = tight
    page = Path(write_data_report(work, "tight")).read_text()
    counts = Counter(row["verdict"] for row in rows)
    sheet = page[page.index("<h3>near-duplicate") : page.index('<h2 id="coverage">')]
    near = {row["key"]: row for row in rows if row["verdict"] == "near-duplicate"}
    shown = re.findall(r"(\d+) of 256 bits from the pair below \((p_\w+)\), needs more than 70.*?<code>(p_\w+)</code>", sheet)
    assert len(shown) == len(set(shown)) == 6 and max(int(bits) for bits, _, _ in shown) <= 70
    reverse = {(row["to_part"], row["to_row"], row["from_row"]): row for row in rows}
    for bits, repeated, key in shown:
        mine, other = near[key], next(row for row in rows if row["key"] == repeated)
        mine = mine if mine["edit"] == other["edit"] else reverse[mine["from_part"], mine["from_row"], mine["to_row"]]
        assert int(bits) == apart(mine, other, work) and other["verdict"] == "accepted"
    assert f"<b>near-duplicate: {counts['near-duplicate']} refused here</b>" in page
    unlike = sum(row["verdict"] == "no edit of ours" and row["intensity_gap"] > 0.2 for row in rows)
    assert f"<b>like intensity: {unlike} refused here</b>, {sum(row['intensity_gap'] > 0.2 for row in rows)} of {len(rows)} beyond" in page
    assert unlike and f"<b>pose step: 0 refused here</b>, 0 of {len(rows)} beyond" in page


def test_of_a_source_and_of_a_frame_why_tells_where_they_went_and_what_is_asked(tight):
    """Licence, split, shards, models and thresholds were told of keys alone."""
    work, folder, rows = tight
    sample = read_manifest(folder)[0]
    name = sample["source_id"]
    lines = why(name, work, "tight")
    counts = Counter(row["shard"] for row in read_manifest(folder) if row["source_id"] == name)
    assert "licence CC0-1.0" in lines
    assert f"in {sample['split']}, {counts.total()} samples: {counts[sample['shard']]} in {sample['shard']}" in lines
    assert {"detector", "identity/face_recognition_sface_2021dec.onnx"} <= {
        line.split()[1] for line in lines if line.startswith("  model ")
    }
    blurred = min((row for row in rows if row["verdict"] == "blurred"), key=lambda row: row["sharpness"])
    ends = [f"{blurred['source_id']}@{blurred[f'{side}_pts']}" for side in ("from", "to")]
    frames = [" ".join(why(end, work, "tight")) for end in ends]
    assert any(f"sharpness {blurred['sharpness']:.3g} (>= 50: failed), noise" in frame for frame in frames)
    assert all("(<= 12), clipped" in frame and "(<= 45)" in frame for frame in frames)
    without = next(row["source_id"] for row in rows if row["source_id"] not in {row["source_id"] for row in read_manifest(folder)})
    assert "no samples, and so in no split" in why(without, work, "tight")
