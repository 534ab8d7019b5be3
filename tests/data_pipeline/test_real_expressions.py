"""What is published of a real face's expression: two networks must see it. Known answers are clips that were looked at: a man at rest who then smiles."""

import json

import numpy as np
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.judge import judge
from data_pipeline.pairing import EXPRESSIONS, OBSERVED, Person, score_person
from data_pipeline.rules import VERDICTS, PairingConfig, Rules
from data_pipeline.score import write_scores
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for
from tests.benchmarks.accepted_cells import Known
from tests.data_pipeline.small import read_candidates

LOOSE = PairingConfig(max_upscale=20, max_padding=1, near_duplicate_bits=-1, per_cell=99, per_identity=999, per_source=999)

KNOWN = {"expression": "sad", "yaw": 0, "pitch": 0, "roll": 0}


def face(expression, intensity=0.9, fer=None, declared=None, **more):
    """A representative of track 0."""
    row = dict.fromkeys(OBSERVED, 0.0) | {
        "source_id": "s",
        "source_sha256": "x",
        "kind": "video",
        "identity": None,
        "track": 0,
        "own_track": 0,
        "part": "p",
        "row": 0,
    }
    row |= {
        "frame": 0,
        "width": 640,
        "height": 480,
        "landmarks": np.random.default_rng(0).uniform(100, 200, 136).tolist(),
        "phash": bytes(32),
    }
    row |= {"expression": expression, "expression_intensity": intensity, "fer_scores": fer, "held_out": False}
    return row | {"declared": json.dumps(declared) if declared else None, **more}


def score(*faces):
    """Column -> values, of the pair from the first to the second."""
    scored = score_person(Person("p", "same_track", [one | {"frame": n, "row": n} for n, one in enumerate(faces)]), 2.1)
    return {name: values[0] for name, values in scored.items()}


def fer(**scores):
    return [scores.get(name, 0.0) for name in EXPRESSIONS]


@pytest.mark.parametrize(
    ("target", "said", "agreement"),
    [
        ("happy", {"happy": 0.9}, 0.8),  # then the source's rest is the weaker
        ("sad", {"neutral": 0.94, "sad": 0.03}, 0.03),
        ("surprised", {"fearful": 0.45, "surprised": 0.13}, 0.58),  # it calls open mouths either
        ("fearful", {"fearful": 0.2, "surprised": 0.6}, 0.2),
    ],
)
def test_the_weaker_end_says_how_far_the_second_network_agrees(target, said, agreement):
    rest = face("neutral", 0.0, fer(neutral=0.8))
    assert score(rest, face(target, fer=fer(**said)))["agreement"] == pytest.approx(agreement)


def test_declared_faces_need_nobodys_opinion_and_what_was_not_computed_is_unknown():
    known = KNOWN | {"intensity": "plain"}
    assert score(face("sad", declared=known, fer=fer(happy=1)), face("sad", declared=known, fer=fer(happy=1)))["agreement"] == 1
    assert np.isnan(score(face("neutral", 0.0), face("happy"))["agreement"])


@pytest.mark.parametrize(
    ("source", "target", "gap"),
    [
        (face("sad", 0.8), face("sad", 0.49, roll=-30.0), 0.31),
        (face("neutral", 0.0), face("sad", 0.9), 0.0),  # another expression is no change of intensity
        (face("sad", 0.6, declared=KNOWN | {"intensity": "slightly"}), face("sad", 0.9, declared=KNOWN | {"intensity": "slightly"}), 0.0),
        (face("sad", 0.6, declared=KNOWN | {"intensity": "slightly"}), face("sad", 0.6, declared=KNOWN | {"intensity": "strongly"}), 1.0),
    ],
)
def test_intensity_within_one_expression(source, target, gap):
    assert score(source, target)["intensity_gap"] == pytest.approx(gap, abs=1e-6)


def test_only_the_pose_changes_only_at_like_intensity(tmp_path):
    """Sad to less sad with a turn of the head is no pose step, and no edit of ours."""
    pairs = {}
    for name, intensity in (("like", 0.7), ("weaker", 0.49)):
        faces = [
            face("sad", 0.8, fer(sad=1), sharpness=99.0),
            face("sad", intensity, fer(sad=1), sharpness=99.0, roll=-30.0, frame=1, row=1),
        ]
        uri = str(tmp_path / f"{name}.parquet")
        write_scores([Person("p", "same_track", faces)], 2.1, uri)
        (judged,) = judge([uri], Rules(LOOSE), Known([{"embedding": np.ones(4) / 2}, {"embedding": np.ones(4) / 2}]))
        pairs[name] = {VERDICTS[code] for code in judged.codes}
    assert pairs == {"like": {"accepted"}, "weaker": {"no edit of ours"}}


def test_what_is_published_of_clips_that_were_looked_at_is_what_they_show(models, clip, tmp_path):
    """All pairs lead from rest to a smile or back; what one network alone saw, the smile's first moment as anger, is refused and counted."""
    items = [item_for(clip(name), licence="test") for name in ("single_face", "face_noface")]
    config = DataConfig(analyze=AnalyzeConfig(workers=0), pairing=LOOSE)
    version = build_dataset(config, str(tmp_path), models, items)
    rows = read_candidates(version.uri)
    accepted = [row for row in rows if row["verdict"] == "accepted"]
    assert {row["source_id"] for row in accepted} == {"single_face", "face_noface"}
    assert {(row["from_expression"], row["to_expression"]) for row in accepted} == {("neutral", "happy"), ("happy", "neutral")}
    refused = [row for row in rows if row["verdict"] == "expression not confirmed"]
    assert {"angry"} == {row[f"{end}_expression"] for row in refused for end in ("from", "to")} - {"neutral", "happy"}
    assert {"name": "rejected: expression not confirmed", "count": len(refused), "step": "candidate pairs"} in version.funnel
    parts = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    trusting = config.model_copy(update={"pairing": LOOSE.model_copy(update={"min_agreement": 0.0})})
    after = {row["key"]: row["verdict"] for row in read_candidates(build_dataset(trusting, str(tmp_path), models, items).uri)}
    assert {after[row["key"]] for row in refused} == {"accepted"}  # from stored scores: nothing is looked at again
    assert parts == {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
