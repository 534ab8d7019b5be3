"""Links of faces and names between people of different splits: what they leave out, and that nobody is ever on two sides."""

import json
from collections import Counter
from dataclasses import replace

import cv2
import networkx
import numpy as np

from data_pipeline.people import Link, source_of
from data_pipeline.split import SplitConfig, _find_bridges, find_components
from tests.data_pipeline.links import base_of, components_of, divided, face, pair, source


def test_a_track_that_links_two_splits_is_a_conflict():
    items = {name: source(name) for name in ("a", "b", "c", "d")}
    centroids = {"a/0": face(0), "b/0": face(1), "c/0": face(0, 1), "d/0": face(0, 2)}
    division = divided([pair("c"), pair("d")], items, centroids, base_of({"a": "train", "b": "test"}), SplitConfig(link_similarity=0.6))
    assert division.tied.conflicts.tracks == {"c/0": ["a", "b"]}
    assert division.tied.conflicts.sources == {}
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
    division = divided(
        [*tracks, pair("e"), pair("f")], items, centroids, base_of({"a": "train", "b": "test"}), SplitConfig(link_similarity=0.6)
    )
    assert [division.verdict(row) for row in tracks] == ["split conflict", "split conflict", None]
    assert division.tied.conflicts.sources == {"e": ["a", "b"]}
    assert division.tied.conflicts.tracks == {"c/0": ["a", "b"], "c/1": ["a", "b"], "f/1": ["a", "b"]}
    assert division.split_of["f"] == "train"
    assert division.verdict(pair("f")) is None
    assert division.verdict(pair("f") | {"to_track": 1}) == "split conflict"
    (tmp_path / "ledger.jsonl").write_text("")
    division.write([], centroids, 0.6, str(tmp_path), str(tmp_path))
    assert json.loads((tmp_path / "conflicts.json").read_text()) == division.tied.conflicts._asdict()
    assert cv2.imread(str(tmp_path / "conflicts.jpg")).shape == (3 * 256, 6 * 256, 3)  # a row for each source


def test_a_new_track_of_a_published_source_may_link_too():
    """It was left out of what is extended, or is seen only now: it goes, and ties nobody."""
    base = replace(base_of({"a": "train", "b": "test"}), tracks=frozenset({"a/0", "b/0"}))
    centroids = {"a/0": face(0), "a/1": face(1), "b/0": face(1), "new/0": face(0)}
    division = divided([pair("new")], {name: source(name) for name in ("a", "b", "new")}, centroids, base, SplitConfig(link_similarity=0.6))
    assert (division.tied.conflicts.tracks, division.tied.conflicts.sources) == ({"a/1": ["a", "b"]}, {})
    assert division.split_of["new"] == "train"


def test_a_conflict_of_declared_people_is_found_too():
    items = {
        "a": source("a", identity="x"),
        "b": source("b", identity="y"),
        "c": source("c", identity="x", group="g"),
        "b2": source("b2", group="g"),
    }
    base = base_of({"a": "train", "b": "test", "b2": "test"})
    assert list(divided([pair("c")], items, {}, base, SplitConfig()).tied.conflicts.sources) == ["c"]


def test_what_was_published_never_changes_sides():
    """Two of them look alike by now: they stay, no pair goes over, and a new source like either would have its person on both sides."""
    items = {name: source(name) for name in ("a", "b", "new")}
    centroids = {"a/0": face(0), "b/0": face(0, 1), "new/0": face(1)}
    accepted = [*map(pair, items), pair("a") | {"target_id": "b"}]
    division = divided(accepted, items, centroids, base_of({"a": "train", "b": "test"}), SplitConfig(link_similarity=0.6))
    assert division.tied.conflicts.tracks == {"new/0": ["a", "b"]}
    assert {name: division.split_of[name] for name in ("a", "b")} == {"a": "train", "b": "test"}
    assert [division.verdict(row) for row in accepted] == [None, None, "split conflict", "split conflict"]
    same = {"a": source("a", identity="x"), "b": source("b", identity="x"), "new": source("new", identity="x")}
    assert divided(accepted, same, {}, base_of({"a": "train", "b": "test"}), SplitConfig()).tied.conflicts.sources == {"new": ["a", "b"]}


def test_links_that_appear_without_a_conflict_are_looked_at_too():
    """Each face has one nearest: once `c` is out, `e` is like `b` and not only like `a`."""
    base = base_of({"a": "train", "a2": "train", "b": "test", "b2": "test"})
    centroids = {"a/0": face(0), "a2/0": face(5), "b/0": face(1), "b2/0": face(6)}
    centroids |= {"c/0": face(1, 2), "c/1": face(5), "c/2": face(6), "e/0": face(0), "e/1": face(1, 2, 3)}
    names = ("a", "a2", "b", "b2", "c", "e")
    config = SplitConfig(link_similarity=0.5, link_nearest=1, small_dataset=1, max_component=1.0)
    division = divided([pair("c"), pair("e")], {name: source(name) for name in names}, centroids, base, config)
    assert sorted(division.tied.conflicts.sources) == ["c", "e"]


def test_a_bridge_is_left_out_and_only_it():
    """Two large groups of one person each, held together by one blurred track that looks like both."""
    centroids = {f"l{n}/0": face(0) for n in range(6)} | {f"r{n}/0": face(1) for n in range(6)} | {"m/0": face(0, 1)}
    names = [name.split("/")[0] for name in centroids]
    samples = Counter(dict.fromkeys(names, 200))
    found = find_components(names, {}, centroids, SplitConfig(link_similarity=0.6, link_nearest=12), samples)
    assert found.bridges == {"m/0"}
    assert found.of_source["l0"] == found.of_source["l5"] != found.of_source["r0"]


def bridges_one_by_one(links, samples, least):
    """The same as `_find_bridges` says: each track is taken out."""
    graph = networkx.Graph([(a, b) for _, a, b in links])
    graph.add_edges_from([(track, f"source:{source_of(track)}") for track in graph])
    found = set()
    for track in [node for node in graph if not node.startswith("source:")]:
        rest = graph.subgraph(networkx.node_connected_component(graph, track) - {track})
        sizes = [
            sum(samples[node.removeprefix("source:")] for node in part) for part in networkx.connected_components(rest) if len(part) > 1
        ]
        if sum(size >= least for size in sizes) >= 2:
            found.add(track)
    return found


def test_bridges_are_those_that_tear_a_component_apart():
    """Of drawn links among sources of one to three tracks; in a large one too, where each track alone holds its source to the others."""
    rng, met = np.random.default_rng(0), 0
    for _ in range(300):
        count, tracks = int(rng.integers(2, 25)), int(rng.integers(1, 4))
        ends = [(a, b) for a, b in rng.integers(0, count, (int(rng.integers(1, 2 * count)), 2)) if a != b]
        links = [Link(0.5, f"s{a}/{rng.integers(tracks)}", f"s{b}/{rng.integers(tracks)}") for a, b in ends]
        samples, least = Counter({f"s{n}": int(rng.integers(0, 20)) for n in range(count)}), float(rng.integers(1, 60))
        found = _find_bridges(links, samples, dict.fromkeys(samples, "one"), {"one"}, least)
        assert found == bridges_one_by_one(links, samples, least)
        met += len(found)
    assert met > 100
    chain = [Link(0.5, f"s{n}/0", f"s{n + 1}/0") for n in range(20_000)]
    samples = Counter({f"s{n}": 1 for n in range(20_001)})
    found = _find_bridges(chain, samples, dict.fromkeys(samples, "one"), {"one"}, 9_990)
    assert found == {f"s{n}/0" for n in range(9_990, 10_011)}
    apart = [link for link in chain if link.first != "s10000/0"]  # a name may hold the two together: no track does
    assert _find_bridges(apart, samples, dict.fromkeys(samples, "one"), {"one"}, 9_000) == frozenset()


def test_spans_and_people_of_one_file_go_to_one_side():
    items = {name: source(name).model_copy(update={"uri": f"{file}.mp4"}) for name, file in (("a", 1), ("b", 1), ("c", 2))}
    assert components_of(items) == {"a": "source:a", "b": "source:a", "c": "source:c"}
    assert components_of(items, contents={"a": "x", "b": "y", "c": "y"}) == dict.fromkeys(
        "abc", "source:a"
    )  # one file, whatever it is called
    apart = base_of({"a": "train", "b": "test"})  # published so by an earlier LaTo
    assert len(set(components_of(items, apart).values())) == 3
    assert components_of(items, base_of({"a": "train", "c": "test"}), {"a": "x", "c": "x"})["c"] == "source:c"


def test_edits_of_one_photo_go_to_one_side_with_it():
    """Two people on a photo, each edited for themselves: the edits alone give samples."""
    items = {name: source(name, kind="image").model_copy(update={"uri": "two.jpg"}) for name in ("left", "right")}
    for name in ("left", "right"):
        items[f"{name}_warp"] = source(f"{name}_warp", kind="image", group=name, attributes={"made_from": name})
    assert set(components_of(items).values()) == {"source:left"}
    alone = {name: item for name, item in items.items() if name not in ("left", "right")} | {
        "other_warp": source("other_warp", attributes={"made_from": "left"})
    }
    assert components_of(alone)["other_warp"] == components_of(alone)["left_warp"] != components_of(alone)["right_warp"]
