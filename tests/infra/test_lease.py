"""A folder has one holder."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from infra import lease as lease_module
from infra.addresses import join
from infra.errors import UserError
from infra.lease import lease
from infra.storage import commit, read_bytes


def test_a_held_folder_is_refused_and_a_dead_holder_is_taken_over(tmp_path):
    folder = str(tmp_path)
    with lease(folder, "first job"), pytest.raises(UserError, match="in use: first job \\(process"), lease(folder, "second"):
        pass
    assert not (tmp_path / "lease.json").exists()
    dead = {"owner": f"999999@{os.uname().nodename}", "purpose": "gone", "since": "x", "nonce": "y", "heartbeat": time.time()}
    commit(join(folder, "lease.json"), json.dumps(dead).encode())
    with lease(folder, "third"):
        assert json.loads(read_bytes(join(folder, "lease.json")))["purpose"] == "third"


def test_a_lease_that_is_spoiled_while_it_is_held_does_not_hide_what_the_job_did(tmp_path):
    def job():
        with lease(str(tmp_path), "a job"):
            (tmp_path / "lease.json").write_bytes(b"{oops")
            raise ValueError("the job's own")

    with pytest.raises(ValueError, match="the job's own"):
        job()
    with pytest.raises(UserError, match="is damaged"), lease(str(tmp_path), "another"):
        pass


def test_a_holder_that_lets_go_just_then_is_followed(tmp_path, monkeypatch):
    """Between the refused creation and the question whose it is."""
    real = lease_module._holder

    def meanwhile(uri):
        (tmp_path / "lease.json").unlink()
        return real(uri)

    (tmp_path / "lease.json").write_text("another's")
    monkeypatch.setattr(lease_module, "_holder", meanwhile)
    with lease(str(tmp_path), "mine"):
        assert json.loads((tmp_path / "lease.json").read_text())["purpose"] == "mine"
        (tmp_path / "lease.json").unlink()  # lost while it is held: nothing to let go
    assert not (tmp_path / "lease.json").exists()


def test_a_lease_that_is_never_seen_is_not_asked_for_for_ever(tmp_path, monkeypatch):
    """A store that says that the file is there, and that it is not."""
    asked = []
    monkeypatch.setattr(lease_module, "commit", lambda *_, **__: bool(asked.append(1)))
    with pytest.raises(UserError, match="taken and let go again"), lease(str(tmp_path), "mine"):
        pass
    assert 1 < len(asked) < 100


QUICK = 3.0
"""Seconds after which a lease expires in the tests below."""
_HOLDS = """
import sys, time
from infra import lease
lease.LEASE_EXPIRES = float(sys.argv[2])
with lease.lease(sys.argv[1], "the first job"):
    print("held", flush=True)
    {meanwhile}
    sys.stdin.read()
"""


@contextmanager
def holding(folder, meanwhile="pass"):
    """A process that holds a folder until its input ends, in a library's call that no exception gets it out of."""
    command = [sys.executable, "-c", _HOLDS.format(meanwhile=meanwhile), str(folder), str(QUICK)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ends_at_once(process):
    assert process.wait(30) == 2
    said = process.stderr.read()
    assert "is no longer held by this job" in said and "run the same command again" in said and "Traceback" not in said
    return said


def beats_again(file, after):
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if json.loads(file.read_bytes())["heartbeat"] > after:
            return True
        time.sleep(0.05)
    return False


def test_a_heartbeat_that_fails_once_is_made_good(tmp_path, monkeypatch):
    """A disk that is full for a moment; the folder is refused to others ever after."""
    monkeypatch.setattr(lease_module, "LEASE_EXPIRES", QUICK)
    failed = []

    def full_once(*given, **named):
        if threading.current_thread() is not threading.main_thread() and not failed:
            failed.append(time.time())
            raise OSError(errno.ENOSPC, "No space left on device")
        return commit(*given, **named)

    monkeypatch.setattr(lease_module, "commit", full_once)
    with lease(str(tmp_path), "first job"):
        assert beats_again(tmp_path / "lease.json", time.time())
        assert failed
        with pytest.raises(UserError, match="in use: first job"), lease(str(tmp_path), "second"):
            pass


def test_a_job_that_was_stopped_until_another_took_its_folder_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "LEASE_EXPIRES", QUICK)
    with holding(tmp_path) as first:
        first.send_signal(signal.SIGSTOP)
        time.sleep(QUICK + 0.5)
        with lease(str(tmp_path), "the second job"):
            first.send_signal(signal.SIGCONT)
            assert "now in use: the second job (process" in ends_at_once(first)
            assert json.loads((tmp_path / "lease.json").read_bytes())["purpose"] == "the second job"


def test_a_job_that_was_stopped_while_nobody_took_its_folder_goes_on(tmp_path):
    with holding(tmp_path) as first:
        first.send_signal(signal.SIGSTOP)
        time.sleep(QUICK + 0.5)
        now = time.time()
        first.send_signal(signal.SIGCONT)
        assert beats_again(tmp_path / "lease.json", now)
        first.communicate(timeout=30)
        assert first.returncode == 0 and list(tmp_path.iterdir()) == []


def test_a_job_whose_folder_was_deleted_ends_and_does_not_make_it_anew(tmp_path):
    with holding(tmp_path / "work") as first:
        shutil.rmtree(tmp_path / "work")
        assert "was deleted or overwritten" in ends_at_once(first)
        assert not (tmp_path / "work").exists()


def test_a_job_on_a_full_disk_goes_on_until_another_takes_its_folder(tmp_path, monkeypatch):
    """Training says that a checkpoint failed, and goes on: the lease is no other's as long as nobody came."""
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    monkeypatch.setattr(lease_module, "LEASE_EXPIRES", QUICK)
    with holding(tmp_path, full) as first:
        time.sleep(2 * QUICK)
        assert first.poll() is None
        with lease(str(tmp_path), "the second job"):
            said = ends_at_once(first)
    assert "nothing could say that this job lives" in said and "File too large" in said and "now in use: the second job (process" in said
