"""Killed at every step, and disturbed in every other way, a build ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.worklist import item_for
from tests.data_pipeline.crash_chain import build


def files_of(version):
    return {str(path.relative_to(version)): path.read_bytes() for path in sorted(Path(version).rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_killed_before_and_after_every_commit_the_bytes_are_the_same(models, clip, tmp_path):
    names = ("obama", "obama2", "biden")
    items = [item_for(clip(name), licence="test", identity=name.rstrip("2")) for name in names] + [
        item_for(clip("single_face"), licence="test")
    ]
    (tmp_path / "items.json").write_text(json.dumps([item.model_dump() for item in items]))
    build(str(tmp_path / "calm"), models, items)
    command = [sys.executable, "-m", "tests.data_pipeline.crash_chain", str(tmp_path / "killed"), str(models), str(tmp_path / "items.json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 100  # every commit from both sides
    calm, killed = (files_of(tmp_path / name / "versions" / "v1") for name in ("calm", "killed"))
    assert calm.keys() == killed.keys()
    assert all(calm[name] == killed[name] for name in calm), [name for name in calm if calm[name] != killed[name]]
    assert (tmp_path / "calm/ledger.jsonl").read_bytes() == (tmp_path / "killed/ledger.jsonl").read_bytes()
    assert not list((tmp_path / "killed").rglob(".*.tmp"))
