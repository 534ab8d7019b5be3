"""Killed at every step, and disturbed in every other way, a build ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.worklist import WorkItem, item_for
from tests.data_pipeline.chaos import VICTIMS, disturb
from tests.data_pipeline.crash_chain import build


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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("victim", VICTIMS)
def test_whatever_dies_the_bytes_are_the_same(calm, models, tmp_path, victim, seed):
    work, items = calm
    runs = disturb(tmp_path / "killed", models, items, victim, seed)
    assert runs <= (1 if victim in ("worker", "decoder", "node") else 2)  # these are survived inside the run
    assert files_of(tmp_path / "killed" / "versions" / "v1") == files_of(work / "versions" / "v1")
    assert (work / "ledger.jsonl").read_bytes() == (tmp_path / "killed/ledger.jsonl").read_bytes()


def test_a_source_that_kills_its_decoder_twice_is_failed_and_once_is_not(models, clip, tmp_path, monkeypatch):
    """The first death may be the machine's doing; the others go on either way."""
    import data_pipeline.analyze as module
    from data_pipeline.decode import DecodeError

    real, deaths = module.sample_frames, {"count": 0, "until": 1}

    def dying(path, *rest):
        if "single_face" in path and deaths["count"] < deaths["until"]:
            deaths["count"] += 1
            raise DecodeError("crash", "the decoder died (exit code -11)")
        return real(path, *rest)

    monkeypatch.setattr(module, "sample_frames", dying)
    items = [item_for(clip("single_face")), item_for(clip("no_face"))]
    lone = module.AnalyzeConfig(workers=0)
    once = {row["source_id"]: row["status"] for row in module.analyze(items, lone, models, str(tmp_path / "once")).rows}
    assert once == {"single_face": "ok", "no_face": "rejected"}
    deaths.update(count=0, until=9)
    twice = {row["source_id"]: row["reason"] for row in module.analyze(items, lone, models, str(tmp_path / "twice")).rows}
    assert twice == {"single_face": "crash", "no_face": "no face"}
    assert deaths["count"] == 2
