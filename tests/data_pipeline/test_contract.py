"""What stages read and what is written fit together; where they do not, it is said before a build looks at anything."""

from dataclasses import replace

import pyarrow as pa
import pytest

from data_pipeline import contract, pairing, report
from data_pipeline.config import DataConfig
from data_pipeline.contract import CANDIDATES, FILTERS, READS, Reads, check_contract, find_mistakes
from data_pipeline.groups import GROUPS
from data_pipeline.observe import observe
from data_pipeline.pairing import OBSERVED, Person, score_person


def test_the_contract_holds_for_the_report_too():
    check_contract()
    assert find_mistakes(GROUPS, [*READS, Reads("report", CANDIDATES, report._NEEDED)], FILTERS) == []
    assert {read.table for read in READS} >= {"parts", "columns/identity", "columns/surroundings", "pairs", CANDIDATES}


@pytest.mark.parametrize(("group", "column", "stage"), [("writing", "writing", "score"), ("identity", "embedding", "identities")])
def test_a_group_whose_column_is_renamed_is_found(group, column, stage):
    columns = {f"new_{name}" if name == column else name: kind for name, kind in GROUPS[group].columns.items()}
    (mistake,) = find_mistakes(GROUPS | {group: replace(GROUPS[group], columns=columns)}, READS, FILTERS)
    assert mistake == f"{stage} reads {column} of columns/{group}; groups.GROUPS does not have it"


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
    monkeypatch.setitem(pairing.OF_GROUPS, "fer", ("fer_scores",))
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
