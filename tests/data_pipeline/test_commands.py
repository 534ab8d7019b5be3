"""`lato data` as a user types it, where all goes well: a build's stages alone, its plan, what stands already, a version re-read."""

import re
import shutil
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner

from data_pipeline import plan
from data_pipeline.places import LOOKING
from data_pipeline.published import read_manifest
from infra.cli import app
from tests.data_pipeline.commands import lato

SETTINGS = (*(f"synthetic.anny.{name}" for name in ("people=12", "images=4")), "split.val=0.2", "split.test=0.2")
"""Of `synthetic_version`."""
HERE = ("analyze.workers=0", "synthetic.anny.workers=0")
"""No Ray, which in tests others share; no work depends on it."""


@pytest.fixture
def no_ray(monkeypatch):
    """As in a new process, where Ray is not up; to start it fails."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *given, **named: pytest.fail("Ray was started"))


def rows_of(said):
    """(step, what) -> count, of a printed funnel."""
    return {(step, what): int(count) for step, what, count in re.findall(r"│ ([\w ]+) │ ([^│]+) │ (\d+) │", said)}


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def test_a_finished_build_is_recognised_before_ray_starts(synthetic_version, work, no_ray):
    """With workers, which would need it."""
    before = files(work / "versions/v1"), files(work / "parts"), files(work / "pairs")
    said = lato("build", *SETTINGS, "--work-dir", work)
    count = sum(synthetic_version.samples.values())
    assert f"version v1 stands already ({count} samples)" in said and f"digest {synthetic_version.digest[:16]}" in said
    assert rows_of(said)["sources", "in"] == 12 and rows_of(said)["samples", "train"] == synthetic_version.samples["train"]
    assert (files(work / "versions/v1"), files(work / "parts"), files(work / "pairs")) == before


def test_pair_shows_what_other_thresholds_would_accept_and_render_cuts_the_crops(synthetic_version, work, no_ray):
    stricter = (*SETTINGS, *HERE, "name=strict", "pairing.per_identity=1", "--work-dir", work)
    accepted = {row["name"]: row["count"] for row in synthetic_version.funnel if row["step"] == "candidate pairs"}
    parts = files(work / "parts")
    paired = rows_of(lato("pair", *stricter))
    assert paired["candidate pairs", "in"] == accepted["in"]
    assert 0 < paired["candidate pairs", "accepted"] < accepted["accepted"]
    assert not (work / "versions/strict").exists() and not (work / "renders").exists() and files(work / "parts") == parts
    assert rows_of(lato("render", *stricter)) == paired
    crops = files(work / "renders")
    assert len(crops) >= paired["candidate pairs", "accepted"] and not (work / "versions/strict").exists()
    built = lato("build", *stricter)  # what is left is packing
    assert (
        len(read_manifest(str(work / "versions/strict")))
        == paired["candidate pairs", "accepted"]
        == sum(count for (step, _), count in rows_of(built).items() if step == "samples")
    )
    assert files(work / "renders") == crops


def test_verify_ends_with_1_where_anything_is_wrong(work):
    version = work / "versions/v1"
    assert lato("verify", version) == "all well"
    shard = min((version / "shards").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    result = CliRunner().invoke(app, ["data", "verify", str(version)])
    lines = result.output.splitlines()
    assert result.exit_code == 1 and lines[-1] == f"{len(lines) - 1} things are wrong"
    assert any(shard.name in line and "sha256 differs" in line for line in lines)


@pytest.fixture
def sources(clip, tmp_path):
    """A folder with a clip, a photo, a clip without a face and a file that is none; and their size without that file, in MB."""
    folder = tmp_path / "given"
    folder.mkdir()
    copies = [shutil.copy(clip(name), folder) for name in ("single_face", "obama", "no_face")]
    (folder / "torn.mp4").write_text("no video")
    return folder, sum(Path(path).stat().st_size for path in copies) / 1e6


def test_observe_looks_at_all_sources_and_pairs_nothing(sources, tmp_path, no_ray):
    work = tmp_path / "w"
    command = ("observe", f"folder={sources[0]}", "analyze.fps=1", "analyze.groups.names=[identity]", *HERE[:1], "--work-dir", work)
    said = lato(*command)
    assert "2 ok" in said and "1 rejected: no face" in said and "1 failed: decode" in said
    assert len(files(work / "parts")) and not (work / "pairs").exists() and not (work / "versions").exists()
    before = files(work / "parts")
    assert "2 ok" in lato(*command) and files(work / "parts") == before


def test_a_plan_is_printed_with_counts_memory_bytes_and_time_and_nothing_is_made(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_start_seconds", lambda models, workers: 65.0)  # it starts a Ray of its own
    monkeypatch.chdir(tmp_path)
    folder, size = sources
    settings = ("analyze.fps=2", "synthetic.anny.people=3", "synthetic.anny.images=4")
    said = lato("build", f"folder={folder}", *settings, "--dry-run", "--work-dir", tmp_path / "w")
    assert f"sources: 1 image, 3 synthetic, 3 video; {size:.1f} MB to read, 6.3 s of video cannot be read now: 1 (torn) " in said
    frames = int(re.search(r"frames to look at: (\d+), generated ones too; videos at 2 a second", said)[1])
    assert frames == int(2 * 2.4) + 1 + int(2 * 3.9) + 1 + 1 + 3 * 4
    assert f"samples: at most {5 * 4 + 8 * 7 + 3 * 4 * 3} by the quotas" in said
    assert re.search(
        r"analysis: [1-9]\d* ms CPU a frame \(probe\), 1 min .+ with 2 workers, of which 1 min 05 s until the first can begin", said
    )
    memory = re.search(r"memory: ([\d,]+) MB that a worker asks Ray for, its decoder in it; ([\d,]+) MB for 2, and the driver", said)
    each, both = (int(number.replace(",", "")) for number in memory.groups())
    assert both == 2 * each >= 2 * LOOKING / 2**20
    written = re.search(r"disk: ([\d.]+) MB of observations, at most ([\d.]+) MB of shards and as much of crops", said)
    assert all(float(number) > 0 for number in written.groups())
    assert not (tmp_path / "w").exists()
