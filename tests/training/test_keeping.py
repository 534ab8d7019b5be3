"""Checkpoints in trouble: full disks, stores that are down, torn files; and which are kept."""

import hashlib
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from infra.errors import UserError
from tests.training.ranks import leave
from tests.training.test_engine import lines, run, state
from tests.training.toy import BASE, Toy, train_all
from training import checkpoint, engine, presets, rank, resume_rules
from training.config import EngineConfig
from training.stage_factory import Job

pytestmark = pytest.mark.slow


def _full_disk(rank, world, jobs):
    """No file of rank 1 may be larger than its first metrics; until the last step, when there is room again."""
    import resource

    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        folder = Path(jobs[0][0])

        def make_room():
            while not (folder / "metrics.jsonl").exists() or lines(folder)[-1]["step"] < 22:
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        threading.Thread(target=make_room, daemon=True).start()
    train_all(rank, world, jobs)


def test_a_full_disk_is_told_and_training_goes_on(tmp_path):
    run([(tmp_path, BASE | {"steps": 10})])  # checkpoints while there is room
    run([(tmp_path, BASE | {"steps": 300, "checkpoint_every": 5, "keep": 500, "decay_from": 1.0})], target=_full_disk)
    said = [alarm for line in lines(tmp_path) for alarm in line.get("alarms", [])]
    assert any("the checkpoint of step 15 could not be written" in alarm and "the last one stands" in alarm for alarm in said)
    steps = [marker["step"] for marker in checkpoint.markers(str(tmp_path / "checkpoints")).values()]
    assert steps[:2] == [5, 10]
    assert 15 not in steps
    assert steps[-1] == 300  # it went on, and saved again when there was room


def test_a_torn_checkpoint_is_told_and_does_not_take_the_place_of_a_whole_one(tmp_path):
    """Kept is one: were the torn one counted, the next would be thinned for it, and nothing be left when the run stops before it comes that far again."""
    config = BASE | {"checkpoint_every": 2, "steps": 8}
    run([(tmp_path, config | {"keep": 2})])
    torn = tmp_path / "checkpoints" / "step-000008" / "shared.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert checkpoint.newest(str(tmp_path / "checkpoints")).endswith("step-000006")
    key = ({sample.key for sample in Toy().data.batch(7, 4)} - {sample.key for sample in Toy().data.batch(6, 4)}).pop()
    run([(tmp_path, config | {"keep": 1, "checkpoint_every": 1}, {"poison": key})])  # saves step 7 and stops in step 8
    said = [alarm for line in lines(tmp_path) for alarm in line.get("alarms", [])]
    assert said == ["step-000008: files of it are missing or changed; training goes on from step-000006"]
    assert checkpoint.newest(str(tmp_path / "checkpoints")).endswith("step-000007")


def test_checkpoints_are_in_order_of_their_steps_also_beyond_a_million(tmp_path):
    for step in (999_999, 1_000_000, 998_000):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "COMPLETE").write_text(json.dumps({"step": step, "held_out": None, "files": {}}))
    assert [marker["step"] for marker in checkpoint.markers(str(tmp_path)).values()] == [998_000, 999_999, 1_000_000]
    assert checkpoint.newest(str(tmp_path)).endswith("step-1000000")


def _never_room(rank, world, jobs):
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for folder, config, toy in jobs:
        with pytest.raises(UserError, match="could not be written"):
            engine.run(Toy(**toy), EngineConfig(**config), Path(folder))
    leave()


def test_a_run_whose_last_checkpoint_cannot_be_written_has_not_ended_well(tmp_path):
    run([(tmp_path, BASE | {"steps": 6})], target=_never_room)
    assert checkpoint.newest(str(tmp_path / "checkpoints")) is None


def _no_marker(rank, world, jobs):
    """The disk is full just when rank 0 writes the first marker."""
    before, left = checkpoint.commit, [1]

    def commit(uri, data, **options):
        if uri.endswith("/COMPLETE") and left:
            left.pop()
            raise OSError(28, "No space left on device")
        return before(uri, data, **options)

    checkpoint.commit = commit
    train_all(rank, world, jobs)


def _store_down(rank, world, jobs):
    """When the first checkpoint is to be written the store takes nothing, and answers no deletion."""
    before = checkpoint._write_tensors

    def fail(*_):
        raise ConnectionError("the store is down")

    def write(tensors, uri):
        if "step-000005" in uri:
            fail()
        return before(tensors, uri)

    checkpoint._write_tensors = write
    delete, checkpoint.delete_folder = checkpoint.delete_folder, lambda uri: fail() if "step-000005" in uri else delete(uri)
    train_all(rank, world, jobs)


def test_a_store_that_is_down_stops_no_rank(tmp_path):
    run([(tmp_path, BASE | {"steps": 12})], target=_store_down)
    said = [alarm for line in lines(tmp_path) for alarm in line.get("alarms", [])]
    assert said == ["the checkpoint of step 5 could not be written (the store is down); the last one stands"]
    assert state(tmp_path)[0] == 12


def test_where_no_checkpoint_is_whole_training_does_not_begin_anew(tmp_path):
    at = tmp_path / "step-000005"
    at.mkdir()
    (at / "COMPLETE").write_text(json.dumps({"step": 5, "held_out": None, "files": {"shared.safetensors": {"bytes": 3, "sha256": ""}}}))
    with pytest.raises(UserError, match=r"no checkpoint is whole \(files of step-000005 are missing"):
        checkpoint.drop_torn(str(tmp_path), checkpoint.newest(str(tmp_path)))
    assert at.exists()
    assert checkpoint.drop_torn(str(tmp_path / "none"), None) == []


def test_a_marker_that_cannot_be_written_is_told_and_training_goes_on_on_all_ranks(tmp_path):
    run([(tmp_path, BASE | {"steps": 12})], target=_no_marker)
    said = [alarm for line in lines(tmp_path) for alarm in line.get("alarms", [])]
    assert any("the checkpoint of step 5 could not be written" in alarm and "No space left" in alarm for alarm in said)
    assert [marker["step"] for marker in checkpoint.markers(str(tmp_path / "checkpoints")).values()] == [10, 12]


def test_the_best_checkpoint_is_kept_beside_the_newest():
    found = {str(step): {"step": step, "held_out": value} for step, value in ((5, 0.5), (10, 0.2), (15, None), (20, 0.4), (25, 0.3))}
    assert checkpoint.superfluous(found, keep=2) == ["5", "15"]


def _write(folder, held_out):
    """Checkpoints by step, with their held-out numbers."""
    for step, value in held_out.items():
        at = folder / f"step-{step:06d}"
        at.mkdir(parents=True)
        (at / "weights").write_bytes(b"w" * 100)
        files = {"weights": {"sha256": hashlib.sha256(b"w" * 100).hexdigest(), "bytes": 100}}
        (at / "COMPLETE").write_text(json.dumps({"step": step, "world_size": 1, "held_out": value, "files": files}))


def _names(paths):
    return [str(path).rsplit("/", 1)[-1] for path in paths]


def test_a_torn_best_is_neither_exported_nor_kept(tmp_path, monkeypatch):
    """Two of one run, behind which whole ones stand: one with other bytes, one cut short."""
    folder = tmp_path / "checkpoints"
    _write(folder, {5: 0.1, 10: 0.2, 15: 0.4, 20: 0.3, 25: 0.5, 30: 0.15})
    for step, torn in ((5, b"v" * 100), (10, b"w" * 99), (15, b""), (30, b"")):
        (folder / f"step-{step:06d}" / "weights").write_bytes(torn)
    assert _names([checkpoint.best(str(folder)), checkpoint.newest(str(folder))]) == ["step-000020", "step-000025"]

    exported = []
    monkeypatch.setattr(rank, "export", lambda stage, path, folder: exported.append((path, folder)) or {})
    monkeypatch.setattr(Job, "make", lambda self: None)
    given = Job(stage="tokenizer", config=presets.preset("tokenizer", "tiny"), data=(), folder=str(tmp_path))
    (tmp_path / "job.json").write_text(given.model_dump_json())
    rank.export_all(given, tmp_path)
    rank.export_one(tmp_path, "best")
    rank.export_one(tmp_path, "25")
    assert [(*_names([path]), folder.name) for path, folder in exported] == [
        ("step-000025", "export"), ("step-000020", "export-best"), ("step-000020", "export-20"), ("step-000025", "export-25"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"step-000005: files of this checkpoint are missing or changed. Copy it back, or export another"):
        rank.export_one(tmp_path, "5")

    assert checkpoint.drop_torn(str(folder), checkpoint.newest(str(folder))) == ["step-000030", "step-000005", "step-000010"]
    left = checkpoint.markers(str(folder))
    assert _names(left) == ["step-000015", "step-000020", "step-000025"] and _names(checkpoint.superfluous(left, 1)) == ["step-000015"]
    assert checkpoint.drop_torn(str(folder), checkpoint.newest(str(folder))) == []


def test_a_fork_of_a_torn_checkpoint_is_refused(tmp_path):
    _write(tmp_path / "run" / "checkpoints", {5: None})
    fork = resume_rules.fork(tmp_path / "run", "slow", {"config": {}})
    assert _names([resume_rules.start_weights(fork)]) == ["step-000005"]
    (tmp_path / "run" / "checkpoints" / "step-000005" / "weights").write_bytes(b"v" * 100)
    with pytest.raises(UserError, match=r"fork of .*step-000005, files of which are missing or changed; copy it back, or fork anew"):
        resume_rules.start_weights(fork)


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    _write(tmp_path, {5: None, 10: None})
    (tmp_path / "step-000015").mkdir()  # its marker was never written
    assert checkpoint.newest(str(tmp_path)).endswith("step-000010")
    (tmp_path / "step-000010" / "weights").write_bytes(b"v" * 100)
    assert checkpoint.newest(str(tmp_path)).endswith("step-000005")
    checkpoint.sweep(str(tmp_path))
    assert not (tmp_path / "step-000015").exists()
