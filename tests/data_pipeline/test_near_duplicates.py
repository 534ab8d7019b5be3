"""Two files of one clip are two contents and two sources; what both show is one sample. (Within a person: test_manage.py.)"""

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.audit import add_label, choose
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.copies import Copy, write_copies
from data_pipeline.near_duplicates import find_across_sources
from data_pipeline.published import read_manifest
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.tables import read_pieces
from data_pipeline.verify import verify_version
from data_pipeline.why import why
from data_pipeline.worklist import item_for
from infra.storage import list_files
from lato.faces.quality import hash_distance
from tests.data_pipeline.small import read_candidates
from tests.data_pipeline.videos import encoded_anew, packed_anew

SHARP, FLAT = 150.0, 100.0


def pair(key, source, faces, hashes=(0, 0), sharpness=SHARP, happy=True, target=None):
    """A scored row; a face's hash is a number, of which each bit counts."""
    ends = [number.to_bytes(32, "big") for number in hashes]
    return {
        "key": key, "source_id": source, "target_id": target or source, "from_part": source, "from_row": faces[0], "to_part": target or source,
        "to_row": faces[1], "sharpness": sharpness, "phash_source": ends[0], "phash_target": ends[1], "edit_expression": 1 if happy else 2,
        "edit_intensity": 1, "step_yaw": 0, "step_pitch": 0, "step_roll": 0,
    }  # fmt: skip


def find(*rows, identities=None, kept=(), bits=2, component=lambda row: "one"):
    """Which are refused; the same in every order of the rows."""
    answers = []
    for seed in range(4):
        given = list(rows)
        random.Random(seed).shuffle(given)
        answers.append(find_across_sources(given, component, identities or {}, kept, bits))
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def test_both_faces_must_be_near_in_one_component_under_one_edit():
    first = pair("x", "a", (0, 1))
    assert find(first, pair("y", "b", (0, 1), (0b11, 0b11), FLAT)) == {"y"}
    assert find(first, pair("y", "b", (0, 1), (0b11, 0b11), FLAT), bits=1) == set()
    assert find(first, pair("y", "b", (0, 1), (0b111, 0b11), FLAT)) == find(first, pair("y", "b", (0, 1), (0b11, 0b111), FLAT)) == set()
    assert find(first, pair("y", "b", (0, 1), (1 << 255, 0), FLAT)) == {"y"}
    assert find(first, pair("y", "b", (0, 1), sharpness=FLAT, happy=False)) == set()
    assert find(first, pair("y", "b", (0, 1), sharpness=FLAT), component=lambda row: row["source_id"]) == set()
    assert find(first, pair("y", "a", (2, 3), sharpness=FLAT)) == set()  # of one source: its tracks may be two people
    assert find(first, pair("y", "b", (0, 1), sharpness=FLAT), bits=-1) == set()


def test_the_sharpest_stays_then_the_first_by_source_and_what_is_refused_refuses_nothing():
    assert find(pair("y", "a", (0, 1)), pair("x", "b", (0, 1), sharpness=FLAT)) == {"x"}
    assert find(pair("y", "a", (0, 1)), pair("x", "b", (0, 1))) == {"x"}
    chain = [pair("x", "a", (0, 1)), pair("y", "b", (0, 1), (0b11, 0), 120.0), pair("z", "c", (0, 1), (0b1111, 0), FLAT)]
    assert find(*chain) == {"y"}


def test_a_pair_and_its_reverse_go_together():
    """One direction that is seen elsewhere is enough; the worse of two twins says how sharp they are."""
    twins = [pair("x", "b", (0, 1), (0, 0b11111), 120.0), pair("y", "b", (1, 0), (0b11111, 0), FLAT, happy=False)]
    assert find(pair("z", "a", (0, 1), (0, 0b11111), 110.0), *twins) == {"x", "y"}
    assert find(pair("z", "a", (0, 1), (0, 0b11111), 90.0), *twins) == {"z"}


def test_two_who_are_declared_as_two_are_not_compared():
    rows = pair("x", "a", (0, 1)), pair("y", "b", (0, 1), sharpness=FLAT)
    assert find(*rows, identities={"a": "p", "b": "q"}) == set()
    assert find(*rows, identities={"a": "p", "b": "p"}) == find(*rows, identities={"a": "p", "b": None}) == {"y"}


def test_what_is_published_or_called_good_stays_and_the_sharper_goes():
    rows = pair("x", "a", (0, 1)), pair("y", "b", (0, 1), sharpness=FLAT)
    assert find(*rows, kept={"y"}) == {"x"}
    assert find(*rows, kept={"x", "y"}) == set()


PAIRING = PairingConfig(max_upscale=6.0, per_identity=99, per_cell=99)  # the quotas of one person would leave out as many
CONFIG = DataConfig(analyze=AnalyzeConfig(workers=0, fps=2.5), pairing=PAIRING)
NAMES = ("first", "second")


@pytest.fixture(scope="module")
def twice(models, clip, tmp_path_factory):
    """One clip in two files: work folder, their rows of the work list, a version of both."""
    folder = tmp_path_factory.mktemp("twice")
    shutil.copyfile(clip("single_face"), folder / "first.mp4")
    packed_anew(clip("single_face"), folder / "second.mp4")
    items = [item_for(str(folder / f"{name}.mp4"), licence="test") for name in NAMES]
    return folder / "w", items, build_dataset(CONFIG, str(folder / "w"), models, items)


def verdicts(uri):
    """Source -> verdict -> pairs."""
    found = {name: Counter() for name in NAMES}
    for row in read_candidates(uri):
        found[row["source_id"]][row["verdict"]] += 1
    return found


def test_two_files_give_samples_of_one(twice, models):
    work, items, version = twice
    found = verdicts(version.uri)
    kept = found["first"]["accepted"]
    assert {row["source_id"] for row in read_manifest(version.uri)} == {"first"}
    assert kept == sum(version.samples.values()) > 0
    assert found["second"] == found["first"] - Counter(accepted=kept) + Counter({"near-duplicate": kept})
    refused = [row for row in read_candidates(version.uri) if row["source_id"] == "second" and row["verdict"] == "near-duplicate"]
    accepted = {row["key"] for row in read_candidates(version.uri) if row["source_id"] == "first" and row["verdict"] == "accepted"}
    told = [why(row["key"], str(work), "v1") for row in refused]
    assert [lines[0] for lines in told] == [f"{row['key']}: near-duplicate" for row in refused]
    bits = [int(re.fullmatch(r"  near-duplicate +(\d+)  > 10 bits  failed", lines[-2])[1]) for lines in told]
    assert bits.count(0) == kept and max(bits) <= 10  # the same pictures; the others show again what their own file shows
    assert {re.fullmatch(r"repeats (p_\w+) \(accepted\)", lines[-1])[1] for lines in told} <= accepted
    total = sum(counts["near-duplicate"] for counts in found.values())
    assert {"step": "candidate pairs", "name": "rejected: near-duplicate", "count": total} in version.funnel
    assert verify_version(version.uri) == []
    apart = CONFIG.model_copy(update={"name": "apart", "pairing": PAIRING.model_copy(update={"near_duplicate_bits": -1})})
    assert all(counts["accepted"] for counts in verdicts(build_dataset(apart, str(work), models, items).uri).values())


def test_a_pair_that_is_called_good_stays_and_the_other_goes(twice, models, tmp_path):
    work, items, version = str(shutil.copytree(twice[0], tmp_path / "w")), twice[1], twice[2]
    alone = build_dataset(CONFIG.model_copy(update={"name": "alone"}), work, models, items[1:])
    good = read_manifest(alone.uri)[0]["key"]
    assert good not in {row["key"] for row in read_manifest(version.uri)}
    add_label(work, good, True, "near-duplicate", 0)
    told = read_manifest(build_dataset(CONFIG.model_copy(update={"name": "told"}), work, models, items).uri)
    assert good in {row["key"] for row in told} and len(told) == sum(version.samples.values())


def test_an_audit_shows_what_another_source_shows_and_asks_nothing_where_it_cannot(twice, models, tmp_path):
    """Of two files, nobody declared: what is like a pair of the other file is shown above that pair, or it would be called good and come in."""
    work, items = str(shutil.copytree(twice[0], tmp_path / "w")), twice[1]
    few = CONFIG.model_copy(update={"name": "few", "pairing": PAIRING.model_copy(update={"per_cell": 2})})
    folder = build_dataset(few, work, models, items).uri
    rows = {row["key"]: row for row in read_candidates(folder)}
    shown = {entry.key: entry.beside for entry in choose(work, "few", 10_000, 0) if entry.stratum == "near-duplicate"}
    across = {key for key in shown if rows[key]["source_id"] == "second"}
    assert across and {rows[other]["source_id"] for key in across for other in shown[key]} == {"first"}
    for key, others in shown.items():
        alike = {row["key"] for row in rows.values() if row["verdict"] == "accepted" and row["edit"] == rows[key]["edit"]}
        assert set(others) == alike and 0 < len(alike) <= 4
    components = Path(folder, "components.json")
    told = components.read_text()
    components.write_text(json.dumps(json.loads(told) | {"components": {name: name for name in NAMES}}))
    apart = {entry.key for entry in choose(work, "few", 10_000, 0) if entry.stratum == "near-duplicate"}
    assert apart == shown.keys() - across  # nothing of its own file is accepted
    components.write_text(told)
    write_copies({"second": Copy("first", 9, 10, 0.0)}, folder)
    assert {entry.key for entry in choose(work, "few", 10_000, 0) if entry.stratum == "near-duplicate"} == apart
    components.unlink()  # as after something was forgotten
    assert "near-duplicate" not in {entry.stratum for entry in choose(work, "few", 10_000, 0)}


@pytest.mark.parametrize("given", [0, 1])
def test_what_is_published_stays_and_a_file_that_comes_later_adds_nothing(twice, models, tmp_path, given):
    """Whatever their names."""
    work, items = str(shutil.copytree(twice[0], tmp_path / "w")), twice[1]
    base = build_dataset(CONFIG.model_copy(update={"name": "base"}), work, models, [items[given]])
    extended = build_dataset(CONFIG.model_copy(update={"name": "more", "extends": "base"}), work, models, items)
    before, after = ({row["key"]: row for row in read_manifest(uri)} for uri in (base.uri, extended.uri))
    assert before and before == after
    assert verdicts(extended.uri)[NAMES[1 - given]]["near-duplicate"] >= len(before)


def test_compressed_once_more_what_is_left_of_both_is_apart(models, clip, tmp_path):
    """Other frames of it may be chosen, and hashes change: what is within the bits of the other's is refused, no more is promised."""
    shutil.copyfile(clip("single_face"), tmp_path / "first.mp4")
    encoded_anew(clip("single_face"), tmp_path / "second.mp4", crf=8)
    items = [item_for(str(tmp_path / f"{name}.mp4"), licence="test") for name in NAMES]
    work = str(tmp_path / "w")
    left = {row["key"]: row for row in read_candidates(build_dataset(CONFIG, work, models, items).uri) if row["verdict"] == "accepted"}
    apart = CONFIG.model_copy(update={"name": "apart", "pairing": PAIRING.model_copy(update={"near_duplicate_bits": -1})})
    assert 0 < len(left) < sum(build_dataset(apart, work, models, items).samples.values())
    scored = [row for uri in list_files(f"{work}/pairs") for piece in read_pieces(uri) for row in piece.to_pylist() if row["key"] in left]
    shown = [(left[row["key"]]["edit"], row["source_id"], row["phash_source"], row["phash_target"]) for row in scored]
    assert len(shown) == len(left)
    for edit, name, *faces in shown:
        for other, where, *others in shown:
            assert name == where or edit != other or max(map(hash_distance, faces, others)) > CONFIG.pairing.near_duplicate_bits
