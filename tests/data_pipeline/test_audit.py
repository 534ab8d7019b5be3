"""An audit: labels are taken in a page and beat the filters."""

import http.client
import json
import shutil
import threading
import urllib.error
import urllib.request

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.audit import _Page, add_label, choose, read_distinct, read_labelled_edits, read_labels, serve_audit, summarize
from data_pipeline.beside import Beside
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for
from tests.browser import Browser, find_chromium
from tests.data_pipeline.many_candidates import write_version
from tests.data_pipeline.small import config, read_candidates


@pytest.fixture(scope="module")
def first(models, tmp_path_factory):
    work = tmp_path_factory.mktemp("audit")
    return work, build_dataset(config(8), str(work), models)


def test_labels_are_taken_in_a_page_and_beat_the_filters(first, models):
    work, version = first
    middle = float(np.median([row["sharpness"] for row in read_candidates(version.uri)]))
    strict = PairingConfig(min_sharpness=middle)
    build_dataset(config(8, name="strict", pairing=strict), str(work), models)
    entries = choose(str(work), "strict", per_stratum=3, seed=1)
    assert {entry.stratum for entry in entries} > {"accepted"}
    assert entries == choose(str(work), "strict", per_stratum=3, seed=1)
    server = serve_audit(str(work), "strict", per_stratum=3, seed=1, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"

    def post(body, kind="application/json"):
        return urllib.request.urlopen(urllib.request.Request(f"{address}/label", json.dumps(body).encode(), {"Content-Type": kind}))

    try:
        accepted = next(entry for entry in entries if entry.stratum == "accepted")
        refused = next(entry for entry in entries if entry.stratum != "accepted" and not entry.instruction.endswith("?"))
        assert accepted.key in urllib.request.urlopen(address).read().decode()
        assert urllib.request.urlopen(f"{address}/pair/{accepted.key}").read()[:2] == b"\xff\xd8"
        drawn, plain = (urllib.request.urlopen(f"{address}/pair/{accepted.key}{how}").read() for how in ("", "?plain"))
        assert plain[:2] == b"\xff\xd8" and plain != drawn  # without landmarks
        assert post({"key": accepted.key, "good": False}).status == 200
        assert post({"key": refused.key, "good": True}).status == 200
        for body, kind in (({"key": "nobody", "good": True}, "application/json"), ({"key": accepted.key, "good": True}, "text/plain")):
            with pytest.raises(urllib.error.HTTPError):
                post(body, kind)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}/pair/../../ledger.jsonl")
    finally:
        server.shutdown()
    assert read_labels(str(work)) == {accepted.key: False, refused.key: True}
    edits = {row["key"]: row["edit"] for row in read_candidates(first[1].uri)}
    assert read_labelled_edits(str(work)) == {key: edits[key] for key in (accepted.key, refused.key)}
    assert summarize(str(work))[0][:3] == ("accepted", 1, 0)
    labelled = build_dataset(config(8, name="labelled", pairing=strict), str(work), models)
    verdicts = {row["key"]: row["verdict"] for row in read_candidates(labelled.uri)}
    assert verdicts[accepted.key] == "labelled bad"
    assert verdicts[refused.key] in ("accepted", "quota", "near-duplicate")


def test_the_page_answers_to_no_name_of_another_site(tmp_path):
    """A site whose own name is made to lead to this machine would else read faces and write labels (DNS rebinding)."""
    write_version(tmp_path, 60)
    server = serve_audit(str(tmp_path), "v1", per_stratum=2, seed=0, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    key = choose(str(tmp_path), "v1", 2, 0)[0].key

    def ask(method, path, body=None, **headers):
        line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        line.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = line.getresponse()
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        return answer.status, answer.read()

    label = {"body": json.dumps({"key": key, "good": True}), "Content_Type": "application/json"}
    here, evil = f"127.0.0.1:{server.server_port}", f"evil.example:{server.server_port}"
    try:
        for host in (evil, "127.0.0.1", f"localhost.evil.example:{server.server_port}", "localhost:9000.evil.example:80", ""):
            for path in ("/", f"/pair/{key}"):
                status, said = ask("GET", path, Host=host)
                assert status == 403 and key.encode() not in said
            assert ask("POST", "/label", Host=host, **label)[0] == 403
        assert ask("POST", "/label", Origin=f"http://{evil}", **label)[0] == ask("POST", "/label", Origin="null", **label)[0] == 403
        assert read_labels(str(tmp_path)) == {}
        assert ask("GET", "/", Host=f"localhost:{server.server_port}")[0] == 200
        assert ask("POST", "/label", "[" * 9_999, Content_Type="application/json")[0] == 400
        assert ask("POST", "/label", Origin=f"http://{here}", **label) == (200, b"kept")
        forwarded = "localhost:9000"  # `ssh -L 9000:localhost:8300 that-machine`
        assert ask("GET", "/", Host=forwarded)[0] == ask("GET", f"/pair/{key}", Host="127.0.0.1:9000")[0] == 200
        assert ask("POST", "/label", Host=forwarded, Origin=f"http://{here}", **label)[0] == 403
        assert ask("POST", "/label", Host=forwarded, Origin=f"http://{forwarded}", **label) == (200, b"kept")
    finally:
        server.shutdown()
        server.server_close()
    assert [json.loads(line)["key"] for line in (tmp_path / "labels.jsonl").read_text().splitlines()] == [key, key]


@pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium")
@pytest.mark.parametrize("width", [1000, 420])
def test_the_page_takes_labels_by_key_and_button_in_a_real_browser(first, tmp_path, width):
    """Three pairs, the second by mouse; the labels file and the table below say so. Nothing is wider than the window."""
    work = tmp_path / "work"
    shutil.copytree(first[0], work, ignore=shutil.ignore_patterns("labels.jsonl"))  # of the test before
    entries = choose(str(work), "v1", per_stratum=3, seed=2)
    server = serve_audit(str(work), "v1", per_stratum=3, seed=2, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Browser(tmp_path / "profile", width) as page:
            page.open(f"http://127.0.0.1:{server.server_port}/")
            page.wait("document.getElementById('picture').naturalWidth == 768")
            assert entries[0].instruction in page.run("document.getElementById('asks').innerText")
            for number, act in enumerate((lambda: page.press("g"), lambda: page.click("button.bad"), lambda: page.press("b")), start=1):
                act()
                page.wait(f"document.getElementById('last').innerText.startsWith('Pair {number}: labelled')")
                page.wait(f"document.getElementById('place').innerText.startsWith('{number + 1} of {len(entries)}')")
                assert page.run("document.getElementById('error').innerText") == ""
            labelled = "[...document.querySelectorAll('#rates tr td:nth-child(2)')].reduce((sum, cell) => sum + Number(cell.innerText), 0)"
            page.wait(f"{labelled} == 3")
            assert page.run("document.documentElement.scrollWidth") <= page.run("window.innerWidth") == width
            assert entries[3].stratum not in page.run("document.getElementById('place').innerText")  # not told before it is labelled
            page.press("ArrowLeft")
            page.press("g")  # the third again: the last word holds
            page.wait("document.getElementById('last').innerText.startsWith('Pair 3: labelled good')")
    finally:
        server.shutdown()
        server.server_close()
    kept = [json.loads(line) for line in (work / "labels.jsonl").read_text().splitlines()]
    assert {row["key"]: row["good"] for row in kept} == {entries[0].key: True, entries[1].key: False, entries[2].key: True}


def test_what_has_no_threshold_is_asked_another_question_that_decides_little(models, clip, tmp_path):
    """Of all near-duplicates and pairs without an edit; the former are shown above what was accepted of their person and edit."""
    loose = PairingConfig(max_upscale=20, max_padding=1)
    source = item_for(clip("single_face"), licence="test")
    work, version = tmp_path, build_dataset(DataConfig(analyze=AnalyzeConfig(workers=0), pairing=loose), str(tmp_path), models, [source])
    entries = choose(str(work), "v1", per_stratum=5, seed=2)
    rows = {row["key"]: row for row in read_candidates(version.uri)}
    assert {"no edit of ours", "near-duplicate"} <= {entry.stratum for entry in entries}
    twice = next(entry for entry in entries if entry.stratum == "near-duplicate" and entry.beside)
    assert {(rows[key]["verdict"], rows[key]["person"], rows[key]["edit"]) for key in twice.beside} == {
        ("accepted", rows[twice.key]["person"], rows[twice.key]["edit"])
    }
    for entry in entries:
        if entry.instruction.endswith("?"):
            add_label(str(work), entry.key, entry.stratum == "no edit of ours", entry.stratum, 2)
    assert read_labels(str(work)) == {}
    add_label(str(work), twice.key, True, twice.stratum, 2)
    assert read_distinct(str(work)) == {twice.key} and read_labels(str(work)) == {}  # it stays, and the other goes
    assert {name for name, *_ in summarize(str(work))} >= {"no edit of ours", "near-duplicate"}
    page = _Page(str(work), "v1", {}, entries, 2)
    alone = page.picture(next(entry.key for entry in entries if entry.stratum == "no edit of ours"), landmarks=False)
    sizes = [
        cv2.imdecode(np.frombuffer(jpg, np.uint8), cv2.IMREAD_COLOR).shape[:2] for jpg in (alone, page.picture(twice.key, landmarks=False))
    ]
    assert sizes == [(384, 768), (384 * (1 + len(twice.beside)), 768)]


def test_beside_a_near_duplicate_stands_all_that_it_was_compared_with(tmp_path):
    """Its own person, and other sources of its component unless both are declared; of one edit, and at most four."""

    def row(key, source, person=None, edit="happy", verdict="accepted"):
        return {"key": key, "source_id": source, "target_id": source, "person": person or f"{source}/0", "edit": edit, "verdict": verdict}

    rows = [
        *(row("a0", "a"), row("a1", "a", "a/1"), row("b0", "b", "ann"), row("c0", "c", "bob"), row("c1", "c", "bob", "sad")),
        *(row("d0", "d"), row("x", "a", verdict="quota")),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "candidates.parquet")
    (tmp_path / "index.json").write_text(json.dumps({"manifest": "", "digest": "", "shards": [], "candidates": "candidates.parquet"}))
    ties = {"components": dict.fromkeys("abce", "a") | {"d": "d"}, "links": [], "bridges": []}
    (tmp_path / "components.json").write_text(json.dumps(ties))
    beside = Beside(str(tmp_path))
    assert beside.of(row("y", "a")) == ("a0", "b0", "c0")  # another track of one file may be somebody else
    assert beside.of(row("y", "b", "ann")) == ("a0", "a1", "b0")
    assert beside.of(row("y", "c", "bob", "sad")) == ("c1",)
    assert beside.of(row("y", "e")) == ("a0", "a1", "b0", "c0")
    assert beside.of(row("y", "d")) == ("d0",)
    assert beside.of(row("y", "a", edit="angry")) == beside.of(row("y", "in conflict")) == ()
    pq.write_table(pa.Table.from_pylist([*rows, row("b1", "b", "ann")]), tmp_path / "candidates.parquet")
    assert Beside(str(tmp_path)).of(row("y", "e")) == ()  # five
