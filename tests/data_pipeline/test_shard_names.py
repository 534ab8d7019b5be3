"""Names of shards: no file that an index names is written over, whatever became of the version that is extended."""

from pathlib import Path

import pytest

from data_pipeline.card import write_card
from data_pipeline.extend import Base, TakenOut
from data_pipeline.forget_versions import shrink, tidy
from data_pipeline.pack import PackConfig, Planned, pack
from data_pipeline.published import read_index, read_manifest, read_members
from data_pipeline.removals import Removals, hash_name
from data_pipeline.verify import verify_version
from tests.data_pipeline.many_candidates import write_version
from tests.training.versions import make_pair


def shards_of(folder):
    return [shard["name"] for shard in read_index(folder)["shards"]]


def removed(*sources):
    return Removals(frozenset(map(hash_name, sources)), frozenset(), frozenset())


def take_out(folder, removals):
    """As `forget` does with a version."""
    assert shrink(folder, removals, True)
    tidy(folder, removals, True)


def extended(base, name, gone=frozenset()):
    """A version with one more sample; without some samples of its base, as after a merge."""
    folder, number = f"{base.rsplit('/', 1)[0]}/{name}", 90 + int(name[1:])
    columns = {"source_id": f"s{number}", "identity": f"p{number}", "licence": "test", "kind": "synthetic", "edit_kind": "expression"}
    columns["instruction"] = make_pair(number, "train").meta.instruction
    rows = [row for row in read_manifest(base) if row["key"] not in gone]
    state = Base("w", base, read_index(base), rows, {key: TakenOut("split conflict", "train", ()) for key in gone})
    new = Planned(f"k00{number}", "train", lambda: (columns, make_pair(number, "train")))
    pack([new], PackConfig(), folder, name, "test", state)
    Path(folder, "candidates.parquet").write_bytes(Path(base, read_index(base)["candidates"]).read_bytes())
    write_card(folder)
    return folder


def members_of(folder):
    return {row["key"]: read_members(folder, row) for row in read_manifest(folder)}


@pytest.mark.parametrize("emptied_by", ["forgetting", "merging"])
def test_a_new_shard_is_not_written_over_one_of_a_version_that_lost_a_shard(tmp_path, emptied_by):
    base = write_version(tmp_path, 60)
    lost = [row for row in read_manifest(base) if row["shard"] == "train-000000.tar"]
    if emptied_by == "forgetting":
        take_out(base, removed(*(row["source_id"] for row in lost)))
    else:
        take_out(base, removed(lost[0]["source_id"]))  # the shard is a revised one when the merge empties it
        base = extended(base, "v2", {row["key"] for row in lost})
    old, version = members_of(base), extended(base, "v3")
    new = members_of(version)
    assert new == old | {"k0093": new["k0093"]} and len(new) == len(old) + 1
    assert len(shards_of(version)) == len(set(shards_of(version))) == len(shards_of(base)) + 1
    assert verify_version(version) == [] == verify_version(base)


def test_an_extension_of_a_version_with_revised_shards_writes_over_none_of_them(tmp_path):
    """Until the new index is there, readers and a rerun go by the old one: its shards keep their bytes."""
    first = write_version(tmp_path, 60)
    one, other, _ = [row["source_id"] for row in read_manifest(first) if row["shard"] == "train-000000.tar"]
    take_out(first, removed(one))
    second = extended(first, "v2")
    assert "train-000000.r1.tar" in shards_of(second) and "revision" not in read_index(second)
    whole, before = {shard: Path(second, "shards", shard).read_bytes() for shard in shards_of(second)}, members_of(second)
    also = next(row for row in read_manifest(second) if row["shard"] == "train-000001.tar")
    assert shrink(second, removed(one, other, also["source_id"]), True) == 2
    assert {shard: Path(second, "shards", shard).read_bytes() for shard in whole} == whole
    tidy(second, removed(one, other, also["source_id"]), True)
    assert members_of(second) == {key: members for key, members in before.items() if key not in (f"k000{other[1:]}", also["key"])}
    assert verify_version(second) == [] == verify_version(first)
