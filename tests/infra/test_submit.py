"""`lato submit` against a real Ray head: the same command, its log, its status."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

DASHBOARD = "http://127.0.0.1:8297"


@pytest.fixture
def head():
    folder = tempfile.mkdtemp(prefix="r")  # short: sockets lie below it
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    ray = str(Path(sys.executable).parent / "ray")
    options = ["--port=6397", "--dashboard-host=127.0.0.1", "--dashboard-port=8297", "--num-cpus=2", f"--temp-dir={folder}"]
    options += ["--object-store-memory=200000000", "--ray-client-server-port=20397"]
    # the Ray of the other tests holds the default port of the agent, and a head without agent runs no job
    options += ["--dashboard-agent-listen-port=8298"]
    process = subprocess.Popen(
        [ray, "start", "--head", "--block", *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{DASHBOARD}/api/version", timeout=1)
            break
        except urllib.error.HTTPError:  # it answers, and wants its token
            break
        except (urllib.error.URLError, TimeoutError):
            assert process.poll() is None, "the head ended"
            time.sleep(0.5)
    yield
    process.terminate()
    process.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_build_runs_on_the_cluster_and_its_status_comes_back(head, tmp_path):
    def submit(*words):
        command = [sys.executable, "-m", "infra.cli", "submit", "--address", DASHBOARD, "--", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    work = tmp_path / "w"
    people = ("synthetic.anny.people=6", "split.val=0.2", "split.test=0.2")
    done = submit("data", "build", *people, "synthetic.anny.workers=0", "analyze.workers=1", "--work-dir", str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Funnel" in done.stdout
    assert (work / "versions" / "v1" / "index.json").is_file()
    failed = submit("data", "verify", str(tmp_path / "nowhere"))
    assert failed.returncode == 1
    assert "no published version here" in failed.stdout
