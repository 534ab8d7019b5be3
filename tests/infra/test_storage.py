"""Commits are whole or absent; equal values have equal digests."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from data_pipeline.attempts import take_marked
from infra import storage
from infra.addresses import filesystem_of, join
from infra.errors import UserError
from infra.scratch import scratch_for, sweep_scratch
from infra.storage import commit, file_names, list_files, list_folders, read_bytes, sha256_json
from tests.alone import alone


def test_a_failed_commit_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        commit(str(tmp_path / "a"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_exclusive_creates_once(tmp_path):
    uri = str(tmp_path / "a")
    assert commit(uri, b"first", exclusive=True)
    assert not commit(uri, b"second", exclusive=True)
    assert read_bytes(uri) == b"first"
    assert commit(uri, b"third")
    assert read_bytes(uri) == b"third"


def test_killed_at_any_moment_a_file_is_whole(tmp_path):
    script = "import sys; from infra.storage import commit\nfor n in range(10**6): commit(sys.argv[1] + '/f', bytes([n % 251]) * 200_000)"
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    while not (tmp_path / "f").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    data = (tmp_path / "f").read_bytes()
    assert len(data) == 200_000
    assert len(set(data)) == 1
    assert list_files(str(tmp_path)) == [join(str(tmp_path), "f")]  # a leftover is hidden, and never taken for a file


def count_and_memory(folder):
    tracemalloc.start()
    return len(set(file_names(folder, ".jpg"))), tracemalloc.get_traced_memory()[1]


def test_listing_a_folder_of_very_many_files_takes_no_memory_but_for_their_names(tmp_path):
    """Hidden files, folders and links are left out."""
    for number in range(5_000):
        (tmp_path / f"{number:064d}.jpg").touch()
    (tmp_path / ".hidden.jpg").touch()
    (tmp_path / "other.png").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / f"{0:064d}.jpg")
    wanted = {f"{number:064d}.jpg" for number in range(5_000)}
    assert set(file_names(str(tmp_path), ".jpg")) == wanted
    assert list_files(f"file://{tmp_path}", ".jpg") == [f"file://{tmp_path}/{name}" for name in sorted(wanted)]
    assert list_files(str(tmp_path / "none")) == list_files(str(tmp_path / "other.png")) == []
    names, most = alone(count_and_memory, str(tmp_path))
    assert names == 5_000 and most / 5_000 < 300, "bytes a file at most"


def test_a_folder_of_a_store_that_goes_while_it_is_asked_for_is_empty(monkeypatch):
    """On a store it is there only while something lies in it: another worker may just have deleted the last mark."""
    commit("memory://gone/attempts/run-1.json", b'["f"]')
    filesystem, _ = filesystem_of("memory://gone")
    real = type(filesystem).ls

    def meanwhile(self, path, *args, **kwargs):
        if "attempts" in path and self.exists("/gone/attempts"):
            self.rm("/gone/attempts", recursive=True)
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(type(filesystem), "ls", meanwhile)
    assert take_marked("memory://gone", "run", {"f"}) == set()
    commit("memory://gone/attempts/x/run-1.json", b'["f"]')
    assert list_folders("memory://gone/attempts") == []


def test_a_file_is_no_folder():
    for folder in ("memory://one", "memory://one/b"):
        commit(f"{folder}/a", b"x")
    assert list_files("memory://one/a") == list_folders("memory://one/a") == []
    assert list_files("memory://one") == ["memory://one/a"] and list_folders("memory://one") == ["memory://one/b"]


def test_what_waits_for_a_store_lies_in_the_scratch_that_was_named(tmp_path, monkeypatch):
    """The temporary folder may be memory."""
    monkeypatch.setenv("LATO_SCRATCH", str(tmp_path / "scratch"))
    with scratch_for("memory://w/copies.json") as path:
        assert os.path.dirname(path) == str(tmp_path / "scratch/lato_scratch")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LATO_SCRATCH", str(tmp_path / "file/scratch"))
    with pytest.raises(UserError, match=r"cannot write to .*file/scratch.*LATO_SCRATCH"), scratch_for("memory://w/copies.json"):
        pass


def test_what_a_kill_leaves_in_scratch_is_swept_and_what_is_written_now_is_not(tmp_path, monkeypatch):
    """Tables of a build into a store are on no disk of its own, and would stay: a named scratch is cleared by no reboot."""
    monkeypatch.setenv("LATO_SCRATCH", str(tmp_path))
    code = (
        "import os; from infra.scratch import scratch_for; held = scratch_for('memory://w/candidates.parquet')\n"
        "held.__enter__(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (left,) = (tmp_path / "lato_scratch").iterdir()
    with scratch_for("memory://w/candidates.parquet") as path:
        assert sweep_scratch() == 1 and not left.exists() and os.path.exists(path)


def test_an_unwritable_folder_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        commit(str(tmp_path / "file" / "below"), b"x")


def test_equal_values_have_equal_digests():
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) != sha256_json({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("oss://bucket/x", r"a library for oss:// is missing here. Install it with `pip install ossfs`"),
        ("bucket://x/y", r"bucket:// is no kind of address"),
    ],
)
def test_what_no_library_here_reads_is_said(uri, message):
    with pytest.raises(UserError, match=message):
        filesystem_of(uri)


@pytest.mark.parametrize(
    "uri", ["/d/Foo::Bar.mp4", "file:///d/Foo::Bar.mp4", "s3://bucket/d/Foo::Bar.mp4", "gs://bucket/d/Foo::Bar::1.mp4"]
)
def test_two_colons_in_a_name_are_a_part_of_it(uri):
    filesystem, path = filesystem_of(uri)
    assert f"/{path.lstrip('/')}" in (uri.removeprefix("file://"), "/" + uri.split("://")[-1])
    assert type(filesystem) is type(filesystem_of(uri.replace("::", ""))[0])


def test_a_chain_of_file_systems_is_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"inside")
    assert filesystem_of(f"simplecache::file://{tmp_path}/a.txt")[0].protocol == "simplecache"


def test_a_model_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    file, read = tmp_path / "model.onnx", []
    monkeypatch.setattr(storage, "sha256_file", lambda uri: read.append(uri) or storage.sha256_bytes(Path(uri).read_bytes()))
    file.write_bytes(b"one")
    assert storage.sha256_model(file) == storage.sha256_model(file) == storage.sha256_bytes(b"one")
    assert len(read) == 1
    (tmp_path / "new").write_bytes(b"two")
    (tmp_path / "new").replace(file)
    assert storage.sha256_model(file) == storage.sha256_bytes(b"two")
