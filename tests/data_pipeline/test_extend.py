"""A version that is extended stays as it is; people who turn out to be one are never on two sides; labels beat filters."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from data_pipeline.audit import choose, read_labels, serve_audit, summarize
from data_pipeline.build import build_dataset
from data_pipeline.candidates import read_candidates
from data_pipeline.config import DataConfig
from data_pipeline.divide import divide
from data_pipeline.extend import Base, merge, merged_away, read_base
from data_pipeline.forget import forget
from data_pipeline.pack import read_index, read_manifest
from data_pipeline.rules import PairingConfig, Usage
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig, find_components
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.verify import verify_version
from data_pipeline.worklist import WorkItem
from infra.errors import UserError


def config(people, **changes):
    base = DataConfig(
        synthetic=SyntheticConfig(anny=AnnyConfig(people=people, images=4, workers=0)),
        analyze=AnalyzeConfig(workers=0),
        split=SplitConfig(val=0.2, test=0.2),
    )
    return base.model_copy(update=changes)


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


def test_an_extension_lists_what_it_extends(first, models):
    """Without the old sources nobody would know that a new one shows a person of theirs."""
    work, _ = first
    with pytest.raises(UserError, match=r"version v1, .* not in the work list .*anny_0_00004.* Add them"):
        build_dataset(config(4, name="less", extends="v1"), str(work), models)
    base = base_of({"old": "test"})
    with pytest.raises(UserError, match=r"not in the work list \(old\)"):
        divide([pair("new")], {"new": source("new", identity="alice")}, {}, base, SplitConfig())
    linked = replace(base, components={"old": "mid", "mid": "mid", "broken": "broken"})
    with pytest.raises(
        UserError, match=r"not in the work list \(mid\)"
    ):  # gave no sample, but it may be what ties a new source to the old one
        divide([pair("new")], {name: source(name) for name in ("old", "new")}, {}, linked, SplitConfig())


def test_an_extension_finds_the_people_it_extends():
    rows = [{"key": f"p_{n}", "source_id": "old", "split": "test", "identity": f"old/{n // 2}"} for n in range(4)]
    base = replace(base_of({}), rows=rows)
    base.check_found({"p_0", "p_3"})
    with pytest.raises(UserError, match=r"1 people of version v1, .* \(old/1\)"):
        base.check_found({"p_0", "p_1"})


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
    assert sides[train] == sides[alike] == sides[test] == "test"
    assert {name: side for name, side in sides.items() if name not in (train, alike)} == {
        name: side for name, side in splits.items() if name not in (train, alike)
    }
    with pytest.raises(UserError, match="no sample of version v1"):
        merge(str(work), "v1", train, "nobody")


def face(*numbers):
    vector = np.zeros(16, np.float32)
    vector[list(numbers)] = 1.0
    return vector / np.linalg.norm(vector)


def source(name, **columns):
    return WorkItem(source_id=name, uri=f"{name}.mp4", kind="video", **columns)


def pair(name):
    return {"source_id": name, "target_id": name, "from_track": 0, "to_track": 0}


def base_of(splits):
    rows = [{"key": f"p_{name}", "source_id": name, "split": side} for name, side in splits.items()]
    return Base("/nowhere", "/nowhere", {"digest": "x", "name": "v1", "shards": []}, rows, frozenset(), Usage(), {})


def test_a_track_that_links_two_splits_is_a_conflict():
    items = {name: source(name) for name in ("a", "b", "c", "d")}
    centroids = {"a/0": face(0), "b/0": face(1), "c/0": face(0, 1), "d/0": face(0, 2)}
    division = divide([pair("c"), pair("d")], items, centroids, base_of({"a": "train", "b": "test"}), SplitConfig(link_similarity=0.6))
    assert division.tracks == {"c/0": ["a", "b"]}
    assert division.conflicts == {}
    assert division.verdict(pair("c")) == "split conflict"
    assert division.split_of["d"] == "train"  # goes with the one it looks like
    assert division.verdict(pair("d")) is None


def test_only_the_tracks_that_link_are_left_out(tmp_path):
    """Of one source: `c/0` links two people, `c/1` is like `c/0`, `c/2` is somebody else. `e` is all of it in conflict: a track like each."""
    items = {name: source(name) for name in ("a", "b", "c", "e", "f")}
    centroids = {"a/0": face(0), "b/0": face(1), "c/0": face(0, 1), "c/1": face(0, 1, 2, 3), "c/2": face(7), "e/0": face(0), "e/1": face(1)}
    centroids |= {"f/0": face(0), "f/1": face(1)}  # declared to be of a's group: the track that is like b goes
    items |= {"a": source("a", group="g"), "f": source("f", group="g")}
    tracks = [pair("c") | {"from_track": n, "to_track": n} for n in range(3)]
    division = divide(
        [*tracks, pair("e"), pair("f")], items, centroids, base_of({"a": "train", "b": "test"}), SplitConfig(link_similarity=0.6)
    )
    assert [division.verdict(row) for row in tracks] == ["split conflict", "split conflict", None]
    assert division.conflicts == {"e": ["a", "b"]}
    assert division.tracks == {"c/0": ["a", "b"], "c/1": ["a", "b"], "f/1": ["a", "b"]}
    assert division.split_of["f"] == "train"
    assert division.verdict(pair("f")) is None
    assert division.verdict(pair("f") | {"to_track": 1}) == "split conflict"
    (tmp_path / "ledger.jsonl").write_text("")
    division.write(str(tmp_path), str(tmp_path))
    assert json.loads((tmp_path / "conflicts.json").read_text()) == {"sources": division.conflicts, "tracks": division.tracks}
    assert cv2.imread(str(tmp_path / "conflicts.jpg")).shape == (3 * 256, 6 * 256, 3)  # a row for each source


def test_a_new_track_of_a_published_source_may_link_too():
    """It was left out of what is extended, or is seen only now: it goes, and ties nobody."""
    base = replace(base_of({"a": "train", "b": "test"}), tracks=frozenset({"a/0", "b/0"}))
    centroids = {"a/0": face(0), "a/1": face(1), "b/0": face(1), "new/0": face(0)}
    division = divide([pair("new")], {name: source(name) for name in ("a", "b", "new")}, centroids, base, SplitConfig(link_similarity=0.6))
    assert (division.tracks, division.conflicts) == ({"a/1": ["a", "b"]}, {})
    assert division.split_of["new"] == "train"


def test_a_conflict_of_declared_people_is_found_too():
    items = {
        "a": source("a", identity="x"),
        "b": source("b", identity="y"),
        "c": source("c", identity="x", group="g"),
        "b2": source("b2", group="g"),
    }
    base = base_of({"a": "train", "b": "test", "b2": "test"})
    assert list(divide([pair("c")], items, {}, base, SplitConfig()).conflicts) == ["c"]


def test_what_was_published_never_changes_sides():
    """Two of them look alike by now: they stay, no pair goes over, and a new source like either would have its person on both sides."""
    items = {name: source(name) for name in ("a", "b", "new")}
    centroids = {"a/0": face(0), "b/0": face(0, 1), "new/0": face(1)}
    accepted = [*map(pair, items), pair("a") | {"target_id": "b"}]
    division = divide(accepted, items, centroids, base_of({"a": "train", "b": "test"}), SplitConfig(link_similarity=0.6))
    assert division.tracks == {"new/0": ["a", "b"]}
    assert {name: division.split_of[name] for name in ("a", "b")} == {"a": "train", "b": "test"}
    assert [division.verdict(row) for row in accepted] == [None, None, "split conflict", "split conflict"]
    same = {"a": source("a", identity="x"), "b": source("b", identity="x"), "new": source("new", identity="x")}
    assert divide(accepted, same, {}, base_of({"a": "train", "b": "test"}), SplitConfig()).conflicts == {"new": ["a", "b"]}


def test_links_that_appear_without_a_conflict_are_looked_at_too():
    """Each face has one nearest: once `c` is out, `e` is like `b` and not only like `a`."""
    base = base_of({"a": "train", "a2": "train", "b": "test", "b2": "test"})
    centroids = {"a/0": face(0), "a2/0": face(5), "b/0": face(1), "b2/0": face(6)}
    centroids |= {"c/0": face(1, 2), "c/1": face(5), "c/2": face(6), "e/0": face(0), "e/1": face(1, 2, 3)}
    names = ("a", "a2", "b", "b2", "c", "e")
    config = SplitConfig(link_similarity=0.5, link_nearest=1, small_dataset=1, max_component=1.0)
    division = divide([pair("c"), pair("e")], {name: source(name) for name in names}, centroids, base, config)
    assert sorted(division.conflicts) == ["c", "e"]


def test_a_bridge_is_left_out_and_only_it():
    """Two large groups of one person each, held together by one blurred track that looks like both."""
    centroids = {f"l{n}/0": face(0) for n in range(6)} | {f"r{n}/0": face(1) for n in range(6)} | {"m/0": face(0, 1)}
    names = [name.split("/")[0] for name in centroids]
    samples = Counter(dict.fromkeys(names, 200))
    found = find_components(names, {}, centroids, SplitConfig(link_similarity=0.6, link_nearest=12), samples)
    assert found.bridges == {"m/0"}
    assert found.of_source["l0"] == found.of_source["l5"] != found.of_source["r0"]


def test_labels_are_taken_in_a_page_and_beat_the_filters(first, models):
    work, version = first
    middle = float(np.median([row["sharpness"] for row in read_candidates(version.uri)]))
    strict = PairingConfig(min_sharpness=middle)
    build_dataset(config(8, name="strict", pairing=strict), str(work), models)
    entries = choose(str(work), "strict", per_stratum=3, seed=1)
    assert {entry.stratum for entry in entries} > {"accepted"}
    assert entries == choose(str(work), "strict", per_stratum=3, seed=1)
    server = serve_audit(str(work), "strict", per_stratum=3, seed=1, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"

    def post(body, kind="application/json"):
        return urllib.request.urlopen(urllib.request.Request(f"{address}/label", json.dumps(body).encode(), {"Content-Type": kind}))

    try:
        accepted = next(entry for entry in entries if entry.stratum == "accepted")
        refused = next(entry for entry in entries if entry.stratum != "accepted")
        assert accepted.key in urllib.request.urlopen(address).read().decode()
        assert urllib.request.urlopen(f"{address}/pair/{accepted.key}").read()[:2] == b"\xff\xd8"
        drawn, plain = (urllib.request.urlopen(f"{address}/pair/{accepted.key}{how}").read() for how in ("", "?plain"))
        assert plain[:2] == b"\xff\xd8" and plain != drawn  # without landmarks
        assert post({"key": accepted.key, "good": False}).status == 200
        assert post({"key": refused.key, "good": True}).status == 200
        for body, kind in (({"key": "nobody", "good": True}, "application/json"), ({"key": accepted.key, "good": True}, "text/plain")):
            with pytest.raises(urllib.error.HTTPError):
                post(body, kind)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}/pair/../../ledger.jsonl")
    finally:
        server.shutdown()
    assert read_labels(str(work)) == {accepted.key: False, refused.key: True}
    assert summarize(str(work))[0][:3] == ("accepted", 1, 0)
    labelled = build_dataset(config(8, name="labelled", pairing=strict), str(work), models)
    verdicts = {row["key"]: row["verdict"] for row in read_candidates(labelled.uri)}
    assert verdicts[accepted.key] == "labelled bad"
    assert verdicts[refused.key] in ("accepted", "quota", "near-duplicate")


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
