"""While somebody is being forgotten nothing is written that shows them; afterwards nothing that was begun before."""

import json
import threading
import urllib.error
import urllib.request

import pytest

from data_pipeline import forget as forget_module
from data_pipeline import report as report_module
from data_pipeline import subset
from data_pipeline.audit import choose, serve_audit
from data_pipeline.published import read_manifest
from infra.errors import UserError
from infra.lease import lease
from tests.data_pipeline.commands import lato, told


@pytest.fixture
def page(work):
    """An audit's page of `v1`, and a function that labels a pair in it."""
    server = serve_audit(str(work), "v1", per_stratum=50, seed=0, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def label(key):
        body = json.dumps({"key": key, "good": True}).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/label", body, {"Content-Type": "application/json"})
        try:
            return urllib.request.urlopen(asked).read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()

    yield label
    server.shutdown()
    server.server_close()


def test_a_forget_that_is_under_way_keeps_out_views_labels_and_reports(work, page, monkeypatch):
    """It is stopped before its last step, and all are tried."""
    entries = choose(str(work), "v1", per_stratum=50, seed=0)
    assert page(entries[0].key) == "kept"
    rows = {row["key"]: row for row in read_manifest(str(work / "versions/v1"))}
    mine = next(entry.key for entry in entries if entry.key in rows)
    gone = rows[mine]["identity"]
    last, go_on = threading.Event(), threading.Event()
    real = forget_module.sweep_crops

    def pause(folder):
        last.set()
        assert go_on.wait(60)
        real(folder)

    monkeypatch.setattr(forget_module, "sweep_crops", pause)
    forgetting = threading.Thread(target=lato, args=("forget", "--identity", gone, "--work-dir", work))
    forgetting.start()
    try:
        assert last.wait(60)
        held = "in use: lato data forget (process"
        assert held in told("view", work / "versions/v1", "happy", "--where", "expression = happy")
        assert held in told("report", "--work-dir", work)
        assert held in page(mine)
        for command in (("merge", "v1", "a", "b"), ("retry", "--class", "decode"), ("backfill", "fer")):
            assert held in told(*command, "--work-dir", work)
    finally:
        go_on.set()
        forgetting.join()
    assert "v1 changed meanwhile" in page(mine)  # the page is of before
    assert mine not in (work / "labels.jsonl").read_text() and not (work / "versions/happy").exists()
    assert not (work / "versions/v1/report.html").exists()
    assert not list(work.glob("*lease.json"))
    lato("view", f"{work}/versions/v1/", "happy", "--where", "expression = happy")
    assert gone not in {row["identity"] for row in read_manifest(str(work / "versions/happy"))}


def test_what_was_begun_before_somebody_was_forgotten_is_not_kept(work, tmp_path, monkeypatch):
    """A report that was drawn and an export that was copied of the version as it was."""
    people = sorted({row["identity"] for row in read_manifest(str(work / "versions/v1"))})

    def after(module, name, gone):
        real = getattr(module, name)

        def meanwhile(*arguments):
            found = real(*arguments)
            monkeypatch.setattr(module, name, real)
            lato("forget", "--identity", gone, "--work-dir", work)
            return found

        monkeypatch.setattr(module, name, meanwhile)

    after(report_module, "rejected_pairs", people[0])
    assert "v1 changed meanwhile" in told("report", "--work-dir", work)
    assert not (work / "versions/v1/report.html").exists()
    for moment, name, gone in (("first", "write_shard", people[1]), ("last", "encode_table", people[2])):
        after(subset, name, gone)
        assert "v1 changed meanwhile" in told("export", work / "versions/v1", tmp_path / moment)
        assert not (tmp_path / moment / "index.json").exists()


def test_labels_and_reports_do_not_wait_for_a_build(work, page):
    with lease(str(work), "lato data build"):
        assert page(choose(str(work), "v1", per_stratum=50, seed=0)[0].key) == "kept"
        assert "report.html" in lato("report", "--work-dir", work)
        assert "in use: lato data build" in told("view", work / "versions/v1", "happy", "--where", "expression = happy")


def test_a_view_of_no_version_holds_and_makes_nothing(tmp_path):
    assert "no published version here" in told("view", tmp_path / "tpyo/versions/v1", "happy", "--where", "expression = happy")
    assert not (tmp_path / "tpyo").exists()


def test_one_thing_in_a_folder_is_held_beside_all_of_it(tmp_path):
    all_of_it, thing = lease(str(tmp_path), "all"), lease(str(tmp_path), "one thing", "thing.lease.json")
    with all_of_it, thing, pytest.raises(UserError, match="in use: one thing"), lease(str(tmp_path), "another", "thing.lease.json"):
        pass
    assert list(tmp_path.iterdir()) == []
