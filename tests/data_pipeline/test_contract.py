"""What stages read and what is written fit together; where they do not, it is said before a build looks at anything."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import candidates, contract, observations, pairing, published, report, rules
from data_pipeline.config import DataConfig
from data_pipeline.contract import CANDIDATES, FILTERS, READS, Reads, check_contract, find_mistakes
from data_pipeline.groups import GROUPS
from data_pipeline.observe import observe
from data_pipeline.pairing import OBSERVED, Person, score_person
from data_pipeline.published import read_index
from tests.data_pipeline.commands import lato


def test_the_contract_holds_for_the_report_too():
    check_contract()
    assert find_mistakes(GROUPS, [*READS, Reads("report", CANDIDATES, report._NEEDED)], FILTERS) == []
    assert {read.table for read in READS} >= {"parts", "columns/identity", "columns/surroundings", "pairs", CANDIDATES}


@pytest.mark.parametrize(
    ("group", "column", "stage"),
    [("occlusion", "occlusion", "score"), ("identity", "embedding", "what is asked for"), ("writing", "writing", "what is asked for")],
)
def test_a_group_whose_column_is_renamed_is_found(group, column, stage):
    columns = {f"new_{name}" if name == column else name: kind for name, kind in GROUPS[group].columns.items()}
    (mistake,) = find_mistakes(GROUPS | {group: replace(GROUPS[group], columns=columns)}, READS, FILTERS)
    assert mistake == f"{stage} reads {column} of columns/{group}; groups.GROUPS does not have it"


@pytest.mark.parametrize(
    ("home", "schema", "column", "mistake"),
    [
        (observations, "SCHEMA", "landmarks", "score reads landmarks of parts as list<item: float>; observations.SCHEMA has it as string"),
        (pairing, "SCORE_SCHEMA", "step_yaw", "judge reads step_yaw of pairs as int16; pairing.SCORE_SCHEMA has it as string"),
        (candidates, "SCHEMA", "step_yaw", "extend reads step_yaw of candidates.parquet as int16; candidates.SCHEMA has it as string"),
        (published, "MANIFEST_SCHEMA", "json_offset", "of manifest.parquet as int64; published.MANIFEST_SCHEMA has it as string"),
    ],
)
def test_a_column_of_another_type_is_found_before_a_build_begins(monkeypatch, tmp_path, home, schema, column, mistake):
    known = getattr(home, schema)
    monkeypatch.setattr(home, schema, known.set(known.get_field_index(column), pa.field(column, pa.string())))
    assert any(mistake in found for found in find_mistakes(GROUPS, READS, FILTERS))
    gone = known.remove(known.get_field_index(column))
    monkeypatch.setattr(home, schema, gone)
    assert any(f"{column} of" in found and "does not have it" in found for found in find_mistakes(GROUPS, READS, FILTERS))
    monkeypatch.setattr(home, schema, known.set(known.get_field_index(column), pa.field(column, pa.string())))
    with pytest.raises(AssertionError, match="has it as string"):
        observe(DataConfig(folder=str(tmp_path / "nothing")), str(tmp_path / "work"), tmp_path)
    assert not (tmp_path / "work").exists()


def test_a_group_that_writes_another_type_is_found():
    other = replace(GROUPS["occlusion"], columns={"occlusion": pa.string()})
    (mistake,) = find_mistakes(GROUPS | {"occlusion": other}, READS, FILTERS)
    assert mistake == "score reads occlusion of columns/occlusion as float; groups.GROUPS has it as string"


def test_who_reads_a_column_says_as_what():
    (mistake,) = find_mistakes(GROUPS, [*READS, Reads("report", "parts", ("brightness",))], FILTERS)
    assert mistake == "report reads brightness of parts; contract.TYPES does not say as what"


def test_what_is_published_is_as_it_is_said_to_be(built, work):
    """Of a build, after something was forgotten, and of a view: no type depends on which values there are."""
    lato("forget", "--identity", "anny_0_00001", "--work-dir", work)
    for folder in (Path(built[1].uri), work / "versions/v1", work / "versions/left"):
        index = read_index(str(folder))
        assert pq.read_schema(folder / index["manifest"]).equals(published.MANIFEST_SCHEMA)
        if "candidates" in index:
            schema = pq.read_schema(folder / index["candidates"])
            assert (schema.names, schema.types) == (candidates.SCHEMA.names, candidates.SCHEMA.types)
    assert "revision" in read_index(str(work / "versions/v1"))


def test_a_group_that_is_gone_and_a_column_that_nobody_observes_are_found():
    fewer = {name: group for name, group in GROUPS.items() if name != "surroundings"}
    assert [mistake.split(";")[0] for mistake in find_mistakes(fewer, READS, FILTERS)] == [
        f"score reads {name} of columns/surroundings" for name in ("background", "clothing")
    ]
    (mistake,) = find_mistakes(GROUPS, [*READS, Reads("groups", "parts", ("chip", "depth"))], FILTERS)
    assert mistake == "groups reads depth of parts; observations.SCHEMA does not have it"


@pytest.mark.parametrize(("column", "other"), [("occlusion", "group occlusion"), ("sharpness", "observations"), ("row", "observations")])
def test_two_that_write_one_column_are_found(column, other):
    second = replace(GROUPS["fer"], columns={"fer_scores": pa.list_(pa.float32()), column: pa.float32()})
    assert find_mistakes(GROUPS | {"fer": second}, READS, FILTERS) == [f"{column} is written by {other} and group fer; rename one"]


def test_a_filter_on_a_score_that_no_stage_writes_is_found():
    (mistake,) = find_mistakes(GROUPS, READS, FILTERS | {"dull": "dullness"})
    assert mistake == "the filter dull asks for dullness; pairing.SCORES does not have it"


def test_a_group_that_is_read_without_a_warning_is_found(monkeypatch):
    monkeypatch.delitem(rules.READ_FROM, "fer")
    (mistake,) = find_mistakes(GROUPS, READS, FILTERS)
    assert "group fer in rules.READ_FROM" in mistake


def test_a_build_does_not_begin(monkeypatch, tmp_path):
    work = tmp_path / "work"
    monkeypatch.setattr(contract, "FILTERS", FILTERS | {"dull": "dullness"})
    with pytest.raises(AssertionError, match="the filter dull asks for dullness"):
        observe(DataConfig(folder=str(tmp_path / "nothing")), str(work), tmp_path)
    assert not work.exists()


def test_a_column_that_is_not_declared_does_not_pass_for_one_without_value():
    face = dict.fromkeys(OBSERVED) | {"source_id": "s", "landmarks": list(range(136)), "width": 640}
    del face["height"]
    with pytest.raises(KeyError, match="height"):
        score_person(Person("p", "same_track", [face, face]), 2.1)
