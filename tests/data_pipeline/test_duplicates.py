"""Of sources with one content under several names one is used: which, and what else is said of them; and what forgetting makes of it."""

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

import data_pipeline.worker as worker_module
from data_pipeline.analyze import analyze
from data_pipeline.build import build_dataset
from data_pipeline.duplicates import duplicates_of, find_duplicates
from data_pipeline.extend import read_components
from data_pipeline.forget import forget, sources_like
from data_pipeline.image_set import commit_set, content_sha256
from data_pipeline.observe import observe
from data_pipeline.published import read_manifest
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.sources import ContentHashes
from data_pipeline.synthetic.sources import synthetic_sources
from data_pipeline.verify import verify_version
from data_pipeline.why import why
from data_pipeline.worklist import WorkItem, item_for
from infra.errors import UserError
from tests.data_pipeline.crash_chain import CONFIG
from tests.data_pipeline.small import read_candidates
from tests.data_pipeline.test_forget import all_text_of
from tests.data_pipeline.test_forget_ends import EDITED


def source(name, **columns):
    return WorkItem(**({"source_id": name, "uri": f"{name}.mp4", "kind": "video"} | columns))


def test_what_is_the_same_does_not_depend_on_order():
    """Other spans, boxes and kinds of one content are other work; empty and unreadable files are no copies of each other."""
    spans = [source("s1", start=0.0, end=2.0), source("s2", start=2.0, end=4.0), source("s3", end=2.0), source("boxed", box=(0, 0, 1, 1))]
    items = [source(name) for name in ("c", "a", "b")] + spans + [source("photo", kind="image"), source("e1"), source("e2"), source("g1")]
    contents = dict.fromkeys((item.source_id for item in items), "x") | {"e1": EMPTY, "e2": EMPTY, "g1": None}
    for seed in range(5):
        random.Random(seed).shuffle(items)
        assert find_duplicates(items, contents) == {"b": "a", "c": "a", "s3": "s1"}
        assert find_duplicates(items, contents, {"c"}) == {"a": "c", "b": "c", "s3": "s1"}
        assert find_duplicates(items, contents, {"b", "c", "s1", "s3"}) == {"a": "b"}  # both were published before: both stay


EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_equal_contents_of_which_different_things_are_said_are_mistakes_and_all_are_told(models, tmp_path):
    items = [source("a", identity="x", licence="MIT"), source("b", licence="CC0"), source("c", split="test"), source("d")]
    items += [source("e", consent="given"), source("f"), source("g"), source("h", group="another", url="https://b.example")]
    contents = dict(zip("abcdefgh", "11223344", strict=True))
    with pytest.raises(UserError) as told:
        find_duplicates(items, contents)
    assert str(told.value).split("\n")[1:] == [
        "  a, b: identity None or x, licence CC0 or MIT",
        "  c, d: split None or test",
        "  e, f: consent given or unknown",
    ]
    assert find_duplicates(items[-2:], contents) == {"h": "g"}
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"same")
    given = [item_for(str(tmp_path / f"{name}.jpg"), identity=name) for name in "ab"]
    with pytest.raises(UserError, match="a, b: identity a or b"):
        analyze(given, AnalyzeConfig(workers=0), models, str(tmp_path / "w"))
    assert not (tmp_path / "w/parts").exists()


def test_two_generated_people_never_collide(tmp_path):
    """Though every picture of theirs were the same: a set says whose it is."""
    names = [commit_set([(b"one picture", None)], {"seed": 0, "person": number}, str(tmp_path)) for number in range(2)]
    assert len({content_sha256(str(tmp_path / "synthetic" / name)) for name in names}) == 2


@pytest.fixture(scope="module")
def built(models, clip, tmp_path_factory):
    """A clip under two names; which files were opened."""
    folder = tmp_path_factory.mktemp("twice")
    for name in ("first", "second"):
        shutil.copyfile(clip("single_face"), folder / f"{name}.mp4")
    opened, real = [], worker_module.sample_frames
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "sample_frames", lambda path, *rest: opened.append(Path(path).stem) or real(path, *rest))
        items = [item_for(str(folder / f"{name}.mp4"), licence="test") for name in ("second", "first")]
        version = build_dataset(CONFIG, str(folder / "w"), models, items)
    return folder, items, version, opened


def test_the_second_is_rejected_and_not_looked_at(built):
    folder, _, version, opened = built
    rows = {row["source_id"]: row for row in map(json.loads, (folder / "w/ledger.jsonl").read_text().splitlines())}
    assert rows["first"]["status"] == "ok"
    assert (rows["second"]["status"], rows["second"]["reason"], rows["second"]["message"]) == (
        "rejected",
        "duplicate",
        "same content as first",
    )
    assert opened == ["first"]
    assert {"step": "sources", "name": "rejected: duplicate", "count": 1} in version.funnel
    ends = {row[end] for row in read_candidates(version.uri) for end in ("source_id", "target_id")}
    assert "first" in ends and "second" not in ends
    assert why("second", str(folder / "w"))[0] == "source second: rejected (duplicate): same content as first"


def test_people_in_one_content_under_two_names_go_to_one_side(models, clip, tmp_path):
    """They are no duplicates, as each has a span of its own; here no recognizer ties them either."""
    items = []
    for name, span in (("first", {"end": 1.2}), ("second", {"start": 1.2})):
        shutil.copyfile(clip("single_face"), tmp_path / f"{name}.mp4")
        items.append(item_for(str(tmp_path / f"{name}.mp4"), licence="test", identity=name, **span))
    version = build_dataset(
        CONFIG.model_copy(update={"split": CONFIG.split.model_copy(update={"link_similarity": 2.0})}), str(tmp_path / "w"), models, items
    )
    found = read_components(version.uri)["components"]
    assert found["first"] == found["second"]


@pytest.mark.parametrize("named", ["first", "second"])
def test_with_one_its_duplicate_is_forgotten(built, models, tmp_path, named):
    """Or the same content would come back under another name."""
    folder, items, _, _ = built
    work = shutil.copytree(folder / "w", tmp_path / "w")
    assert duplicates_of(str(work), [named]) == {"first", "second"} - {named}
    done = forget(str(work), source=named)
    assert done.sources == 2 and done.samples["v1"] > 0
    assert not any('"first"' in all_text_of(path) or "as first" in all_text_of(path) for path in work.rglob("*") if path.is_file())
    again = build_dataset(CONFIG, str(work), models, items)
    assert not {"first", "second"} & {row["source_id"] for row in read_candidates(again.uri)}
    assert verify_version(again.uri) == []
    assert duplicates_of(str(work), ["first"]) == set()


def test_forgetting_a_person_by_a_photo_takes_the_duplicates_too(models, clip, tmp_path):
    for name in ("first", "second"):
        shutil.copyfile(clip("obama"), tmp_path / f"{name}.jpg")
    items = [item_for(str(tmp_path / f"{name}.jpg")) for name in ("first", "second")]
    items += [item_for(clip("biden"))]
    with suppress(UserError):  # two photos make no pair
        build_dataset(CONFIG, str(tmp_path / "w"), models, items)
    alike = sources_like(str(tmp_path / "w"), clip("obama"), models)
    assert forget(str(tmp_path / "w"), sources=[name for name, _ in alike]).sources == 2
    observed = observe(CONFIG, str(tmp_path / "w"), models, items)
    assert {"first", "second", "biden"} & set(observed.items) == {"biden"}


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_equal_photos_one_is_edited_whatever_their_order(models, clip, tmp_path, names):
    for name in names:
        shutil.copyfile(clip("obama"), tmp_path / f"{name}.jpg")
    photos = [item_for(str(tmp_path / f"{name}.jpg")) for name in names]
    made = synthetic_sources(EDITED.synthetic, photos, models, str(tmp_path / "w"))
    assert len({item.uri for item in made}) == 1 and json.loads(Path(made[0].uri).read_text())["generator"]["of"] == "a"
    hashes = ContentHashes(str(tmp_path / "w"))
    items = photos + made
    assert find_duplicates(items, {item.source_id: hashes.of(item) for item in items}) == {"b": "a", "b_warp": "a_warp"}


def test_an_extension_keeps_what_it_extends_and_new_names_are_its_duplicates(built, models, tmp_path):
    """The version has `second`; `first` comes later, and would be before it by name."""
    _, items, _, _ = built
    work = str(tmp_path / "w")
    version = build_dataset(CONFIG, work, models, items[:1])
    extended = build_dataset(CONFIG.model_copy(update={"name": "v2", "extends": "v1"}), work, models, items)
    before, after = ({row["key"]: row for row in read_manifest(uri)} for uri in (version.uri, extended.uri))
    assert all(after[key] == row for key, row in before.items())
    assert "second" in {row["source_id"] for row in after.values()} and "first" not in {row["source_id"] for row in after.values()}
    assert why("first", work, "v2")[0] == "source first: rejected (duplicate): same content as second"


def test_another_url_is_another_version(built, models, tmp_path):
    folder, items, version, _ = built
    work = str(shutil.copytree(folder / "w", tmp_path / "w"))
    again = build_dataset(CONFIG, work, models, [item.model_copy(update={"url": "https://a.example"}) for item in items])
    assert again.digest != version.digest
    assert {row["url"] for row in read_manifest(again.uri) if row["kind"] == "video"} == {"https://a.example"}
