"""A folder has one holder."""

import json
import os
import time

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
