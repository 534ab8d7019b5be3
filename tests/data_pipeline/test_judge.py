"""Verdicts on scores written by hand: who stays of pairs that show the same, of a published pair and its reverse, and of a cell of the whole dataset."""

import hashlib
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import accept
from data_pipeline.accept import Found, Plan, refuse
from data_pipeline.config import DataConfig
from data_pipeline.conflicts import Conflicts
from data_pipeline.divide import Tied
from data_pipeline.extend import TakenOut
from data_pipeline.judge import accepted_rows, held_out_keys, judge
from data_pipeline.pairing import SCORE_SCHEMA
from data_pipeline.report_plots import show_filter
from data_pipeline.rules import LIMITS, VERDICTS, PairingConfig, Rules, Usage
from data_pipeline.split import Components
from data_pipeline.why import explain
from tests.data_pipeline.links import base_of, source

_FINE = {
    "sharpness": 100.0, "noise": 0.0, "clipped": 0.0, "blockiness": 0.0, "letterbox": 0.0, "upscale": 1.0, "padding": 0.0, "tilt": 0.0, "occlusion": 0.0,
    "expression_strength": 1.0, "agreement": 1.0, "intensity_gap": 0.0, "pose_miss": 0.0, "declared_miss": 0.0, "background": 1.0, "clothing": 1.0,
}  # fmt: skip
"""Scores that no filter refuses."""


def pair(key, faces, sharpness=100.0, hashes=None, happy=True, person="s/0"):
    """A scored pair of two faces; by default its hashes are like no other's."""
    source = person.split("/")[0]
    ends = (
        [hashlib.sha256(bytes([face])).digest() for face in faces] if hashes is None else [number.to_bytes(32, "big") for number in hashes]
    )
    return dict.fromkeys(SCORE_SCHEMA.names) | _FINE | {
        "key": key, "source_id": source, "target_id": source, "kind": "video", "person": person, "scope": "same_track", "sharpness": sharpness,
        "from_expression": "neutral" if happy else "happy", "to_expression": "happy" if happy else "neutral",
        "edit_expression": 1 if happy else 0, "edit_intensity": 1, "step_yaw": 0, "step_pitch": 0, "step_roll": 0, "misread": False, "held_out": False,
        "phash_source": ends[0], "phash_target": ends[1],
        "from_part": source, "from_row": faces[0], "from_track": 0, "to_part": source, "to_row": faces[1], "to_track": 0,
    }  # fmt: skip


class Alike:
    """Every face is known, and one person's; those of some rows are somebody else's."""

    def __init__(self, strangers=()):
        self._strangers = strangers

    def read(self, part):
        return {row: np.eye(4, dtype=np.float32)[int(row in self._strangers)] for row in range(100)}

    def compute(self, wanted):
        raise AssertionError(wanted)


@pytest.fixture
def verdicts(tmp_path):
    """Key -> verdict."""

    def of(rows, config=None, strangers=(), **given):
        uri = str(tmp_path / "scores.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), uri)
        (found,) = judge([uri], Rules(config or PairingConfig(), **given), Alike(strangers))
        return {row["key"]: VERDICTS[code] for row, code in zip(rows, found.codes, strict=True)}

    return of


@pytest.mark.parametrize(("score", "name", "value"), [("clipped", "max_clipped", 0.1), ("agreement", "min_agreement", 0.7)])
def test_a_score_that_equals_its_threshold_passes_wherever_it_is_told(verdicts, tmp_path, score, name, value):
    """Scores are stored in float32, in which a tenth is more than in a config and seven tenths are less: `why` and the report called failed what the build
    accepted."""
    config = PairingConfig(**{name: value})
    assert verdicts([pair("even", (0, 1)) | {score: value}], config) == {"even": "accepted"}
    table = pq.read_table(tmp_path / "scores.parquet")
    table = table.append_column("similarity", pa.array([0.9], pa.float32())).append_column("writing", pa.array([0.0], pa.float32()))
    table = table.append_column("verdict", pa.array(["accepted"]))
    verdict = next(verdict for verdict, (of, _, _) in LIMITS.items() if of == score)
    assert next(line[3] for line in explain(table.to_pylist()[0], config) if line[0] == verdict) == "passed"
    assert show_filter(table, np.ones(1, bool), verdict, config)["beyond"] == 0


def test_a_near_duplicate_that_is_called_good_stays_in_place_of_the_sharper_one(verdicts):
    rows = [pair("sharp", (0, 1), 100.0, (0, 0)), pair("soft", (2, 3), 90.0, (1, 1))]
    assert verdicts(rows) == {"sharp": "accepted", "soft": "near-duplicate"}
    assert verdicts(rows, labels={"soft": True}) == {"sharp": "near-duplicate", "soft": "accepted"}
    assert verdicts(rows, labels={"soft": True, "sharp": True}) == {"sharp": "accepted", "soft": "accepted"}
    assert verdicts(rows, labels={"soft": True}, frozen=frozenset({"sharp"})) == {"sharp": "accepted", "soft": "accepted"}
    assert verdicts(rows, PairingConfig(per_identity=1), labels={"soft": True})["soft"] == "accepted"


def test_a_near_duplicate_that_is_called_good_must_be_good_otherwise_too(verdicts):
    """Nobody was asked of more than whether it shows the edit on another face."""
    rows = [pair("sharp", (0, 1), 100.0, (0, 0)), pair("soft", (2, 3), 90.0, (1, 1))]
    distinct = frozenset({"soft"})
    assert verdicts(rows, distinct=distinct) == {"sharp": "near-duplicate", "soft": "accepted"}
    assert verdicts(rows, distinct=distinct, labels={"sharp": True}) == {"sharp": "accepted", "soft": "accepted"}
    assert verdicts(rows, strangers=(3,), distinct=distinct) == {"sharp": "accepted", "soft": "identity"}
    assert verdicts(rows, PairingConfig(min_sharpness=95.0), distinct=distinct) == {"sharp": "accepted", "soft": "blurred"}


def test_of_what_is_published_in_train_nothing_stays_that_is_held_out(verdicts, tmp_path):
    """Nor what was taken out before, whatever is said of it now."""
    frozen = frozenset({"shown", "alike", "evaluated"})
    rows = [
        pair("shown", (0, 1), person="a/0") | {"held_out": True},
        pair("alike", (2, 3), person="b/0"),
        pair("evaluated", (4, 5), person="c/0"),
    ]
    rows[2]["held_out"] = True
    told = verdicts(rows, strangers=(2, 3), frozen=frozen, trained=frozen - {"evaluated"}, bars=lambda vector: vector[1] > 0)
    assert told == {"shown": "held out", "alike": "held out", "evaluated": "accepted"}
    (judged,) = judge([str(tmp_path / "scores.parquet")], Rules(PairingConfig(), frozen=frozen, trained=frozen), Alike())
    assert held_out_keys(str(tmp_path / "scores.parquet"), judged, frozen) == {"shown", "evaluated"}
    gone = {"alike": "split conflict", "shown": "labelled bad"}
    assert verdicts(rows, taken_out=gone, labels={"alike": True, "shown": True}) == gone | {"evaluated": "held out"}


def test_a_track_of_which_one_face_is_held_out_goes_whole(verdicts):
    """The recognizer does not know somebody in each of their faces. What was taken before that was seen takes no room of others."""
    rows = [pair(name, (2 * n, 2 * n + 1), 100.0 - n, person="a/0") for n, name in enumerate(("unlike", "alike", "other", "next"))]
    rows[2:] = [row | {"from_track": 1, "to_track": 1} for row in rows[2:]]
    told = verdicts(rows, PairingConfig(per_source=2), strangers=(2, 3), bars=lambda vector: vector[1] > 0)
    assert told == {"unlike": "held out", "alike": "held out", "other": "accepted", "next": "accepted"}


def test_a_pair_of_two_photos_counts_for_both(verdicts):
    rows = [pair(f"{n}", (0, 1 + n), 100.0 - n) | {"target_id": f"t{n}", "to_part": f"t{n}"} for n in range(3)]
    rows.append(pair("from another", (9, 1), 50.0) | {"source_id": "u", "from_part": "u", "target_id": "t0", "to_part": "t0"})
    assert verdicts(rows, PairingConfig(per_source=3, per_cell=9)) == dict.fromkeys(("0", "1", "2", "from another"), "accepted")
    assert verdicts(rows, PairingConfig(per_source=1, per_cell=9)) == {"0": "accepted", "1": "quota", "2": "quota", "from another": "quota"}


def test_of_a_pair_called_good_the_reverse_stays_too(verdicts):
    rows = [
        *(pair("sharp", (0, 1), 100.0, (0, 0)), pair("sharp back", (1, 0), 100.0, (0, 0), happy=False)),
        *(pair("soft", (2, 3), 90.0, (1, 1)), pair("soft back", (3, 2), 90.0, (1, 1), happy=False)),
    ]
    found = verdicts(rows, labels={"soft": True})
    assert found == {"sharp": "near-duplicate", "sharp back": "near-duplicate", "soft": "accepted", "soft back": "accepted"}


def usage(pairs, **cells):
    """Of a version with so many pairs of one person."""
    return Usage(Counter({"s/0": pairs}), Counter({"s": pairs}), Counter({("s/0", edit): count for edit, count in cells.items()}))


FULL = {"per_identity": PairingConfig(per_identity=1), "per_source": PairingConfig(per_source=1), "per_cell": PairingConfig(per_cell=1)}


@pytest.mark.parametrize("limit", FULL)
def test_what_is_published_stays_where_its_reverse_was_not(verdicts, limit):
    """The reverse has room unless its own edit is full, and both are one pair: another of the person finds none."""
    rows = [pair("published", (0, 1)), pair("back", (1, 0), happy=False), pair("other", (2, 3), 90.0)]
    found = verdicts(rows, FULL[limit], frozen=frozenset({"published"}), usage=usage(1, happy=1))
    assert found == {"published": "accepted", "back": "accepted", "other": "quota"}
    full = verdicts(rows, PairingConfig(per_cell=1), frozen=frozenset({"published"}), usage=usage(1, happy=1, neutral=1))
    assert full == {"published": "accepted", "back": "quota", "other": "quota"}


def test_the_reverse_of_a_published_pair_takes_no_other_pairs_room(verdicts):
    rows = [pair("published", (0, 1)), pair("back", (1, 0), happy=False), pair("other", (2, 3), 90.0), pair("last", (4, 5), 80.0)]
    found = verdicts(rows, PairingConfig(per_identity=2), frozen=frozenset({"published"}), usage=usage(1, happy=1))
    assert found == {"published": "accepted", "back": "accepted", "other": "accepted", "last": "quota"}


def test_the_reverse_of_a_published_pair_may_be_a_near_duplicate_of_any_that_is_published(verdicts):
    """Also of one that is less sharp; it alone goes."""
    rows = [
        *(pair("published", (0, 1), 100.0), pair("back", (1, 0), 100.0, (3, 3), happy=False)),
        *(pair("soft", (2, 3), 90.0, (1, 1), happy=False),),
    ]
    found = verdicts(rows, frozen=frozenset({"published", "soft"}), usage=usage(2, happy=1, neutral=1))
    assert found == {"published": "accepted", "back": "near-duplicate", "soft": "accepted"}


def test_a_reverse_that_is_somebody_else_goes_alone(verdicts):
    rows = [pair("published", (0, 1)), pair("back", (1, 0), happy=False)]
    assert verdicts(rows, strangers=(1,)) == {"published": "identity", "back": "identity"}
    found = verdicts(rows, strangers=(1,), frozen=frozenset({"published"}), usage=usage(1, happy=1))
    assert found == {"published": "accepted", "back": "identity"}


def left_of(rows, tmp_path, config, base=None, **given):
    """Keys of what may go on after all quotas; people whom faces tell are named by the first letter of their sources."""
    uri = str(tmp_path / "scores.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), uri)
    names = sorted({row["source_id"] for row in rows})
    observed = SimpleNamespace(items={name: source(name) for name in names})
    plan = Plan(DataConfig(pairing=config), observed, base, given.get("labels", {}), given.get("distinct", frozenset()), [], [], "", "", "")
    judged = judge([uri], Rules(config, **given), Alike())
    accepted = [(0, row) for row in accepted_rows(uri, judged[0])]
    components = Components({name: name[0] for name in names}, [], frozenset(), {f"{name}/0": f"{name[0]}0/0" for name in names})
    left = refuse(plan, Found([uri], judged, accepted, accepted, {}, Tied(components, Conflicts({}, {}), []), {}, 0))
    told = {row["key"]: VERDICTS[code] for row, code in zip(rows, judged[0].codes, strict=True)}
    assert {key for key, verdict in told.items() if verdict == "accepted"} == {row["key"] for _, row in left}
    return told


def test_what_else_a_source_shows_of_which_a_merge_took_all_goes_too(tmp_path):
    """It would come on the other side, next to what was trained on: the quota of what went is free again. Held out samples take nothing with them."""
    gone = {"p_a": TakenOut("split conflict", "train", ("a",)), "p_b": TakenOut("held out", "train", ("b",))}
    base = replace(base_of({}), taken_out=gone)
    told = left_of([pair("a1", (0, 1), person="a/0"), pair("b1", (2, 3), person="b/0")], tmp_path, PairingConfig(), base)
    assert told == {"a1": "split conflict", "b1": "accepted"}


def test_whom_samples_showed_that_were_taken_out_is_known_still(tmp_path, monkeypatch):
    """What shows them too came back on the other side: nobody was asked who they are, and no clip was compared with theirs."""
    uri = str(tmp_path / "scores.parquet")
    pq.write_table(pa.Table.from_pylist([pair("p_a", (0, 1), person="a/0")], schema=SCORE_SCHEMA), uri)
    (judged,) = judge([uri], Rules(PairingConfig(), taken_out={"p_a": "split conflict"}), Alike())
    assert VERDICTS[judged.codes[0]] == "split conflict" and judged.people.keys() == {"a/0"}
    compared = []
    monkeypatch.setattr(accept, "find_copies", lambda of, items, parts, *_: compared.append(parts) or {})
    rows = [{"source_id": name, "frames": 100, "parts": [name]} for name in "ab"]
    observed = SimpleNamespace(items={name: source(name) for name in "ab"}, ledger=SimpleNamespace(usable=lambda: rows))
    base = replace(base_of({}), taken_out={"p_a": TakenOut("split conflict", "train", ("a",))})
    tied = Tied(Components(dict.fromkeys("ab", "a"), [], frozenset(), {}), Conflicts({}, {}), [])
    accept._find_copies(Plan(DataConfig(), observed, base, {}, frozenset(), [], [], "", "", ""), [uri], [judged], [], tied, {}, [])
    assert compared == [{"a": ["a"]}]


def test_a_label_is_for_the_edit_that_was_shown(verdicts):
    """Another look at a source may read another edit on the same two faces."""
    rows = [pair("good", (0, 1)) | {"agreement": 0.1}]
    assert (
        verdicts(rows, labels={"good": True})
        == verdicts(rows, labels={"good": True}, labelled_edits={"good": "happy"})
        == {"good": "accepted"}
    )
    assert verdicts(rows, labels={"good": True}, labelled_edits={"good": "happy strongly"}) == {"good": "expression not confirmed"}
    assert verdicts(rows, labels={"good": False}, labelled_edits={"good": "happy strongly"}) == {"good": "labelled bad"}


def test_a_cell_is_filled_with_what_all_other_quotas_left(tmp_path):
    """Six sharp clips of one man take two places of it and not six; those of others, less sharp, take the rest."""
    man = [pair(f"m{n}", (2 * n, 2 * n + 1), 200.0 - n, person=f"m{n}/0") for n in range(6)]
    others = [pair(f"{name}0", (20 + 2 * n, 21 + 2 * n), 50.0 - n, person=f"{name}0/0") for n, name in enumerate("abcdef")]
    told = left_of(man + others, tmp_path, PairingConfig(cell_quota=6))
    assert told == dict.fromkeys(("m0", "m1", "a0", "b0", "c0", "d0"), "accepted") | dict.fromkeys(("m2", "m3", "m4", "m5"), "quota") | {
        "e0": "cell quota",
        "f0": "cell quota",
    }
    called_good = left_of(man + others, tmp_path, PairingConfig(cell_quota=6), labels={"m5": True, "f0": True})
    assert {key for key, verdict in called_good.items() if verdict == "accepted"} == {"m0", "m5", "f0", "a0", "b0", "c0"}
