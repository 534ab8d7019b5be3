"""Jobs spread over Ray actors, or run here: one meaning of an error and one of a death.

Ray only schedules. An exception of a job ends the round and is told; the death of a worker (crash, kill, no memory, lost node) is a result like another,
and the caller decides what it means by what stands on storage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from infra.backoff import wait
from infra.errors import RayLost, UserError
from infra.place import Place, room_for
from infra.runtime import start_ray

_TRIES = 3
_PATIENCE = 5.0
"""Seconds without a result after which it is asked whether Ray itself is alive."""
_PERHAPS = " (runtime_env.config.setup_timeout_seconds): its Python may not be there, or lack Ray or LaTo, or other jobs hold the cluster"
"""Ray starts a process that ends at once again and again, and says nothing of it."""
_TOLD = 600
"""Characters of what Ray says of an environment that cannot be made: its last ones have the cause."""
J = TypeVar("J")


class Worker(Protocol):
    """Holds what is loaded once (models), and does jobs."""

    def run(self, job: Any) -> Any:
        """Does one job."""


@dataclass(frozen=True)
class Died:
    """The worker that had the job died, or cannot be reached, or what it returned was lost with its node."""

    why: str
    """What Ray says of it, in a line."""


@dataclass(frozen=True)
class Done(Generic[J]):
    """A job and its result, or `Died`."""

    job: J
    result: Any


_expected: list[Place] = []


def prepare_places(places: Sequence[Place]) -> None:
    """Says what else will be asked of Ray. It is held against the cluster when first Ray is needed: hours of work must not end at a GPU that is not there."""
    _expected[:] = places


def run_jobs(make: Callable[[], Worker], jobs: Sequence[J], workers: int, place: Place) -> Iterator[Done[J]]:
    """Runs jobs in the order given, and yields each as it ends.

    Args:
        make: Makes a worker; called where it works.
        jobs: What to do.
        workers: Ray actors of one CPU each; 0 runs all here, without Ray.
        place: What else each actor takes.

    Raises:
        UserError: A job raised, no node has room for a worker, or its environment could not be made: says what.
    """
    if workers == 0 or not jobs:
        here = make() if jobs else None
        for job in jobs:
            assert here is not None
            yield Done(job, here.run(job))
        return
    yield from _run_on_ray(make, jobs, min(workers, len(jobs)), place)


def run_all(make: Callable[[], Worker], jobs: Sequence[J], workers: int, place: Place) -> Iterator[Done[J]]:
    """As `run_jobs`, for jobs that blame nobody: one whose worker died is done again, `_TRIES` times in all. A single job that asks for neither GPU nor
    environment is done here.

    Raises:
        UserError: A job raised, or its workers kept dying.
    """
    todo = list(jobs)
    for failed in range(_TRIES):
        if failed:
            wait(failed)  # what ended them (no memory, a node on its way out) may need a moment to pass
        lost, why = [], ""
        for done in run_jobs(make, todo, workers if len(jobs) > 1 or place.gpus or place.runtime_env else 0, place):
            if isinstance(done.result, Died):
                lost.append(done.job)
                why = done.result.why
            else:
                yield done
        if not lost:
            return
        todo = lost
    raise UserError(
        f"{len(todo)} jobs ended their worker {_TRIES} times each; the last: {why}. What was done stands; run the same command again."
    )


def _run_on_ray(make: Callable[[], Worker], jobs: Sequence[J], workers: int, place: Place) -> Iterator[Done[J]]:
    import ray

    start_ray()
    while _expected:
        room_for(_expected.pop(), 1)
    workers = room_for(place, workers)
    # an actor that dies ends its job and is not restarted by Ray: the job is never tried again behind the caller's back
    takes = {"num_cpus": 1, "num_gpus": place.gpus, "memory": place.memory or None, "runtime_env": dict(place.runtime_env) or None}
    actor = ray.remote(**takes, max_restarts=0, max_task_retries=0)(_Actor)
    queue = list(jobs)[::-1]
    waiting: dict[Any, tuple[Any, J]] = {}

    def give(worker: Any) -> None:
        job = queue.pop()
        waiting[worker.run.remote(job)] = (worker, job)

    team = [actor.remote(make) for _ in range(workers)]
    up = [worker.started.remote() for worker in team] if place.runtime_env else []
    until = time.monotonic() + place.setup_seconds
    for worker in team:
        give(worker)
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_PATIENCE)
            if not ready:
                check_own_node()
                if place.runtime_env and time.monotonic() > until and not ray.wait(up, timeout=0)[0]:
                    raise UserError(_no_environment(place, f"none came up in {place.setup_seconds:g} s{_PERHAPS}"))
                continue
            worker, job = waiting[ready[0]]
            try:
                result = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                raise _as_user_error(error) from error
            except ray.exceptions.RuntimeEnvSetupError as error:
                raise UserError(_no_environment(place, str(error))) from error
            except _deaths() as error:  # one death, one new worker: as many as there are jobs, at most
                if getattr(error, "actor_init_failed", False):  # its own code cannot be loaded there: it never will be
                    raise UserError(_no_environment(place, str(error))) from error
                check_own_node()  # without it no other would come up
                ray.kill(worker)  # one that only cannot be reached would keep its CPU, and what it was given
                result, worker = Died(_in_a_line(error)), actor.remote(make) if queue else None
            except ray.exceptions.RayError as error:  # no other is one that another try mends
                check_own_node()
                raise UserError(
                    f"{place.stage}: Ray could not go on: {_in_a_line(error)}. What was done stands; run the same command again."
                ) from error
            del waiting[ready[0]]
            if queue:
                give(worker)
            elif worker is not None:
                ray.kill(worker)  # its CPU may be what a new worker elsewhere waits for
            yield Done(job, result)
    finally:
        if own_node_lives():
            for worker, _ in waiting.values():
                ray.kill(worker)


def _deaths() -> tuple[type[Exception], ...]:
    """Ray's errors that mean: this worker or its node is gone (or what it returned, with its node), and another may do the job. Of the others some are of the
    program (a result that cannot be read), some of the cluster (a full disk or object store, a key that is refused): each try would end the same.
    """
    from ray import exceptions

    return (
        exceptions.RayActorError,  # died, or cannot be reached
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,  # ended by Ray's memory monitor
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.ActorUnschedulableError,  # its node is gone: the next round says if no other has room
        exceptions.ObjectLostError,  # a result too large for a message lies on its worker's node
    )


def _in_a_line(error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said[:_TOLD]}".rstrip(".: ")


def own_node_lives() -> bool:
    """Whether the Ray node that this process belongs to is alive: without it every call waits for ever."""
    import ray

    mine = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == mine and node["Alive"] for node in ray.nodes())


def check_own_node() -> None:
    """Raises RayLost if it is dead."""
    if not own_node_lives():
        raise RayLost(
            "the Ray node that this job was started on has died. What was done stands; start Ray again and run the same command again."
        )


def _as_user_error(error: Any) -> UserError:
    cause = error.cause if isinstance(error.cause, Exception) else error
    if isinstance(cause, UserError):
        return cause
    return UserError(
        f"a worker could not go on: {type(cause).__name__}: {str(cause).rstrip('.')}. What was done stands; mend this and run the same command again."
    )


def _no_environment(place: Place, said: str) -> str:
    """The message where a worker cannot be started in its environment; of what Ray and pip say, the lines that name an error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = list(dict.fromkeys(line for line in lines if "Error" in line or "ERROR" in line)) or lines
    where = f"{place.key}.runtime_env" if place.runtime_env and place.key else "the environment of Ray's workers"
    return f"{place.stage}: no worker can be started, mend {where}: {' '.join(errors)[-_TOLD:]}. What was done stands; run the same command again."


class _Actor:
    def __init__(self, make: Callable[[], Worker]) -> None:
        self._make = make
        self._worker: Worker | None = None

    def started(self) -> None:
        """Answers once it is there."""

    def run(self, job: Any) -> Any:
        if self._worker is None:  # made here, so that what keeps it from being made is an exception of a job and told
            self._worker = self._make()
        return self._worker.run(job)
