"""Jobs over Ray actors: which of Ray's errors are a death, and that no death is answered for ever.

What Ray raises is put into its answers, but for one: most of these have no cause that is cheap to bring about.
"""

import os
import subprocess
import sys
import time

import pytest
from ray import exceptions

from infra import pool
from infra.errors import UserError
from infra.place import Place
from infra.pool import Died, run_all, run_jobs

PLACE = Place("counting")
LOST = ("00" * 28, b"", "")
DEATHS = [
    exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node: ..."),
    exceptions.ActorDiedError(),
    exceptions.ActorUnavailableError("connection lost", None),
    exceptions.WorkerCrashedError(),
    exceptions.NodeDiedError("its node died"),
    exceptions.LocalRayletDiedError(),
    exceptions.ActorUnschedulableError("its node died"),
    exceptions.ObjectLostError(*LOST),
    exceptions.ObjectReconstructionFailedError(LOST[0]),
]
ENDS = [exceptions.RaySystemError("cannot read the result"), exceptions.OutOfDiskError("full"), exceptions.ObjectStoreFullError("full")]


class Worker:
    def run(self, job):
        return os.getpid()


def failing(monkeypatch, error, times):
    """The first answers of Ray's are this error; the workers are real. Returns the processes that were to be told of."""
    import ray

    answered, real = [], ray.get

    def get(ref):
        answered.append(real(ref))
        if len(answered) <= times:
            raise error
        return answered[-1]

    monkeypatch.setattr(ray, "get", get)
    return answered


@pytest.mark.slow
@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
def test_a_worker_or_node_that_is_gone_is_a_death_and_the_job_is_done_again(ray_session, monkeypatch, error):
    """Also one that only cannot be reached ends, as it would keep the CPU that its successor waits for."""
    monkeypatch.setattr(pool, "wait", lambda *_: None)
    answered = failing(monkeypatch, error, 1)
    first, second, *others = run_jobs(Worker, ["a", "b"], 1, PLACE)
    assert isinstance(first.result, Died) and first.result.why.startswith(type(error).__name__)
    assert (first.job, second.job, others) == ("a", "b", []) and second.result != answered[0]
    until = time.monotonic() + 30
    while os.path.exists(f"/proc/{answered[0]}") and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{answered[0]}")


@pytest.mark.slow
def test_deaths_without_end_are_three_tries_and_a_message_that_says_why(ray_session, monkeypatch):
    monkeypatch.setattr(pool, "wait", lambda *_: None)
    answered = failing(monkeypatch, DEATHS[0], 1_000)
    with pytest.raises(
        UserError, match=r"^2 jobs ended their worker 3 times each; the last: OutOfMemoryError: Task was killed .* low on memory\. What was"
    ):
        list(run_all(Worker, ["a", "b"], 1, PLACE))
    assert len(answered) == 6


@pytest.mark.slow
@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_other_errors_of_ray_end_the_job_with_one_message(ray_session, monkeypatch, error):
    answered = failing(monkeypatch, error, 1)
    with pytest.raises(UserError, match=f"^counting: Ray could not go on: {type(error).__name__}: .*run the same command again"):
        list(run_jobs(Worker, ["a", "b"], 1, PLACE))
    assert len(answered) == 1


_GREEDY = """
import time
from infra.place import Place
from infra.pool import run_jobs
from infra.runtime import RuntimeConfig, start_ray
class Worker:
    def run(self, job):
        held = bytearray(job)
        held[::4096] = b"1" * len(held[::4096])
        time.sleep(600)
start_ray(RuntimeConfig(num_cpus=1))
for done in run_jobs(Worker, [100 * 2**20] * 2, 1, Place("greedy")):
    print(done.result.why)
"""


@pytest.mark.slow
def test_a_worker_that_rays_own_memory_monitor_ends_is_a_death():
    """On a machine that it takes for full."""
    full = {"RAY_memory_usage_threshold": "0.02", "RAY_memory_monitor_refresh_ms": "200"}
    done = subprocess.run([sys.executable, "-c", _GREEDY], capture_output=True, text=True, timeout=120, env=os.environ | full)
    assert done.returncode == 0, done.stderr[-2000:]
    deaths = done.stdout.splitlines()
    assert len(deaths) == 2 and all(why.startswith("OutOfMemoryError: ") for why in deaths), done.stdout


_ORPHANED = """
import os, signal, sys, time
from pathlib import Path
import ray
from infra import cli
from infra.place import Place
from infra.pool import run_jobs
from infra.runtime import RuntimeConfig, start_ray
class Worker:
    def run(self, job):
        Path(job).touch()
        time.sleep(600)
def orphaned(begun: str):
    start_ray(RuntimeConfig(num_cpus=1))
    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    real, killed = ray.wait, []
    def wait(*args, **kwargs):
        if os.path.exists(begun) and not killed:
            killed.append(os.kill(raylet, signal.SIGKILL))
        return real(*args, **kwargs)
    ray.wait = wait
    for done in run_jobs(Worker, [begun] * 4, 1, Place("orphaned")):
        print(done.result.why)
cli.app.command()(orphaned)
sys.argv[0] = "lato"
cli.run()
"""


@pytest.mark.slow
def test_without_the_own_node_no_worker_is_blamed_no_other_is_asked_for_and_the_command_ends_with_one_message(tmp_path):
    soon = {"period_ms": "500", "timeout_ms": "500", "initial_delay_ms": "500", "failure_threshold": "2"}
    environment = os.environ | {f"RAY_health_check_{name}": value for name, value in soon.items()}
    command = [sys.executable, "-c", _ORPHANED, "orphaned", str(tmp_path / "begun")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2, done
    assert "Error: " not in done.stdout
    assert done.stderr.strip().splitlines() == [
        "error: the Ray node that this job was started on has died. What was done stands; start Ray again and run the same command again."
    ]
