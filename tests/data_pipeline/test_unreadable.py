"""Files that may not be read, or lead round in a ring, end as failed(missing) in the ledger."""

import ctypes
import json
import shutil
import subprocess
import sys

from data_pipeline.analyze import analyze
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for

_LOOK = """
import json, sys
from pathlib import Path
from data_pipeline.analyze import analyze
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for
models, work, *uris = sys.argv[1:]
ledger = analyze([item_for(uri) for uri in uris], AnalyzeConfig(workers=0), Path(models), work)
print(json.dumps(ledger.rows))
"""
_DROP, _READ_ALL = 24, (1, 2)
"""PR_CAPBSET_DROP; CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root may read what nobody may. Whoever is not root has neither."""


def look_as_somebody(models, work, uris):
    """Ledger rows, of a process that permissions hold for."""
    prctl = ctypes.CDLL(None).prctl
    command = [sys.executable, "-c", _LOOK, str(models), str(work), *map(str, uris)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: [prctl(_DROP, one, 0, 0, 0) for one in _READ_ALL]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_may_not_be_read_is_missing(models, clip, tmp_path):
    """A photo, a video, one in a folder that may not be entered, and one that a set names."""
    shut = tmp_path / "shut"
    shut.mkdir()
    places = {"a.jpg": "obama", "b.mp4": "single_face", "shut/c.jpg": "obama2"}
    for name, of in places.items():
        shutil.copyfile(clip(of), tmp_path / name)
    (tmp_path / "set.json").write_text('{"images": [{"uri": "a.jpg"}]}')
    for closed in (tmp_path / "a.jpg", tmp_path / "b.mp4", shut):
        closed.chmod(0)
    uris = [*(str(tmp_path / name) for name in places), str(tmp_path / "set.json")]
    try:
        rows = {row["source_id"]: row for row in look_as_somebody(models, tmp_path / "w", uris)}
    finally:
        shut.chmod(0o700)
    assert {(name, row["status"], row["reason"]) for name, row in rows.items()} == {
        (name, "failed", "missing") for name in ("a", "b", "c", "set")
    }
    for uri, name in zip(uris, ("a", "b", "c", "set"), strict=True):
        assert rows[name]["message"].startswith(uri) and "Permission denied" in rows[name]["message"]


def test_links_that_lead_round_in_a_ring_are_missing(models, tmp_path):
    for name, to in (("a.jpg", "a.jpg"), ("b.mp4", "c.mp4"), ("c.mp4", "b.mp4")):
        (tmp_path / name).symlink_to(tmp_path / to)
    items = [item_for(str(tmp_path / name)) for name in ("a.jpg", "b.mp4")]
    rows = analyze(items, AnalyzeConfig(workers=0), models, str(tmp_path / "w")).rows
    assert [(row["source_id"], row["status"], row["reason"]) for row in rows] == [("a", "failed", "missing"), ("b", "failed", "missing")]
    assert all(row["message"].startswith(item.uri) and "Too many levels" in row["message"] for item, row in zip(items, rows, strict=True))
