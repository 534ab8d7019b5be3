"""Killed at every step, and disturbed in every other way, a build ends in the same bytes."""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline import decoder as decoder_module
from data_pipeline import patience as patience_module
from data_pipeline import segments, worker
from data_pipeline.analyze import analyze
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import WorkItem, item_for
from tests.data_pipeline.chaos import SURVIVED, VICTIMS, disturb, end, serve
from tests.data_pipeline.crash_chain import build
from tests.data_pipeline.test_bad_input import png_of


def files_of(version):
    return {str(path.relative_to(version)): path.read_bytes() for path in sorted(Path(version).rglob("*")) if path.is_file()}


def write_items(folder, clip):
    """Photos of two people, one clip: a work list as JSON."""
    items = [item_for(clip(name), licence="test", identity=name.rstrip("2")) for name in ("obama", "obama2", "biden")]
    items += [item_for(clip("single_face"), licence="test")]
    path = folder / "items.json"
    path.write_text(json.dumps([item.model_dump() for item in items]))
    return path


@pytest.fixture(scope="module")
def calm(models, clip, tmp_path_factory):
    """The undisturbed build, and its work list."""
    folder = tmp_path_factory.mktemp("calm")
    items = write_items(folder, clip)
    build(str(folder / "work"), models, [WorkItem(**row) for row in json.loads(items.read_text())])
    return folder / "work", items


@pytest.mark.slow
def test_killed_before_and_after_every_commit_the_bytes_are_the_same(calm, models, tmp_path):
    work, items = calm
    command = [sys.executable, "-m", "tests.data_pipeline.crash_chain", str(tmp_path / "killed"), str(models), str(items)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 100  # every commit from both sides
    expected, found = files_of(work / "versions" / "v1"), files_of(tmp_path / "killed" / "versions" / "v1")
    assert expected.keys() == found.keys()
    assert all(expected[name] == found[name] for name in expected), [name for name in expected if expected[name] != found[name]]
    assert (work / "ledger.jsonl").read_bytes() == (tmp_path / "killed/ledger.jsonl").read_bytes()
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


@pytest.fixture(scope="module")
def lasting(calm, models, tmp_path_factory):
    """A driver that builds again and again, on one Ray."""
    folder = tmp_path_factory.mktemp("lasting")
    driver = serve(folder / "log", models, calm[1])
    yield driver
    end(driver, folder / "none")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("victim", VICTIMS)
def test_whatever_dies_the_bytes_are_the_same(calm, models, tmp_path, victim, seed, request):
    work, items = calm
    driver = request.getfixturevalue("lasting") if victim in SURVIVED else None
    disturbed = disturb(tmp_path / "killed", models, items, victim, seed, driver)
    assert disturbed.struck
    assert disturbed.runs <= (1 if victim in ("worker", "decoder", "node") else 2)  # these are survived inside the run
    assert files_of(tmp_path / "killed" / "versions" / "v1") == files_of(work / "versions" / "v1")
    assert (work / "ledger.jsonl").read_bytes() == (tmp_path / "killed/ledger.jsonl").read_bytes()


_WORKERS = """
import json, sys
from pathlib import Path
from infra.runtime import RuntimeConfig, quieten, start_ray
quieten()
start_ray(RuntimeConfig(num_cpus=4))
from data_pipeline.build import build_dataset
from data_pipeline.worklist import WorkItem
from tests.data_pipeline.crash_chain import CONFIG
work, models, items, workers = sys.argv[1:]
config = CONFIG.model_copy(update={"analyze": CONFIG.analyze.model_copy(update={"workers": int(workers)})})
build_dataset(config, work, Path(models), [WorkItem(**row) for row in json.loads(Path(items).read_text())])
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_changes_no_byte(calm, models, tmp_path, workers):
    """None are in `calm`, two where something dies."""
    work, items = calm
    words = [str(tmp_path / "w"), str(models), str(items), str(workers)]
    done = subprocess.run([sys.executable, "-c", _WORKERS, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert files_of(tmp_path / "w" / "versions" / "v1") == files_of(work / "versions" / "v1")
    assert (tmp_path / "w" / "ledger.jsonl").read_bytes() == (work / "ledger.jsonl").read_bytes()


def _faults(pipe, path, argument):
    ctypes.string_at(0)


def test_a_source_that_kills_its_decoder_twice_is_failed_and_once_is_not(models, clip, tmp_path, monkeypatch):
    """By real segmentation faults. The first death may be the machine's doing; the others go on either way."""
    real, deaths = worker.sample_frames, {"count": 0, "until": 1}

    def dying(path, fps, start, end, decoder, *rest):
        if "single_face" in path and deaths["count"] < deaths["until"]:
            deaths["count"] += 1
            return (yield from decoder_module.run_decoder(decoder, _faults, path, None))
        return (yield from real(path, fps, start, end, decoder, *rest))

    monkeypatch.setattr(worker, "sample_frames", dying)
    items = [item_for(clip("single_face")), item_for(clip("no_face"))]
    lone = AnalyzeConfig(workers=0)
    once = {row["source_id"]: row["status"] for row in analyze(items, lone, models, str(tmp_path / "once")).rows}
    assert once == {"single_face": "ok", "no_face": "rejected"}
    deaths.update(count=0, until=9)
    rows = {row["source_id"]: row for row in analyze(items, lone, models, str(tmp_path / "twice")).rows}
    assert {name: row["reason"] for name, row in rows.items()} == {"single_face": "crash", "no_face": "no face"}
    assert rows["single_face"]["message"] == "the decoder died (exit code -11)"  # a segmentation fault
    assert deaths["count"] == 2


def _hangs(pipe, path, argument):
    time.sleep(600)


def test_a_source_whose_decoder_hangs_twice_is_failed_and_the_others_go_on(models, clip, tmp_path, monkeypatch):

    real, tries = worker.sample_frames, []

    def watch(path, fps, start, end, decoder, *rest):
        tries.append(Path(path).stem)
        if "single_face" not in path:
            return (yield from real(path, fps, start, end, decoder, *rest))
        with pytest.MonkeyPatch.context() as soon:
            soon.setattr(patience_module, "IDLE_SECONDS", 0.5)
            return (yield from decoder_module.run_decoder(decoder, _hangs, path, None))

    monkeypatch.setattr(worker, "sample_frames", watch)
    monkeypatch.setattr(segments, "_BUNDLES_A_WORKER", 1e-9)  # all in one
    items = [item_for(clip(name)) for name in ("carphone", "single_face", "no_face")]
    ledger = analyze(items, AnalyzeConfig(workers=0, fps=1.0), models, str(tmp_path))
    assert {row["source_id"]: (row["status"], row["reason"]) for row in ledger.rows} == {
        "carphone_pristine": ("ok", None),
        "single_face": ("failed", "hang"),
        "no_face": ("rejected", "no face"),
    }
    assert sorted(tries) == ["carphone_pristine", "no_face", "single_face", "single_face"]


def test_a_source_that_eats_memory_is_failed_and_takes_nobody_with_it(models, clip, tmp_path, monkeypatch):
    """A file of 1 MB that is a picture of 6000 x 6000 in 16 bits: 288 MB as it is decoded, and as much again on its way out."""

    tries = []
    real = worker.sample_frames
    monkeypatch.setattr(worker, "sample_frames", lambda path, *rest: tries.append(Path(path).stem) or real(path, *rest))
    monkeypatch.setattr(decoder_module, "MEMORY_BYTES", 512 * 1024**2)
    side = 6000
    greedy = tmp_path / "greedy.mp4"
    greedy.write_bytes(png_of(side, side, 16, 6, bytes(side * (1 + side * 8))))
    assert greedy.stat().st_size < 2 * 1024**2
    items = [item_for(str(greedy)), item_for(clip("single_face")), item_for(clip("no_face"))]
    ledger = analyze(items, AnalyzeConfig(workers=0), models, str(tmp_path / "work"))
    rows = {row["source_id"]: row for row in ledger.rows}
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == {
        "greedy": ("failed", "memory"),
        "single_face": ("ok", None),
        "no_face": ("rejected", "no face"),
    }
    assert "more memory than the 512 MB" in rows["greedy"]["message"]
    assert sorted(tries) == ["greedy", "greedy", "no_face", "single_face"]  # once may be the machine's doing
    assert not list((tmp_path / "work" / "attempts").glob("*.json"))
    monkeypatch.undo()
    assert len(list(real(str(greedy), 5.0))) == 1  # it is a picture that can be decoded: what failed it is the limit
