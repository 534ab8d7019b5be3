"""A clip that comes again, compressed once more, scaled, cropped or cut, is one source; other moments of the same person are not."""

import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import data_pipeline.accept as accept_module
import data_pipeline.divide as divide_module
import data_pipeline.split as split_module
from data_pipeline.analyze import analyze
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.copies import FILE, Copy, copies_of, find_copies, read_copies, write_copies
from data_pipeline.diff import diff_versions
from data_pipeline.forget import forget
from data_pipeline.holdout import HoldoutConfig
from data_pipeline.motion import Track, compare_tracks
from data_pipeline.observations import commit_part
from data_pipeline.pack import read_manifest
from data_pipeline.report import write_data_report
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.verify import verify_version
from data_pipeline.why import explain, why
from data_pipeline.worklist import WorkItem, item_for
from infra.errors import UserError
from infra.storage import sha256_file
from tests.data_pipeline.small import read_candidates
from tests.data_pipeline.videos import altered

PAIRING = PairingConfig(max_upscale=9.0, min_sharpness=3.0, min_agreement=0.0)
CONFIG = DataConfig(analyze=AnalyzeConfig(workers=0), pairing=PAIRING)


def walk(seed, seconds=20.0, fps=5.0, noise=0.0, start=0.0, still=False):
    """Observed rows of a face that moves at random, smoothly: (times, landmarks, blendshapes). Its own time begins at 0."""
    drawn = np.random.default_rng(seed)
    knots = np.arange(0, 61, 0.5)
    mean = drawn.normal(size=136) + 40 * np.tile(np.array([np.cos(np.arange(68)), np.sin(np.arange(68))]).T, 1).reshape(-1)
    turns, gain = drawn.normal(size=(len(knots), 6)), drawn.normal(size=(6, 188)) * np.r_[np.full(136, 1.0), np.full(52, 0.06)]
    times = np.arange(0, seconds, 1 / fps)
    moved = np.stack([np.interp(times + start, knots, turns[:, n]) for n in range(6)], axis=1) @ gain * (0 if still else 1)
    shaken = np.random.default_rng((seed, 1, int(1000 * start))).normal(size=moved.shape) * noise * np.r_[np.ones(136), np.full(52, 0.06)]
    both = moved + shaken
    return times, mean + both[:, :136], 0.3 + both[:, 136:]


def observe_rows(work, name, *tracks):
    rows = []
    for number, (times, points, shapes) in enumerate(tracks):
        rows += [
            {
                "source_id": name,
                "track": number,
                "pts": float(t),
                "landmarks": p.tolist(),
                "blendshapes": b.tolist(),
                "representative": False,
            }
            for t, p, b in zip(times, points, shapes, strict=True)
        ]
    commit_part(str(work), name, rows, {"source_id": name}, {})


def find(work, sources, published=(), identities=None, components=None, fps=5.0):
    """Copies among sources given as tracks; the same in every order of the list."""
    for name, tracks in sources.items():
        observe_rows(work, name, *tracks)
    answers = []
    for seed in range(3):
        names = sorted(sources)
        random.Random(seed).shuffle(names)
        items = {n: WorkItem(source_id=n, uri=n, kind="video", identity=(identities or {}).get(n)) for n in names}
        of = {n: (components or {}).get(n, "one") for n in names}
        answers.append(find_copies(of, items, {n: [n] for n in names}, published, fps, str(work), []))
    assert all(answer == answers[0] for answer in answers)
    return {name: copy.of for name, copy in answers[0].items()}, answers[0]


def test_a_trimmed_noisy_copy_is_found_at_its_offset_and_other_moments_are_not(tmp_path):
    found, copies = find(tmp_path, {"a": [walk(0)], "b": [walk(0, 14, noise=0.15, start=3.13)], "c": [walk(0, start=25)], "d": [walk(1)]})
    assert found == {"b": "a"}
    assert copies["b"].out_of == 64 or copies["b"].out_of == 65
    assert copies["b"].moments > 0.8 * copies["b"].out_of and copies["b"].offset == pytest.approx(-3.1, abs=0.11)


def test_landmarks_may_be_scaled_and_shifted(tmp_path):
    times, points, shapes = walk(0)
    assert find(tmp_path, {"a": [walk(0)], "b": [(times, 0.4 * points + 17, shapes)]})[0] == {"b": "a"}


def test_what_was_compared_is_not_compared_again(tmp_path):
    """As long as nobody is new; parts that are not there show that none is read."""
    items = {name: WorkItem(source_id=name, uri=name, kind="video") for name in "abc"}
    of = dict.fromkeys("abc", "one")
    assert find_copies(of, items, {"a": ["gone"], "b": ["gone"]}, (), 5.0, str(tmp_path), [{"a", "b", "d"}]) == {}
    with pytest.raises(FileNotFoundError):
        find_copies(of, items, {name: ["gone"] for name in "abc"}, (), 5.0, str(tmp_path), [{"a", "b", "d"}])


def test_a_segment_without_a_face_says_nothing(tmp_path):
    """A long video is looked at in pieces, of which one may show nobody."""
    for name, start in (("a", 0.0), ("b", 2.0)):
        observe_rows(tmp_path, name, walk(0, start=start))
    observe_rows(tmp_path, "empty")
    items = {name: WorkItem(source_id=name, uri=name, kind="video") for name in "ab"}
    parts = {"a": ["empty", "a"], "b": ["b", "empty"]}
    assert {name: copy.of for name, copy in find_copies(dict.fromkeys("ab", "one"), items, parts, (), 5.0, str(tmp_path), []).items()} == {
        "b": "a"
    }


def test_a_face_that_does_not_move_says_nothing(tmp_path):
    assert find(tmp_path, {name: [walk(0, noise=0.1, start=n, still=True)] for n, name in enumerate("abc")})[0] == {}


def test_too_short_says_nothing_and_half_of_the_shorter_is_asked_for(tmp_path):
    assert find(tmp_path / "short", {"a": [walk(0, 1.7)], "b": [walk(0, 1.7)]})[0] == {}
    overlapping = {"a": [walk(0, 20)], "b": [walk(0, 20, start=7)], "c": [walk(0, 20, start=15)]}
    assert find(tmp_path / "part", overlapping)[0] == {"b": "a"}  # what b alone would join with a is not joined over it


def test_which_stays_depends_on_names_and_on_what_is_published(tmp_path):
    same = {name: [walk(0, noise=0.02, start=0)] for name in "abc"}
    assert find(tmp_path / "1", same)[0] == {"b": "a", "c": "a"}
    assert find(tmp_path / "2", same, published={"b"})[0] == {"a": "b", "c": "b"}
    assert find(tmp_path / "3", same, published={"b", "c"})[0] == {"a": "b"}
    assert find(tmp_path / "4", same, identities={"a": "p", "b": "q"})[0] == {"c": "a"}  # a and b: a recognizer alone may tie them
    assert find(tmp_path / "5", same, components={"a": "two"})[0] == {"c": "b"}


def test_of_two_people_in_a_clip_both_count(tmp_path):
    """Tracks of one source are added at one offset; one person of two is half of the moments."""
    both = [walk(0), walk(1)]
    assert find(tmp_path / "1", {"a": both, "b": both[::-1]})[1]["b"].out_of == 2 * 94 + 2
    assert find(tmp_path / "2", {"a": both, "b": [walk(1)], "c": [walk(2), walk(3), walk(1)]})[0] == {"b": "a", "c": "a"}


def test_few_frames_a_second_are_enough_where_the_copy_begins_at_a_frame(tmp_path):
    assert find(tmp_path, {"a": [walk(0, 50, 1.0)], "b": [walk(0, 40, 1.0, start=5)]}, fps=1.0)[0] == {"b": "a"}


def test_blocks_of_every_length_find_what_pairs_alone_find():
    """One that lies in many blocks, of tracks from 6 to 400 moments: each is found in the longest, at its place."""
    drawn = np.random.default_rng(0)
    whole = drawn.normal(size=(400, 188)).astype(np.float16)
    cuts = [(int(drawn.integers(0, 300)), int(drawn.integers(6, 100))) for _ in range(100)]
    tracks = [Track(0, (0, 0), (whole, whole))]
    tracks += [Track(n, (0, 0), (whole[at : at + long], whole[at : at + long])) for n, (at, long) in enumerate(cuts, 1)]
    found = {a or b: (one, -1 if a else 1) for a, b, one in compare_tracks(tracks) if 0 in (a, b)}
    assert found.keys() == {n for n, _ in enumerate(cuts, 1)}
    for n, (at, long) in enumerate(cuts, 1):
        one, sign = found[n]
        assert abs(sign * one.offset + 2 * at) <= 1 and one.moments == long


def test_copies_of_copies_are_forgotten_together(tmp_path):
    write_copies({"b": Copy("a", 9, 10, 0.0), "c": Copy("a", 9, 10, 0.0)}, str(tmp_path / "v1"))
    write_copies({"d": Copy("c", 9, 10, 0.0)}, str(tmp_path / "v2"))
    folders = [str(tmp_path / name) for name in ("v1", "v2", "v3")]
    assert copies_of(folders, ["d"]) == {"a", "b", "c"} and copies_of(folders, ["x"]) == set()
    for damaged in ("{", '{"b": {"of": "a"}}'):
        (tmp_path / "v2" / FILE).write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            read_copies(folders[1])
    (tmp_path / "v2" / FILE).unlink()
    write_copies({}, folders[0])
    assert not (tmp_path / "v1" / FILE).exists() and copies_of(folders, ["a"]) == set()


NAMES = ("first", "second")


@pytest.fixture(scope="module")
def twice(models, clip, tmp_path_factory):
    """A clip, it once more as somebody else has it, and another clip; a version of them."""
    folder = tmp_path_factory.mktemp("again")
    shutil.copyfile(clip("carphone"), folder / "first.mp4")
    altered(clip("carphone"), folder / "second.mp4", crop=0.04)
    shutil.copyfile(clip("single_face"), folder / "third.mp4")
    items = [item_for(str(folder / f"{name}.mp4"), licence="test", identity="p" if name == "first" else None) for name in (*NAMES, "third")]
    return folder / "w", items, build_dataset(CONFIG, str(folder / "w"), models, items)


def verdicts(uri):
    found = {name: Counter() for name in (*NAMES, "third")}
    for row in read_candidates(uri):
        found[row["source_id"]][row["verdict"]] += 1
    return found


def samples(uri):
    return {row["key"]: (row["split"], row["source_id"]) for row in read_manifest(uri)}


def test_a_copy_gives_no_sample_and_quotas_and_split_count_without_it(twice, models, tmp_path):
    work, items, version = twice
    assert {name: copy.of for name, copy in read_copies(version.uri).items()} == {"second": "first"}
    found = verdicts(version.uri)
    assert found["second"]["near-duplicate"] and not found["second"].keys() & {"accepted", "quota", "render failed"}
    alone = build_dataset(CONFIG, str(tmp_path / "w"), models, [items[0], items[2]])
    assert samples(version.uri) == samples(alone.uri) and "first" in {source for _, source in samples(version.uri).values()}
    assert verify_version(version.uri) == []
    backwards = build_dataset(CONFIG, str(tmp_path / "backwards"), models, items[::-1])
    assert backwards.digest == version.digest
    assert (Path(backwards.uri) / FILE).read_bytes() == (Path(version.uri) / FILE).read_bytes()


def test_why_report_and_funnel_tell_of_it(twice):
    work, _, version = twice
    said = why("second", str(work))
    assert said[0] == "source second: ok" and any(
        "it shows the clip of first: faces move alike in 15 of 15 moments" in line for line in said
    )
    assert not any("it shows the clip" in line for line in why("first", str(work)))
    assert {"step": "sources", "name": "rejected: near-duplicate", "count": 1} in version.funnel
    counts = {(row["step"], row["name"]): row["count"] for row in version.funnel}
    assert sum(count for (step, name), count in counts.items() if step == "sources" and name != "in") == counts["sources", "in"] == 3
    page = Path(write_data_report(str(work))).read_text()
    assert "second" in page and "shows the clip of first" in page


def test_without_near_duplicates_both_are_used_and_diff_says_why_one_went(twice, models, tmp_path):
    work, items, version = str(shutil.copytree(twice[0], tmp_path / "w")), twice[1], twice[2]
    apart = CONFIG.model_copy(update={"name": "apart", "pairing": PAIRING.model_copy(update={"near_duplicate_bits": -1})})
    both = build_dataset(apart, work, models, items)
    assert verdicts(both.uri)["second"]["accepted"] and read_copies(both.uri) == {}
    again = build_dataset(CONFIG, work, models, items)
    assert again.digest == version.digest
    done = diff_versions(both.uri, again.uri)
    assert set(done["removed_because"]) == {"near-duplicate"}
    assert "second" not in {samples(again.uri)[key][1] for key in done["added"]}  # the copy had used up some of a person's quotas


@pytest.mark.parametrize("given", [0, 1])
def test_what_is_published_stays_and_its_copy_adds_nothing(twice, models, tmp_path, given):
    work, items = str(shutil.copytree(twice[0], tmp_path / "w")), twice[1]
    base = build_dataset(CONFIG.model_copy(update={"name": "base"}), work, models, [items[given]])
    extended = build_dataset(CONFIG.model_copy(update={"name": "more", "extends": "base"}), work, models, items[:2])
    assert samples(base.uri) == samples(extended.uri) != {}
    assert {name: copy.of for name, copy in read_copies(extended.uri).items()} == {NAMES[1 - given]: NAMES[given]}


@pytest.mark.parametrize(("how", "bits"), [("identities", -1), ("sha256", 10)])
def test_with_what_is_held_out_its_copy_is(twice, models, tmp_path, how, bits):
    """It has another name and another content, and was trained on in its place. Told by faces (bits=-1), and by the hashes of pictures too."""
    items, named = twice[1], {"identities": "p", "sha256": sha256_file(str(twice[0].parent / "first.mp4"))}[how]
    barred = CONFIG.model_copy(update={"name": "barred", "holdout": HoldoutConfig(**{how: (named,)}, bits=bits)})
    version = build_dataset(barred, str(shutil.copytree(twice[0], tmp_path / "w")), models, items)
    found = verdicts(version.uri)
    for name in NAMES:
        assert found[name]["held out"] and not found[name].keys() & {"accepted", "quota", "near-duplicate", "render failed"}
    assert {source for _, source in samples(version.uri).values()} == {"third"} and not found["third"]["held out"]
    counts = {(row["step"], row["name"]): row["count"] for row in version.funnel}
    assert counts["candidate pairs", "rejected: held out"] == sum(found[name]["held out"] for name in NAMES)
    row = next(row for row in read_candidates(version.uri) if row["source_id"] == "second" and row["verdict"] == "held out")
    assert ("evaluation sets", "in one", "in none", "failed") in explain(row, PAIRING)
    backwards = build_dataset(barred, str(shutil.copytree(twice[0], tmp_path / "backwards")), models, items[::-1])
    assert backwards.digest == version.digest


@pytest.mark.parametrize("asked", [{"source": "first"}, {"source": "second"}, {"identity": "p"}])
def test_with_one_the_other_is_forgotten(twice, models, tmp_path, asked):
    """By whatever option: the same pictures would come in its place. What is left of the list of copies names neither."""
    work, items = str(shutil.copytree(twice[0], tmp_path / "w")), twice[1]
    done = forget(work, **asked)
    assert done.sources == 2 and done.samples["v1"] > 0
    assert not any(b'"second"' in path.read_bytes() or b'"first"' in path.read_bytes() for path in Path(work).rglob("*.json*"))
    again = build_dataset(CONFIG, work, models, items)
    assert {source for _, source in samples(again.uri).values()} == {"third"} and not (Path(again.uri) / FILE).exists()


def test_a_pin_of_a_copy_holds_for_what_stays(twice, models, tmp_path):
    """What is declared of a source that is not used is not lost."""
    pinned = [twice[1][0], twice[1][1].model_copy(update={"split": "test"}), twice[1][2]]
    work = str(shutil.copytree(twice[0], tmp_path / "w"))
    version = build_dataset(CONFIG.model_copy(update={"name": "pinned"}), work, models, pinned)
    assert {split for split, source in samples(version.uri).values() if source == "first"} == {"test"}


def test_a_component_that_is_too_large_is_told_before_its_many_videos_are_compared(twice, models, tmp_path, monkeypatch):
    """Hours would go by; what the quotas of an undeclared person take away is not counted."""
    monkeypatch.setattr(accept_module, "_MANY", 2)
    nobody = [item.model_copy(update={"identity": None}) for item in twice[1]]
    work, counted = str(tmp_path / "w"), []

    def check_sizes(samples, components, config):
        counted.append(max(samples.values()) / samples.total())
        split_module.check_sizes(samples, components, config)

    def build(name, limit, items=nobody):
        limited = CONFIG.model_copy(update={"name": name, "split": SplitConfig(small_dataset=1, max_component=limit)})
        return build_dataset(limited, work, models, items)

    monkeypatch.setattr(divide_module, "check_sizes", check_sizes)
    build("measured", 1.0)
    before_comparing = counted[0]  # not written here: how many pairs pass depends on the processor's last digits
    assert {name: copy.of for name, copy in read_copies(build("allowed", before_comparing).uri).items()} == {"second": "first"}
    monkeypatch.setattr(accept_module, "find_copies", lambda *given: pytest.fail("they were compared"))
    with pytest.raises(UserError, match=r"one component of the split, source:first, has (\d+) of \1 samples"):
        build("large", before_comparing, [item.model_copy(update={"group": "all"}) for item in nobody])
    monkeypatch.setattr(accept_module, "_over_quotas", lambda *given: {})
    with pytest.raises(UserError, match="one component of the split, source:first, has"):
        build("without-quotas", before_comparing)


def test_other_moments_of_one_man_and_his_mirror_image_are_no_copies(models, clip, tmp_path):
    pieces = {
        "early": {"seconds": 2.0},
        "late": {"start": 2.0},
        "mirrored": {"mirror": True},
        "still": {"still": True},
        "frozen": {"start": 1.0, "still": True},
    }
    items = []
    for name, how in pieces.items():
        items.append(item_for(altered(clip("carphone"), tmp_path / f"{name}.mp4", **how), licence="test", group="g"))
    ledger = analyze(items, CONFIG.analyze, models, str(tmp_path / "w"))
    parts = {row["source_id"]: row["parts"] for row in ledger.rows if row["status"] == "ok"}
    assert parts.keys() == pieces.keys()
    assert find_copies(dict.fromkeys(pieces, "g"), {item.source_id: item for item in items}, parts, (), 5.0, str(tmp_path / "w"), []) == {}
