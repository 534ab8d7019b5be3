"""A version that is extended stays as it is; people who turn out to be one are never on two sides."""

import json
import shutil
from dataclasses import replace

import pytest

from data_pipeline import observe
from data_pipeline.audit import add_label
from data_pipeline.build import build_dataset
from data_pipeline.diff import diff_versions
from data_pipeline.extend import merge, read_base, read_components
from data_pipeline.extension_checks import check_found, check_worklist
from data_pipeline.forget import forget
from data_pipeline.holdout import HoldoutConfig
from data_pipeline.ledger import read_ledger
from data_pipeline.published import read_index, read_manifest
from data_pipeline.split import SplitConfig
from data_pipeline.taken_out import merged_away
from data_pipeline.verify import verify_version
from data_pipeline.why import why
from data_pipeline.worklist import item_for, read_worklist
from infra.errors import UserError
from tests.data_pipeline.links import base_of, divided, pair, source
from tests.data_pipeline.small import config


@pytest.fixture(scope="module")
def first(models, tmp_path_factory):
    work = tmp_path_factory.mktemp("extend")
    return work, build_dataset(config(8), str(work), models)


def test_an_extension_changes_nothing_that_was_published(first, models):
    work, version = first
    second = build_dataset(config(12, name="v2", extends="v1"), str(work), models)
    old, new = ({row["key"]: row for row in read_manifest(uri)} for uri in (version.uri, second.uri))
    assert all(new[key] == row for key, row in old.items())  # split, shard, offsets: all as they were
    assert len(new) > len(old)
    shards = {entry["name"]: entry["sha256"] for entry in read_index(second.uri)["shards"]}
    assert all(shards[entry["name"]] == entry["sha256"] for entry in read_index(version.uri)["shards"])
    assert verify_version(second.uri) == [] == verify_version(version.uri)
    fresh = {row["identity"] for key, row in new.items() if key not in old}
    assert fresh == {f"anny_0_{number:05d}" for number in range(8, 12)}  # quotas are used up where nothing is new
    again = build_dataset(config(12, name="v2", extends="v1"), str(work), models)
    assert again.digest == second.digest
    used = [read_base(uri, str(work)).usage.person for uri in (version.uri, second.uri)]
    assert used[0] == {person: count for person, count in used[1].items() if person not in fresh}  # a third version counts on


def test_a_shard_of_the_same_name_and_other_content_is_not_taken_for_the_extended_versions(first, models, tmp_path):
    """Left by an earlier version of the new one's name, which its own build had begun to replace."""
    work = tmp_path / "w"
    shutil.copytree(first[0], work)
    version = work / "versions/v1"
    shards = work / "versions/v3/shards"
    shards.mkdir(parents=True)
    names = [entry["name"] for entry in read_index(str(version))["shards"]]
    (shards / names[0]).write_bytes(b"\0" * (version / "shards" / names[0]).stat().st_size)
    (shards / names[1]).write_bytes((version / "shards" / names[1]).read_bytes())
    kept = (shards / names[1]).stat().st_mtime_ns
    third = build_dataset(config(8, name="v3", extends="v1"), str(work), models)
    assert verify_version(third.uri) == []
    assert (shards / names[0]).read_bytes() == (version / "shards" / names[0]).read_bytes()
    assert (shards / names[1]).stat().st_mtime_ns == kept  # what is right is not written again


def test_a_merge_takes_all_of_the_person(tmp_path):
    """Undeclared: what the recognizer tied to the named source goes with it, also over further merges."""
    splits = {"a": "train", "a2": "train", "b": "test", "c": "train", "d": "val", "other": "train"}
    rows = [{"key": f"p_{name}", "source_id": name, "split": side, "identity": f"{name}/0"} for name, side in splits.items()]
    components = {"a": "a", "a2": "a", "b": "b", "c": "c", "d": "d", "other": "other"}
    assert merged_away(rows, [("a2", "b")], components) == {"p_a", "p_a2"}
    assert merged_away(rows, [("a", "c"), ("c", "b")], components) == {"p_a", "p_a2", "p_c"}
    assert merged_away(rows, [("a", "c")], components) == set()
    mixed = {"a": "a", "a2": "a", "b": "a", "c": "c"}  # published on two sides although alike: goes as far as it is said
    assert merged_away(rows, [("c", "d")], mixed) == {"p_c"}
    assert merged_away(rows, [("a", "d")], mixed) == {"p_a", "p_a2"}
    assert merged_away(rows, [("a", "b")], {}) == {"p_a"}
    declared = [row | {"identity": "vox/1"} if row["source_id"] in ("a", "a2") else row for row in rows]
    assert merged_away(declared, [("a", "b")], {}) == {"p_a", "p_a2"}  # a name with a slash is one too


def test_an_extension_lists_what_it_extends(first, models):
    """Without the old sources nobody would know that a new one shows a person of theirs."""
    work, _ = first
    with pytest.raises(UserError, match=r"version v1, .* not in the work list .*anny_0_00004.* Add them"):
        build_dataset(config(4, name="less", extends="v1"), str(work), models)
    base = base_of({"old": "test"})
    with pytest.raises(UserError, match=r"not in the work list \(old\)"):
        check_worklist(base, {"new": source("new", identity="alice")}, [])
    linked = replace(base, components={"old": "mid", "mid": "mid", "broken": "broken"})
    with pytest.raises(
        UserError, match=r"not in the work list \(mid\)"
    ):  # gave no sample, but it may be what ties a new source to the old one
        check_worklist(linked, {name: source(name) for name in ("old", "new")}, [])


@pytest.mark.parametrize("kind", ["identity", "group"])
def test_who_is_declared_on_two_sides_since_is_told_before_anything_is_looked_at(kind):
    """New samples of theirs went to both. All mistakes are told at once; a merge, and a person of one side, are none."""
    base = base_of({"a": "train", "b": "test", "c": "train"})
    items = {name: source(name, **{kind: "alice"}) for name in ("a", "b")} | {"c": source("c"), "new": source("new", **{kind: "alice"})}
    with pytest.raises(UserError, match=rf"^{kind} alice .*\(a in train, b in test\).* lato data merge v1 a b "):
        check_worklist(base, items, [])
    with pytest.raises(UserError, match=rf"not in the work list \(c\)[^\n]*\n{kind} alice"):
        check_worklist(base, {name: item for name, item in items.items() if name != "c"}, [])
    check_worklist(base.without({"p_a": "split conflict"}), items, [("a", "b")])
    check_worklist(base, items | {"b": source("b"), "c": source("c", **{kind: "alice"})}, [])


def test_rights_that_were_corrected_since_are_told_before_anything_is_looked_at():
    """Samples went on under what was said before, and an export for sale handed them out."""
    rows = [
        {"key": "p_a", "source_id": "a", "split": "train", "identity": "bob", "licence": "CC0-1.0", "consent": "given",
         "target_id": "b", "target_licence": "MIT", "target_consent": "given"},
        {"key": "p_old", "source_id": "old", "split": "train", "identity": "old/0"},  # of an earlier LaTo
    ]  # fmt: skip
    base = replace(base_of({}), rows=rows)
    rights = {"a": ("CC0-1.0", "given"), "b": ("MIT", "given"), "old": ("unknown", "unknown")}
    check_worklist(base, {name: source(name, licence=licence, consent=consent) for name, (licence, consent) in rights.items()}, [])
    rights |= {"a": ("CC-BY-NC-4.0", "withdrawn"), "b": ("MIT", "withdrawn")}
    told = r"2 sources .* v1, .*\(a: CC0-1.0 -> CC-BY-NC-4.0; given -> withdrawn, b: given -> withdrawn\).* lato data forget"
    with pytest.raises(UserError, match=told):
        check_worklist(base, {name: source(name, licence=licence, consent=consent) for name, (licence, consent) in rights.items()}, [])


def test_a_build_does_not_begin_with_a_work_list_that_its_base_contradicts(first, models, tmp_path, monkeypatch):
    work = str(shutil.copytree(first[0], tmp_path / "w"))
    (tmp_path / "more.jpg").write_bytes(b"never looked at")
    listed = read_worklist(f"{work}/worklist.parquet")
    monkeypatch.setattr(observe, "analyze", None)
    with pytest.raises(UserError, match="not in the work list"):
        build_dataset(config(4, name="less", extends="v1"), work, models, [item_for(str(tmp_path / "more.jpg"))])
    assert read_worklist(f"{work}/worklist.parquet") == listed
    withdrawn = [item.model_copy(update={"consent": "withdrawn"}) for item in listed]
    with pytest.raises(UserError, match="8 sources have another licence or consent"):
        build_dataset(config(0, name="withdrawn", extends="v1"), work, models, withdrawn)


def test_a_pin_moves_nothing_that_is_published_and_says_so(capsys):
    found = divided([pair("a")], {"a": source("a", split="test")}, {}, base_of({"a": "train"}), SplitConfig())
    assert found.split_of["a"] == "train"
    assert "source a is pinned to test, but the version that is extended has it in train, where it stays" in capsys.readouterr().out


def test_an_extension_finds_all_that_it_extends():
    """Also every sample of a person of whom some are found: what is not counts in no quota, and is no near-duplicate's other."""
    rows = [{"key": f"p_{n}", "source_id": "old", "split": "test", "identity": f"old/{n // 2}"} for n in range(4)]
    base = replace(base_of({}), rows=rows)
    check_found(base, {f"p_{n}" for n in range(4)})
    with pytest.raises(UserError, match=r"3 samples of 2 people of version v1, .* \(old/0, old/1\)"):
        check_found(base, {"p_1"})


def test_what_is_held_out_or_called_bad_leaves_an_extension(first, models, tmp_path, capsys):
    """It is told how much, and why; and it does not come back to what extends that one, though nobody asks for it any more. Its source stays on its side."""
    work = shutil.copytree(first[0], tmp_path / "w")
    rows = read_manifest(first[1].uri)
    sides = {row["identity"]: row["split"] for row in rows}
    train, other = sorted(name for name, side in sides.items() if side == "train")[:2]
    test = next(name for name, side in sides.items() if side == "test")
    bad = next(row["key"] for row in rows if row["identity"] == other)
    add_label(str(work), bad, False, "accepted", 0)
    theirs = {row["key"] for row in rows if row["identity"] == train}
    held = HoldoutConfig(identities=(train, test))
    second = build_dataset(config(8, name="v2", extends="v1", holdout=held), str(work), models)
    said = capsys.readouterr().out
    assert f"{len(theirs)} samples of version v1, which is extended, are taken out: held out" in said
    assert "1 samples of version v1, which is extended, are taken out: labelled bad" in said
    assert verify_version(second.uri) == []
    left = {row["key"]: row for row in read_manifest(second.uri)}
    before = {row["key"]: row for row in rows}
    assert before.keys() - left.keys() == theirs | {bad}  # who was in test stays there: that is evaluation too
    assert all(left[key]["split"] == before[key]["split"] for key in left.keys() & before.keys())
    assert {row["split"] for row in left.values() if row["identity"] == other} == {"train"}
    assert diff_versions(first[1].uri, second.uri)["removed_because"] == {"held out": len(theirs), "labelled bad": 1}
    assert why(bad, str(work), "v2")[0] == f"{bad}: labelled bad"
    (work / "labels.jsonl").unlink()
    third = build_dataset(config(8, name="v3", extends="v2"), str(work), models)
    again = {row["key"]: row["split"] for row in read_manifest(third.uri)}
    assert not again.keys() & (theirs | {bad})
    assert {row["split"] for row in read_manifest(third.uri) if row["identity"] == train} <= {"train"}
    forget(str(work), identity=train)
    assert read_index(third.uri)["taken_out"].keys() == {bad} and verify_version(third.uri) == []


def test_a_source_whose_samples_were_taken_out_stays_on_its_side():
    rows = [{"key": f"p_{name}", "source_id": name, "split": side} for name, side in (("a", "train"), ("b", "train"), ("c", "test"))]
    base = replace(base_of({}), rows=rows).without({"p_a": "held out", "p_b": "split conflict"})
    assert base.split_of_source == {"c": "test"}
    assert base.sides(["a", "b", "c"], []) == {"a": "train", "c": "test"} and base.sides(["c"], []) == {"c": "test"}
    assert base.count_taken_out() == {"held out": 1, "split conflict": 1}
    assert base.digest != base_of({}).digest


def test_a_confirmed_merge_takes_the_lower_splits_samples(first, models):
    work, version = first
    splits = {row["source_id"]: row["split"] for row in read_manifest(version.uri)}
    train = next(name for name, side in sorted(splits.items()) if side == "train")
    test = next(name for name, side in sorted(splits.items()) if side == "test")
    alike = next(name for name, side in sorted(splits.items()) if side == "train" and name != train)
    stored = work / "versions/v1/components.json"
    before = stored.read_bytes()
    found = json.loads(before)
    found["components"][alike] = found["components"][train]  # as if a recognizer had tied them
    stored.write_text(json.dumps(found))
    told = merge(str(work), "v1", train, test)
    assert told["splits"] == ("train", "test")
    assert told["dropped"] == sum(row["source_id"] in (train, alike) for row in read_manifest(version.uri)) > 0
    merged = build_dataset(config(8, name="merged", extends="v1"), str(work), models)
    assert verify_version(merged.uri) == []
    sides = {row["source_id"]: row["split"] for row in read_manifest(merged.uri)}
    stored.write_bytes(before)
    left = {row["key"]: row["split"] for row in read_manifest(merged.uri)}
    changed = diff_versions(version.uri, merged.uri)
    assert changed["removed_because"] == {"split conflict": told["dropped"]} and changed["moved"] == []
    gone = changed["removed"]
    assert sides[test] == "test" and {sides.get(name, "test") for name in (train, alike)} == {"test"}
    assert why(gone[0], str(work), "merged")[0] == f"{gone[0]}: split conflict"
    third = build_dataset(config(8, name="third", extends="merged"), str(work), models)
    assert {row["key"]: row["split"] for row in read_manifest(third.uri)} == left  # nor does it come back later
    assert {name: side for name, side in sides.items() if name not in (train, alike)} == {
        name: side for name, side in splits.items() if name not in (train, alike)
    }
    fresh = build_dataset(config(8, name="fresh"), str(work), models)
    found = read_components(fresh.uri)["components"]
    assert found[train] == found[test] and set(found) == set(splits)
    sides = {row["source_id"]: row["split"] for row in read_manifest(fresh.uri)}
    assert sides[train] == sides[test]
    (work / "merges.jsonl").unlink()  # taken back: what was made with it does not stand
    again = build_dataset(config(8, name="fresh"), str(work), models)
    assert {row["source_id"]: row["split"] for row in read_manifest(again.uri)} == splits
    with pytest.raises(UserError, match="no sample of version v1"):
        merge(str(work), "v1", train, "nobody")


def test_what_was_taken_out_comes_back_under_no_other_name(first, models, tmp_path):
    """Listed under an id that sorts before the old one, beside it or in its place: keys are by name, and it came back, also on the other side."""
    work = str(shutil.copytree(first[0], tmp_path / "w"))
    rows, last = read_manifest(first[1].uri), "anny_0_00007"
    splits = {row["source_id"]: row["split"] for row in rows if row["source_id"] != last}
    merged, bad = sorted(name for name, side in splits.items() if side == "train")[:2]
    merge(work, "v1", merged, next(name for name, side in splits.items() if side == "test"))
    for row in rows:
        if row["source_id"] in (bad, last):
            add_label(work, row["key"], False, "accepted", 0)
    build_dataset(config(8, name="v2", extends="v1"), work, models)
    listed = {item.source_id: item for item in read_worklist(f"{work}/worklist.parquet")}
    names = {f"aaa_{name}": name for name in (merged, bad, last)}
    extra = [listed[name].model_copy(update={"source_id": new}) for new, name in names.items()]
    third = build_dataset(config(7, name="v3", extends="v2"), work, models, extra)  # the last is not listed under its old name
    same = {row["source_id"]: row["same_as"] for row in read_ledger(work) if row["reason"] == "duplicate"}
    assert same == names
    assert not {row["source_id"] for row in read_manifest(third.uri)} & {*names, merged, last}
    assert any(last in sources for *_, sources in read_index(third.uri)["taken_out"].values())
    forget(work, source=f"aaa_{last}")
    assert not any(last in sources for *_, sources in read_index(third.uri)["taken_out"].values()) and verify_version(third.uri) == []
