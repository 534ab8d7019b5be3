"""`lato data backfill` and `lato data worklist` as a user types them."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_pipeline.analyze import analyze, write_ledger
from data_pipeline.groups import GroupsConfig
from data_pipeline.observations import part_uri
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for, read_worklist, write_worklist
from infra.cli import app
from infra.errors import UserError
from tests.data_pipeline.commands import lato, told


def test_parts_that_a_retry_took_away_are_told_and_the_others_computed(models, clip, tmp_path):
    work = str(tmp_path)
    items = [item_for(clip(name)) for name in ("obama", "biden")]
    ledger = analyze(items, AnalyzeConfig(workers=0, groups=GroupsConfig(names=())), models, work)
    write_worklist(items, f"{work}/worklist.parquet")
    write_ledger(ledger, f"{work}/ledger.jsonl")
    Path(part_uri(work, ledger.rows[0]["parts"][0])).unlink()  # as `retry` does, which leaves the ledger
    said = lato("backfill", "surroundings", "writing", "--workers", 0, "--work-dir", work)
    assert "1 of 2 parts are not there (lato data retry takes them away)" in said and "2 of 2 parts computed" in said
    said = lato("backfill", "surroundings", "--workers", 0, "--work-dir", work)
    assert "1 of 2 parts are not there" in said and "0 of 1 parts computed" in said
    Path(part_uri(work, ledger.rows[1]["parts"][0])).unlink()
    assert "0 of 0 parts computed" in lato("backfill", "fer", "--workers", 0, "--work-dir", work)


@pytest.mark.parametrize("option", ["--gpus", "--workers"])
def test_shares_and_numbers_have_bounds(tmp_path, option):
    result = CliRunner().invoke(app, ["data", "backfill", "fer", option, "-1", "--work-dir", str(tmp_path)])
    assert result.exit_code == 2 and option in result.output


@pytest.mark.parametrize("name", ["w.csv", "w.jsonl", "w"])
def test_a_work_list_is_not_written_under_a_name_it_cannot_be_read_by(tmp_path, name):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    given = ("openhumanvid", tmp_path / "list.csv", tmp_path)
    assert f"{name}: a work list is written as Parquet" in told("worklist", *given, "--out", tmp_path / name)
    with pytest.raises(UserError, match=r"ends in \.parquet"):
        write_worklist([], str(tmp_path / name))
    assert not (tmp_path / name).exists()
    lato("worklist", *given, "--out", tmp_path / "w.parquet")
    assert [item.uri for item in read_worklist(str(tmp_path / "w.parquet"))] == [str(tmp_path / "a.mp4")]
