"""What an extension took out: it comes back under no other name, and merges count of sources that have no samples left."""

from dataclasses import replace

import pytest

from data_pipeline.duplicates import duplicate_row, duplicates_of, refuse_renamed
from data_pipeline.extend import Base
from data_pipeline.forget_versions import _keep_taken_out
from data_pipeline.ledger import Ledger
from data_pipeline.observations import commit_part
from data_pipeline.removals import Removals, hash_name
from data_pipeline.split import SplitConfig
from data_pipeline.taken_out import TakenOut, merged_away, merges_without, read_taken_out
from tests.data_pipeline.links import base_of, divided, pair, source

INDEX = {"digest": "x", "name": "v2", "shards": []}


def row_of(name, split, **columns):
    return {"key": f"p_{name}", "source_id": name, "split": split, "identity": f"{name}/0"} | columns


def looked_at(work, name, content, start=0.0, end=None, box=None):
    """A part in which nothing was seen."""
    item = {"source_id": name, "kind": "video", "box": box, "start": start, "end": end}
    commit_part(work, f"{name}{start}", [], {"source_id": name}, {"of": {"content": content, "item": item}, "with": {}})


def test_a_source_under_another_name_is_known_by_what_it_shows(tmp_path):
    """Where nothing is read under the old name any more, the parts say what it was; other spans and boxes of a file are other work."""
    work = str(tmp_path)
    looked_at(work, "old", "c1")
    looked_at(work, "span", "c2", 0.0, 3.0)
    looked_at(work, "span", "c2", 3.0, 6.0)
    looked_at(work, "box", "c3", box=[0.0, 0.0, 0.5, 1.0])
    looked_at(work, "stays", "c4")
    contents = {
        "renamed": "c1",
        "inside": "c2",
        "later": "c2",
        "face": "c3",
        "other_face": "c3",
        "stays": "c4",
        "apart": "c5",
        "edited": "c6",
    }
    items = [
        source("renamed"), source("inside", start=4.0, end=9.0), source("later", start=6.0), source("face", box=(0, 0, 0.5, 1)),
        source("other_face", box=(0.5, 0, 1, 1)), source("stays"), source("apart"), source("copy"), source("edited", attributes={"made_from": "renamed"}),
        source("edited_copy", attributes={"made_from": "copy"}), source("published_edit", attributes={"made_from": "copy"}), source("lost"),
    ]  # fmt: skip
    rows = [{"source_id": name, "status": "ok", "content": content, "parts": []} for name, content in contents.items()]
    rows += [{"source_id": name, "status": "ok", "content": name, "parts": []} for name in ("edited_copy", "published_edit")]
    rows += [duplicate_row("copy", "stays"), {"source_id": "lost", "status": "failed", "reason": "missing", "parts": []}]
    published = {"old", "span", "box", "stays", "published_edit"}
    found = refuse_renamed(Ledger(rows), items, published, work)
    same = {row["source_id"]: row["same_as"] for row in found.rows if row.get("reason") == "duplicate"}
    assert same == {"renamed": "old", "inside": "span", "face": "box", "copy": "stays", "edited": "old", "edited_copy": "stays"}
    assert refuse_renamed(Ledger(rows), items, (), work).rows == rows
    looked_at(work, "lost", "c5")  # listed, but its file is not where it was
    found = refuse_renamed(Ledger(rows), items, {"lost"}, work)
    assert {row["source_id"]: row["same_as"] for row in found.rows if row.get("reason") == "duplicate"} == {
        "copy": "stays",
        "apart": "lost",
    }


def test_forgetting_a_renamed_source_finds_its_old_name(tmp_path):
    """Also where that is not listed, and over a second new name."""
    rows = [duplicate_row("new", "old"), duplicate_row("newer", "new")]
    (tmp_path / "ledger.jsonl").write_text("".join(f"{row}\n" for row in rows).replace("'", '"'))
    assert duplicates_of(str(tmp_path), {"new"}) == {"old", "newer"}
    assert duplicates_of(str(tmp_path), duplicates_of(str(tmp_path), {"newer"}) | {"newer"}) == {"old"}


@pytest.mark.parametrize(("there", "gone"), [("train", "test"), ("test", "train")])
def test_a_merge_with_a_source_that_has_no_samples_left_puts_nobody_on_two_sides(there, gone):
    """It gives nothing more; what else shows them goes to the side where samples are."""
    rows = [row_of("a", there)]
    taken = {"p_b": TakenOut("labelled bad", gone, ("b",))}
    base = Base("/n", "/n", INDEX, rows, taken, components={"a": "a", "b": "b"})
    merges = [("a", "b")]
    assert merged_away(rows, merges, base.components, taken) == set()
    assert base.given_up(merges) == {"b"} and base.given_up([]) == frozenset()
    assert base.sides(["a", "b"], merges) == {"a": there} and base.sides(["a", "b"], []) == {"a": there, "b": gone}
    items = {"a": source("a"), "b": source("b", identity="bob"), "c": source("c", identity="bob")}
    found = divided([pair("c")], items, {}, base, SplitConfig(), merges)
    assert found.split_of["c"] == there and found.verdict(pair("c")) is None


def test_who_was_one_person_through_a_source_that_is_forgotten_stays_one():
    """Else a removal of somebody's clip put those on two sides who were merged over it."""
    merges = [("a", "x"), ("x", "c"), ("c", "d"), ("x", "e"), ("p", "q")]
    assert merges_without(merges, lambda name: name == "x") == [("c", "d"), ("p", "q"), ("a", "c"), ("a", "e")]
    assert merges_without(merges, lambda name: name in ("a", "c", "d", "e", "p")) == []
    assert merges_without(merges, lambda name: False) == merges


def test_a_source_that_lost_its_samples_gives_nothing_more_also_after_the_other_end_was_forgotten():
    """The pair's key, which tells of both, goes."""
    index = {
        "taken_out": {
            "p_ab": ["split conflict", "train", ["a", "b"]],
            "p_bb": ["labelled bad", "train", ["b"]],
            "p_aa": ["held out", "val", ["a"]],
        }
    }
    left = _keep_taken_out(index, Removals(frozenset({hash_name("a")}), frozenset(), frozenset()))
    assert sorted(left.values()) == [["labelled bad", "train", ["b"]], ["split conflict", "train", ["b"]]]
    assert "p_bb" in left and not left.keys() & {"p_ab", "p_aa"}
    base = Base("/n", "/n", INDEX, [row_of("c", "test")], read_taken_out({"taken_out": left}))
    assert base.given_up([]) == {"b"}


def test_a_source_without_samples_still_ties_those_that_were_one_with_it():
    rows = [row_of("a", "train"), row_of("b2", "test")]
    taken = {"p_b": TakenOut("labelled bad", "test", ("b",))}
    assert merged_away(rows, [("a", "b")], {"a": "a", "b": "b", "b2": "b"}, taken) == {"p_a"}
    assert merged_away(rows, [("a", "b")], {"a": "a", "b": "b", "b2": "b2"}, taken) == set()


def test_of_merged_sources_that_have_no_samples_left_the_higher_side_stays():
    taken = {"p_a": TakenOut("labelled bad", "train", ("a",)), "p_b": TakenOut("held out", "val", ("b",))}
    base = Base("/n", "/n", INDEX, [row_of("other", "train")], taken)
    assert base.given_up([("a", "b")]) == {"a"}
    assert base.sides(["a", "b", "other"], [("a", "b")]) == {"b": "val", "other": "train"}


def test_a_merge_after_a_label_refuses_no_new_source_of_the_person():
    """The label's side was still counted, so that the person was on two sides and everything new of theirs in conflict, for ever."""
    before = {"p_a0": TakenOut("labelled bad", "train", ("a",))}
    base = Base("/n", "/n", INDEX, [row_of("a", "train"), row_of("b", "test")], before).without({"p_a": "split conflict"})
    merges = [("a", "b")]
    assert base.given_up(merges) == {"a"} and base.sides(["a", "b"], merges) == {"b": "test"}
    items = {"a": source("a"), "b": source("b", identity="bob"), "c": source("c", identity="bob")}
    found = divided([pair("c")], items, {}, base, SplitConfig(), merges)
    assert found.tied.conflicts.sources == {} and found.split_of["c"] == "test"


def test_a_source_that_is_only_a_target_has_samples():
    """Of two photos whose reverse was called bad, the second is the source of none."""
    rows = [row_of("a", "train", target_id="b")]
    base = replace(base_of({}), rows=rows, taken_out={"p_b": TakenOut("split conflict", "train", ("a", "b"))})
    assert base.given_up([]) == frozenset() and base.split_of_source == {"a": "train", "b": "train"}
    assert base.sources == {"a", "b"}
