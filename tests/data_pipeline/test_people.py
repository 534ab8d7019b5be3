"""Who is one person by faces: nobody undeclared is on two sides, however many clips there are of them; what is left of doubt is told."""

import json
from collections import Counter

import numpy as np
import pytest

from data_pipeline.card import _components, _sides
from data_pipeline.extend import read_components
from data_pipeline.near_duplicates import over_quota_of_people
from data_pipeline.nearest import most_alike, mutual_nearest, touching
from data_pipeline.people import find_people, source_of
from data_pipeline.rules import PairingConfig
from data_pipeline.split import SplitConfig, assign, check_sizes, find_components
from infra.errors import UserError
from tests.data_pipeline.links import base_of, components_of, divided, face, pair, source

CONFIG = SplitConfig(val=0.1, test=0.1)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def tracks_around(rng, who, name, spreads):
    """Tracks of one person, each so far from their mean face."""
    return {f"{name}{n:02d}/0": unit(who + spread * unit(rng.normal(size=128))) for n, spread in enumerate(spreads)}


def people_of(seed, man):
    """200 people of one to three tracks, and a man of as many as `man` has spreads; all faces have something in common."""
    rng = np.random.default_rng(seed)
    common = unit(rng.normal(size=128))
    faces = {}
    for number in range(200):
        faces |= tracks_around(rng, unit(0.25 * common + unit(rng.normal(size=128))), f"p{number:03d}-", [0.7] * (1 + number % 3))
    return faces | tracks_around(rng, unit(0.25 * common + unit(rng.normal(size=128))), "man", man)


def sides_of(faces, config=CONFIG):
    """Components and the split of each source, with four samples a source."""
    samples = Counter({source_of(track): 4 for track in faces})
    components = find_components(samples, {}, faces, config, samples)
    counted = Counter()
    for name, count in samples.items():
        counted[components.of_source[name]] += count
    division = assign(counted, {}, config, components.families)
    return components, {name: division[components.of_source[name]] for name in samples}


@pytest.mark.parametrize("loose", [0.5, 0.9])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_undeclared_person_of_40_clips_is_one(seed, loose):
    """28 are nearly the same, and each other's nearest: the rest is like all of them and among the ten nearest of none."""
    faces = people_of(seed, [0.25] * 28 + [loose] * 12)
    names = sorted(faces)
    man = np.array([name.startswith("man") for name in names])
    table = np.stack([faces[name] for name in names])
    (first, second, _), _ = mutual_nearest(table, np.arange(len(table)), CONFIG.link_similarity, CONFIG.link_nearest)
    assert not np.isin(np.flatnonzero(man), np.r_[first, second]).all()  # by pairs of tracks alone some stay single
    components, sides = sides_of(faces)
    assert len({components.of_source[name] for name in sides if name.startswith("man")}) == 1
    assert len({components.person_of[track] for track in faces if track.startswith("man")}) == 1
    assert len(set(components.of_source.values())) == 201  # and nobody else is tied to anybody
    assert set(sides.values()) == {"train", "val", "test"}
    train = [faces[track] for track in names if sides[source_of(track)] == "train"]
    held_out = [faces[track] for track in names if sides[source_of(track)] != "train"]
    assert most_alike(np.stack(held_out), np.stack(train))[1].max() < CONFIG.link_similarity


def test_who_looks_like_somebody_in_single_tracks_goes_to_their_side():
    """A man of two looks that have one pair of like clips: on average the looks are not alike, so that they stay two, on one side whatever the seed."""
    rng = np.random.default_rng(0)
    looks = unit(rng.normal(size=(2, 128)))
    faces = tracks_around(rng, looks[0], "man-a", [0.2] * 14) | tracks_around(rng, looks[1], "man-b", [0.2] * 14)
    faces |= {"man-a99/0": unit(looks[0] + 0.5 * looks[1]), "man-b99/0": unit(looks[1] + 0.5 * looks[0])}
    faces |= {name: vector for name, vector in people_of(1, []).items() if not name.startswith("man")}
    config = SplitConfig(val=0.3, test=0.3, link_nearest=1)
    components, _ = sides_of(faces, config)
    man = {components.of_source[source_of(track)] for track in faces if track.startswith("man")}
    assert len(man) == 2 and len({components.families[name] for name in man}) == 1
    seen = set()
    for seed in range(12):
        _, sides = sides_of(faces, config.model_copy(update={"seed": seed}))
        mine = {side for name, side in sides.items() if name.startswith("man")}
        assert len(mine) == 1
        seen |= mine
    assert len(seen) > 1


def test_one_bad_link_does_not_tear_a_person_apart():
    """A blurred track like two people; one of them has clips that are not among anybody's nearest. All of them stay on one side."""
    rng = np.random.default_rng(0)
    first, second = unit(rng.normal(size=(2, 128)))
    faces = tracks_around(rng, first, "a", [0.2] * 25 + [0.8] * 6) | tracks_around(rng, second, "b", [0.2] * 3)
    faces |= {"blur/0": unit(first + second)} | people_of(2, [])
    components, sides = sides_of(faces)
    assert len({sides[source_of(track)] for track in faces if track[0] in "ab"}) == 1
    assert len({components.of_source[name] for name in sides if name.startswith("p")}) == 200


def test_a_family_follows_its_pin_while_it_is_small():
    samples = Counter({"a": 10, "b": 10, "c": 10, "large": 1200, "rest": 1000})
    families = {"a": "a", "b": "a", "large": "a", "c": "c", "rest": "rest"}
    config = SplitConfig(max_component=0.6, small_dataset=100)
    assert assign(samples, {"a": "train"}, config, families=families)["b"] == "train"
    assert assign(samples, {"a": "train", "b": "test"}, config, families=families)["large"] == "train"
    assert assign(samples, {"a": "test"}, config, families=families)["b"] == "test"
    tight = config.model_copy(update={"max_component": 0.54})  # large is 54 %, and b comes with it
    assert assign(samples, {"a": "test"}, tight, families=families) | {"c": "", "rest": ""} == {
        "a": "test", "b": "train", "large": "train", "c": "", "rest": "",
    }  # fmt: skip


def test_what_is_left_of_doubt_is_a_figure(tmp_path):
    """Two published people who turn out to be alike stay on their sides: the version and its card say so."""
    items = {name: source(name) for name in ("a", "b", "c", "d")}
    centroids = {"a/0": face(0), "b/0": face(0, 1), "c/0": face(2), "d/0": face(3, 2)}
    base = base_of({"a": "train", "b": "test", "c": "val"})
    config = SplitConfig(link_similarity=0.7)
    rows = [pair(name) for name in ("a", "b", "c")]
    division = divided(rows, items, centroids, base, config)
    division.write(rows, centroids, config.link_similarity, str(tmp_path), str(tmp_path))
    held = json.loads((tmp_path / "components.json").read_text())["held_out"]
    assert (held["tracks"], held["over"]) == (2, 1)  # of d, which gave no sample, nobody asks
    assert held["most_alike"][0] == {"similarity": pytest.approx(0.7071, abs=1e-3), "held_out": "b/0", "train": "a/0"}
    said = _sides(read_components(str(tmp_path)))
    assert "of 2 tracks of real faces in val and test, 1 reach 0.7" in said and "0.71" in said
    assert "as far as it reaches" in _sides(None)
    assert " in 2 components" in _components(read_components(str(tmp_path)), {"a", "b", "c"})  # a and b are one by now


def test_quotas_count_a_person_whom_faces_tell():
    def row(source, faces, sharpness, edit=1):
        return pair(source) | {
            "key": f"{source}{faces}", "from_part": source, "from_row": faces[0], "to_part": source, "to_row": faces[1], "sharpness": sharpness,
            "edit_expression": edit, "edit_intensity": 1, "step_yaw": 0, "step_pitch": 0, "step_roll": 0,
        }  # fmt: skip

    rows = [row(f"s{n}", ends, 100.0 + n, edit) for n in range(4) for ends, edit in (((0, 1), 1), ((1, 0), 0))]
    same = {f"s{n}/0": "s0/0" for n in range(4)}
    config = PairingConfig(per_identity=3, per_cell=9)

    def beyond(kept=(), person_of=same, identities=None, good=(), **changes):
        return over_quota_of_people(rows, person_of, identities or {}, kept, good, config.model_copy(update=changes))

    assert beyond() == {"s0(0, 1)", "s0(1, 0)"}  # the least sharp, with its reverse
    assert beyond(kept={"s0(0, 1)"}) == beyond(good={"s0(0, 1)"}) == {"s1(0, 1)", "s1(1, 0)"}
    assert beyond(kept=[row["key"] for row in rows[2:]], good={"s0(0, 1)"}) == {
        "s0(0, 1)",
        "s0(1, 0)",
    }  # it comes first, and has no more room
    assert {key[:2] for key in beyond(per_cell=1)} == {"s0", "s1", "s2"}
    assert beyond(person_of={}) == beyond(identities={f"s{n}": "declared" for n in range(4)}) == set()  # judged already


@pytest.mark.parametrize("base", [base_of({"b": "test", "c": "train"}), None])
def test_a_merge_beats_a_pin(base, capsys):
    """`a` was in train and is pinned to it; a person said that it is `b`, which is in test, or is pinned to it."""
    items = {"a": source("a", split="train"), "b": source("b", split="test"), "c": source("c")}
    assert divided([pair("a"), pair("b")], items, {}, base, SplitConfig(), [("a", "b")]).split_of["a"] == "test"
    assert "source a is pinned to train" in (said := capsys.readouterr().out) and "the merge of a and b counts, not the pin" in said
    tied = {"a": source("a", split="train", group="g"), "d": source("d", split="test", group="g")}
    rows = [pair("a")]
    with pytest.raises(UserError, match="source d is pinned to test, but it is tied to a source that is in train"):
        divided(rows, tied, {}, None, SplitConfig())


def test_merges_tie_over_sources_that_are_not_there():
    items = {name: source(name) for name in "abc"}
    found = components_of(items, merges=[("a", "gone"), ("gone", "b"), ("x", "y")])
    assert found == {"a": "source:a", "b": "source:a", "c": "source:c"}


def test_searches_agree_with_the_whole_product():
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(3000, 8)))
    product = vectors @ vectors.T
    owners = rng.integers(0, 1500, 3000)
    alike = (product >= 0.93) & (owners[:, None] != owners)
    place, likeness = most_alike(vectors[:50], vectors[50:])
    assert (place == product[:50, 50:].argmax(axis=1)).all()
    np.testing.assert_allclose(likeness, product[:50, 50:].max(axis=1), rtol=1e-5)
    (first, second, _), full = mutual_nearest(vectors, owners, 0.93, 3)
    assert (full == (alike.sum(axis=1) >= 3)).all()
    linked = np.zeros_like(alike)
    linked[first, second] = linked[second, first] = True
    assert linked.sum() < alike.sum()
    a, b = np.nonzero(alike & ~linked)
    assert (full[a] | full[b]).all()  # what further searches rest on
    joined = touching(vectors, owners, 0.93, len(vectors))
    a, b = np.nonzero(alike)
    assert (joined[owners[a]] == joined[owners[b]]).all()
    assert len(set(joined.tolist())) > 1


def test_no_two_groups_are_alike_in_the_end():
    faces = people_of(5, [0.3] * 15 + [1.0] * 25)
    found = find_people(faces, 0.45, 2)
    groups = {}
    for track, person in found.of_track.items():
        groups.setdefault(person, []).append(faces[track])
    means = np.stack([np.mean(group, axis=0) for group in groups.values()])
    assert (means @ means.T - 9 * np.eye(len(means))).max() < 0.45


def test_a_component_that_is_too_large_is_told_with_its_five_weakest_likenesses():
    """The weakest first; no other component's are among them, which are weaker. Seven sources in a ring, so that none is a bridge, and two apart."""
    likenesses = [0.48, 0.41, 0.46, 0.40, 0.44, 0.39, 0.43]
    alike = np.eye(9)
    for n, value in [*enumerate(likenesses), (7, 0.37)]:
        ends = (n, (n + 1) % 7) if n < 7 else (7, 8)
        alike[ends] = alike[ends[::-1]] = value
    faces = {f"{name}/0": row.astype(np.float32) for name, row in zip("abcdefgxy", np.linalg.cholesky(alike), strict=True)}
    config = SplitConfig(small_dataset=1, max_component=0.5, link_similarity=0.36)
    samples = Counter({source_of(track): 4 for track in faces})
    components = find_components(samples, {}, faces, config, samples)
    assert not components.bridges and len(components.links) == 8
    with pytest.raises(UserError, match="one component of the split, source:a, has 28 of 36 samples, over the limit of 50%") as error:
        check_sizes(Counter({"source:a": 28, "source:x": 8}), components, config)
    weakest = "f/0 = g/0 (0.39), d/0 = e/0 (0.40), b/0 = c/0 (0.41), a/0 = g/0 (0.43), e/0 = f/0 (0.44)"
    assert f"likeness; the weakest likenesses: {weakest}. Raise" in str(error.value)
    check_sizes(Counter({"source:a": 28, "source:x": 8}), components, config.model_copy(update={"max_component": 0.8}))
