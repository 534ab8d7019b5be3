"""Damaged files of a build: each is named, with what to do about it."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.groups import read_models
from data_pipeline.places import warps
from data_pipeline.published import read_manifest
from data_pipeline.rewrite import RewriteConfig, Rewriter, Wanted
from data_pipeline.sheet import read_samples
from data_pipeline.sources import ContentHashes
from data_pipeline.synthetic.sources import edit_photos
from data_pipeline.synthetic.warp import WarpConfig
from data_pipeline.worklist import item_for
from infra.errors import UserError
from lato.edits import Edit, Expression
from tests.data_pipeline.commands import spoil, told
from tests.data_pipeline.many_candidates import write_version

DERIVED, INPUT, PUBLISHED = "Delete it and run lato data build again", "restore it from a copy", "build the version again"


DAMAGED = [
    ("ledger.jsonl", ("why", "anny_0_00001"), "line 1", DERIVED),
    ("ledger.jsonl", ("report",), "line 1", DERIVED),
    ("ledger.jsonl", ("retry", "--class", "decode"), "line 1", DERIVED),
    ("ledger.jsonl", ("backfill", "fer"), "line 1", DERIVED),
    ("ledger.jsonl", ("forget", "--identity", "anny_0_00001"), "line 1", DERIVED),
    ("labels.jsonl", ("report",), "line 1", INPUT),
    ("labels.jsonl", ("forget", "--identity", "anny_0_00001"), "line 1", INPUT),
    ("merges.jsonl", ("merge", "v1", "anny_0_00001", "anny_0_00002"), "line 1", INPUT),
    ("removals.jsonl", ("forget", "--identity", "anny_0_00001"), "line 1", INPUT),
    ("lease.json", ("forget", "--identity", "anny_0_00001"), "is damaged", "Delete it if no other job"),
    ("parts/*.parquet", ("report",), "is damaged", DERIVED),
    ("parts/*.parquet", ("forget", "--identity", "anny_0_00001"), "is damaged", DERIVED),
    ("versions/v1/manifest.parquet", ("report",), "is damaged", PUBLISHED),
    ("versions/v1/manifest.parquet", ("diff", "versions/v1", "versions/v1"), "is damaged", PUBLISHED),
    ("versions/v1/candidates.parquet", ("report",), "is damaged", PUBLISHED),
    ("versions/v1/candidates.parquet", ("why", "anny_0_00001"), "is damaged", PUBLISHED),
    ("versions/v1/components.json", ("report",), "is damaged", PUBLISHED),
    ("versions/v1/funnel.json", ("report",), "is damaged", PUBLISHED),
    ("versions/v1/settings.json", ("report",), "is damaged", PUBLISHED),
    ("versions/v1/index.json", ("report",), "is damaged", PUBLISHED),
    ("versions/v1/shards/*.tar", ("forget", "--identity", "anny_0_00001"), "it is not what index.json names", PUBLISHED),
    ("synthetic/*.json", ("forget", "--identity", "anny_0_00001"), "is damaged", "the list beside it that names it"),
    ("forgetting.json", ("forget", "--identity", "anny_0_00001"), "is damaged", "forget each of those sources again"),
    ("versions/v9/index.withdrawn.json", ("forget", "--identity", "anny_0_00001"), "is damaged", "can no longer be named"),
]


@pytest.mark.parametrize(("name", "command", "where", "mend"), DAMAGED, ids=[f"{case[0]} {case[1][0]}" for case in DAMAGED])
def test_a_damaged_file_is_named_with_what_to_do(work, monkeypatch, name, command, where, mend):
    monkeypatch.chdir(work)
    for file in sorted(work.glob(name)) or [work / name]:
        spoil(file)
    at_home = () if command[0] == "diff" else ("--work-dir", str(work))
    message = told(*command, *at_home)
    assert Path(name).name.removeprefix("*") in message and where in message and mend in message


@pytest.mark.parametrize("name", ["manifest.parquet", "candidates.parquet", "funnel.json"])
def test_a_file_that_a_version_lacks_is_told(work, name):
    (work / "versions/v1" / name).unlink()
    message = told("report", "--work-dir", work)
    assert f"{name} is missing or damaged" in message and "build it again" in message


@pytest.mark.parametrize("content", [b"", b"\0", None])
def test_a_shard_that_is_damaged_or_away_is_told_to_who_asks_for_a_sample(tmp_path, content):
    folder = Path(write_version(tmp_path, 20))
    row = read_manifest(str(folder))[0]
    shard = folder / "shards" / row["shard"]
    if content is None:
        shard.unlink()
    else:
        shard.write_bytes(content * shard.stat().st_size)
    said = f"{row['shard']} is missing or damaged" if content is None else f"{row['shard']} is damaged"
    message = told("why", row["key"], "--work-dir", tmp_path)
    assert said in message and "Copy the version again" in message
    with pytest.raises(UserError, match=said):
        read_samples(str(folder), [row])


@pytest.mark.parametrize(
    ("command", "mend"),
    [
        (("forget", "--identity", "anny_0_00001", "--work-dir", "."), "Copy the version again"),
        (("export", "versions/v1", "out"), "Build it again"),
    ],
)
def test_samples_are_not_copied_out_of_shards_when_one_is_away(work, monkeypatch, command, mend):
    monkeypatch.chdir(work)
    shards = sorted(work.glob("versions/v1/shards/*.tar"))
    for shard in shards:
        shard.unlink()
    message = told(*command)
    assert "missing" in message and mend in message and any(shard.name in message for shard in shards)
    assert not (work / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("merges.jsonl", b'{"first": "a"}\n'),
        ("merges.jsonl", b"[1]\n"),
        ("removals.jsonl", b"\xff\xfe\n"),
        ("lease.json", b"{}"),
        ("lease.json", b"[]"),
        ("forgetting.json", b'{"a": 1}'),
        ("forgetting.json", b"[1]"),
        ("versions/v9/index.withdrawn.json", b"[1]"),
        ("versions/v1/index.json", b"[1]"),
        ("synthetic/x.json", b"7"),
        ("synthetic/x.json", b'{"images": 7}'),
    ],
)
def test_what_is_json_but_not_what_it_should_be_is_told_too(work, name, content):
    spoil(work / name, content)
    command = ("merge", "v1", "anny_0_00001", "anny_0_00002") if name.startswith("m") else ("forget", "--identity", "x")
    message = told(*command, "--work-dir", work)
    assert "is damaged" in message and name.rsplit("/", 1)[-1] in message


def test_a_build_tells_damaged_files_and_mends_itself_once_they_are_gone(models, tmp_path, synthetic_version, work):
    """All that a build made may be deleted: the same bytes come again."""
    from data_pipeline.split import SplitConfig
    from data_pipeline.synthetic.anny_people import AnnyConfig
    from data_pipeline.synthetic.sources import SyntheticConfig

    config = DataConfig(
        synthetic=SyntheticConfig(anny=AnnyConfig(people=12, images=4, workers=0)),
        split=SplitConfig(val=0.2, test=0.2),
        analyze={"workers": 0},
    )
    (work / "versions/v1/index.json").unlink()
    for name in ("parts/*.parquet", "columns/identity/*.parquet", "pairs/*.parquet"):
        file = spoil(sorted(work.glob(name))[0], b"PAR1 cut short PAR1")
        with pytest.raises(UserError, match=re.escape(str(file)) + " is damaged.*Delete it"):
            build_dataset(config, str(work), models, [])
        file.unlink()
    assert build_dataset(config, str(work), models, []).digest == synthetic_version.digest
    (names,) = work.glob("synthetic/people_*.json")
    for content in (b"{oops", b'{"a": 1}'):
        spoil(names, content)
        with pytest.raises(UserError, match=re.escape(str(names)) + " is damaged.*Delete it"):
            build_dataset(config, str(work), models, [])
    names.unlink()
    (work / "versions/v1/index.json").unlink()
    spoil(work / "versions/v1/index.withdrawn.json")
    with pytest.raises(UserError, match=r"index\.withdrawn\.json is damaged"):
        build_dataset(config, str(work), models, [])
    (work / "versions/v1/index.withdrawn.json").unlink()
    assert build_dataset(config, str(work), models, []).digest == synthetic_version.digest
    (work / "versions/v1/index.json").unlink()
    (file,) = work.glob("pairs/*.parquet")
    whole = file.read_bytes()
    spoil(file, whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])  # its footer is good
    with pytest.raises(UserError, match=re.escape(str(file)) + " is damaged.*Delete it"):
        build_dataset(config, str(work), models, [])


@pytest.mark.parametrize("content", [b"{oops", b"[1, 2]"])
def test_a_damaged_cache_of_hashes_is_told(tmp_path, content):
    spoil(tmp_path / "contents.json", content)
    with pytest.raises(UserError, match=r"contents\.json is damaged.*Delete it"):
        ContentHashes(str(tmp_path))


def test_a_disk_that_fails_is_no_damaged_file(tmp_path):
    from infra.state import reading

    with pytest.raises(OSError, match="Input/output"), reading("f", "delete it"):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("content", [b"{oops", b'{"answer"', b"[1]", b"{}"])
def test_a_damaged_answer_of_a_language_model_is_told(tmp_path, monkeypatch, content):
    """No other answer takes its place by itself: samples that were made of the first would change."""
    rewriter = Rewriter(RewriteConfig(endpoint="http://127.0.0.1:9/v1", picture=False), str(tmp_path))
    monkeypatch.setattr(rewriter, "_post", lambda asked: "Make the person look happy")
    wanted = [Wanted(Edit(expression=Expression.HAPPY), "p", "train", "")]
    rewriter.write(wanted)
    (file,) = (tmp_path / "rewrites").iterdir()
    spoil(file, content)
    with pytest.raises(UserError, match=re.escape(str(file)) + " is damaged.*Delete it"):
        rewriter.write(wanted)


@pytest.mark.parametrize("content", [b"{oops", b"[1]", b"{}"])
def test_a_damaged_record_of_an_edited_photo_is_told(tmp_path, clip, content):
    photos = [item_for(clip("obama"))]
    config = WarpConfig(workers=0)
    (tmp_path / "synthetic").mkdir()

    def edit():
        return edit_photos("warp", config, NoFace, photos, str(tmp_path), 0, warps())

    assert edit() == []
    (file,) = (tmp_path / "synthetic").iterdir()
    spoil(file, content)
    with pytest.raises(UserError, match=re.escape(str(file)) + " is damaged.*Delete it"):
        edit()


class NoFace:
    """An editor that finds none in any photo."""

    def edit(self, photo, seed, box):
        return []


def test_damaged_names_of_models_beside_a_column_are_told(work):
    file = sorted(work.glob("columns/identity/*.parquet"))[0]
    part, digest, *_ = file.stem.split("-")
    whole = file.with_name(f"{part}-{digest}.parquet")
    pq.write_table(pa.table({"row": [0]}), whole)  # without its metadata
    with pytest.raises(UserError, match=re.escape(str(whole)) + " is damaged.*Delete it"):
        read_models(str(work), "identity", part, digest)
