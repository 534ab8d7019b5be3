"""A build on real Ray with a victim: `python -m tests.data_pipeline.chaos --seeds 50` kills each kind that often and compares the bytes.

Victims: the driver, a Ray worker, a decoder's child, a worker node's raylet, the head's raylet. A killed build is run again, as its user would, until it
ends; what it publishes must be byte-identical to the undisturbed build, with every source in the ledger.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil

VICTIMS = ("driver", "worker", "decoder", "node", "head")
_PATIENCE = 900.0
"""Seconds that a build of a few sources may take; a machine may be busy with other things."""
_RUNS = 4
"""A build that was disturbed once must end within this many runs."""
_NO_RAY, _STARTS = 3, 4
"""Exit status where Ray itself did not start, which a busy machine does: no run of the build; and how often that may be."""
_MISSES = 6
"""So often a build may be faster than its killer: each time another begins, and the killer comes sooner."""
SURVIVED = ("worker", "decoder")
"""Their builds go on, so that one driver and one Ray serve all seeds."""


class Disturbed(NamedTuple):
    """A build that had a victim."""

    runs: int
    """Until it ended."""
    struck: bool
    """Whether the victim was there to be killed; a build may have been faster."""
    missed: int = 0
    """Builds before it that were faster than their killer."""


def run_builds(works: Iterable[Path], models: Path, items: Path, nodes: int, people: int = 4) -> None:
    """Builds one after another, in this process, on a Ray of its own, with that many drawn people; `<work>.end` says that one is finished."""
    from infra.runtime import quieten

    quieten()
    import ray
    from ray.cluster_utils import Cluster

    from data_pipeline.build import build_dataset
    from data_pipeline.synthetic.anny_people import AnnyConfig
    from data_pipeline.worklist import WorkItem
    from infra.errors import UserError
    from infra.lease import lease
    from infra.runtime import RuntimeConfig, start_ray
    from infra.storage import commit
    from tests.data_pipeline.crash_chain import CONFIG

    anny = AnnyConfig(people=people, images=5) if people > 4 else AnnyConfig(people=people, images=3, workers=1)
    changes = {"analyze": CONFIG.analyze.model_copy(update={"workers": 2}), "synthetic": CONFIG.synthetic.model_copy(update={"anny": anny})}
    if people > 4:  # the soak's windows are of six clips, each a group and few people
        changes["split"] = CONFIG.split.model_copy(update={"max_component": 1.0})
        changes["pairing"] = CONFIG.pairing.model_copy(update={"per_identity": 1000, "per_cell": 100})
    config = CONFIG.model_copy(update=changes)
    sources = [WorkItem(**row) for row in json.loads(items.read_text())]
    pids = {}
    try:
        if nodes > 1:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
            second = cluster.add_node(num_cpus=1)
            pids = {"head": [_raylet(cluster.head_node)], "node": [_raylet(second)]}
            nodes_started = (cluster.head_node, second)
            pids["all"] = [info.process.pid for node in nodes_started for infos in node.all_processes.values() for info in infos]
            start_ray(RuntimeConfig(address=cluster.address))
        else:
            start_ray(RuntimeConfig(num_cpus=2))
    except Exception:
        traceback.print_exc()
        os._exit(_NO_RAY)
    for work in works:
        commit(str(work.parent / f"{work.name}.pids"), json.dumps(pids).encode())  # whole or not there: it is read at once
        if nodes > 1:
            _type_build(config, sources, work)
        try:
            with lease(str(work), "chaos"):
                build_dataset(config, str(work), models, sources)
        except UserError as error:
            print("error:", error, file=sys.stderr, flush=True)
            os._exit(2)  # as `lato` does
        (work.parent / f"{work.name}.end").touch()
    ray.shutdown()


def _type_build(config: Any, sources: list[Any], work: Path) -> NoReturn:
    """The command as a user types it, on the Ray that this process has joined; it ends the process."""
    from data_pipeline.worklist import write_worklist
    from infra import cli
    from infra.config import dump_config

    write_worklist(sources, listed := f"{work}.parquet")
    Path(f"{work}.yaml").write_text(dump_config(config.model_copy(update={"worklist": listed})))
    sys.argv = ["lato", "data", "build", f"{work}.yaml", "--work-dir", str(work)]
    cli.run()


def _raylet(node: object) -> int:
    return node.all_processes["raylet"][0].process.pid  # type: ignore[attr-defined]


def disturb(work: Path, models: Path, items: Path, victim: str, seed: int, shared: subprocess.Popen[bytes] | None = None) -> Disturbed:
    """Runs a build and kills its victim at a seeded moment; then runs it until it ends. A build without a victim is no test: another is begun.

    A `shared` driver (from `serve`) builds in one run or not at all.
    """
    for missed in range(_MISSES):
        runs, struck = _disturb_once(work, models, items, victim, random.Random(f"{victim}/{seed}"), shared, 0.5**missed)
        if struck:
            break
        if missed < _MISSES - 1:
            shutil.rmtree(work)
            (work.parent / f"{work.name}.end").unlink(missing_ok=True)
    return Disturbed(runs, struck, missed if struck else _MISSES)


def _disturb_once(
    work: Path, models: Path, items: Path, victim: str, drawn: random.Random, shared: subprocess.Popen[bytes] | None, haste: float
) -> tuple[int, bool]:
    """Runs until the build ended, and whether its victim was there; `haste` is the share of the seeded moment that is waited for."""
    nodes = 2 if victim in ("node", "head") else 1
    run, starts, struck = 1, 0, False
    while run <= _RUNS:
        if shared is not None:
            assert run == 1, f"{work.name}: was to be survived inside the run"
            assert shared.stdin is not None
            shared.stdin.write(f"{work}\n".encode())
            shared.stdin.flush()
        child = shared or start(work, models, items, nodes)
        if run == 1:
            if victim != "decoder":  # it is there for as long as a video is read
                _wait_for_parts(work, int(drawn.randint(0, 3) * haste), child)
            struck = kill(victim, child, work, drawn.uniform(0, 0.3 if victim == "decoder" else 1.0) * haste)
        if shared is not None:
            _wait_until(lambda: (work.parent / f"{work.name}.end").exists() or shared.poll() is not None, _PATIENCE)
            if (work.parent / f"{work.name}.end").exists():
                return run, struck
            run += 1
            continue
        try:
            status = child.wait(timeout=_PATIENCE)
        finally:
            end(child, work)
        if status == 0:
            return run, struck
        if victim == "head" and struck and run == 1:
            said = [line for line in Path(f"{work}.log").read_text().splitlines() if line.startswith(("error:", "Traceback"))]
            assert status == 2 and len(said) == 1 and "Ray" in said[0], (status, said)  # the other node may have done what was left: 0
        if status == _NO_RAY:
            starts += 1
            assert starts < _STARTS, f"{work.name}: Ray did not start, {starts} times"
        else:
            run += 1
    raise AssertionError(f"{work.name}: not finished after {_RUNS} runs")


def start(work: Path, models: Path, items: Path, nodes: int, people: int = 4) -> subprocess.Popen[bytes]:
    """A process that builds once."""
    log = (work.parent / f"{work.name}.log").open("ab")
    command = [sys.executable, "-m", "tests.data_pipeline.chaos", "--build", str(work), str(models), str(items), str(nodes), str(people)]
    return subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)


def serve(log: Path, models: Path, items: Path) -> subprocess.Popen[bytes]:
    """A process that builds in every folder that is written to its input, a line each, on one Ray."""
    command = [sys.executable, "-m", "tests.data_pipeline.chaos", "--build", "-", str(models), str(items), "1", "4"]
    output = log.open("ab")
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.PIPE, stdout=output, stderr=output)


def _wait_for_parts(work: Path, count: int, child: subprocess.Popen[bytes]) -> None:
    pids = work.parent / f"{work.name}.pids"
    _wait_until(lambda: (pids.exists() and len(list((work / "parts").glob("*.parquet"))) >= count) or child.poll() is not None)


def kill(victim: str, child: subprocess.Popen[bytes], work: Path, delay: float) -> bool:
    """Kills what is there of the victim so many seconds after it was first there; False where the build has ended before."""
    found: list[int] = []

    def look() -> bool:
        found[:] = _find(victim, child, work)
        return bool(found) or child.poll() is not None or (work.parent / f"{work.name}.end").exists()

    _wait_until(look)
    time.sleep(delay)
    if child.poll() is not None or not look() or not found:
        return False
    if victim == "driver":
        os.killpg(child.pid, signal.SIGKILL)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[-1], signal.SIGKILL)
    return True


def _find(victim: str, child: subprocess.Popen[bytes], work: Path) -> list[int]:
    """Process ids of what may be killed."""
    if victim == "driver":
        return [child.pid]
    if victim in ("node", "head"):
        pids = work.parent / f"{work.name}.pids"
        return json.loads(pids.read_text())[victim] if pids.exists() else []
    workers = [process.pid for process in _below(child.pid) if _line(process).startswith("ray::_Actor")]
    if victim == "worker":
        return workers
    return [process.pid for worker in workers for process in _below(worker) if "forkserver" in _line(process)]


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _wait_until(done: Callable[[], bool], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not done() and time.monotonic() < limit:
        time.sleep(0.02)


def end(child: subprocess.Popen[bytes], work: Path) -> None:
    """Nothing of a run may outlive it: a Ray whose head was killed leaves processes behind."""
    pids = work.parent / f"{work.name}.pids"
    started = json.loads(pids.read_text()).get("all", []) if pids.exists() else []
    for pid in [*started, *(process.pid for process in _below(child.pid)), child.pid]:
        for process in [*_below(pid), *([psutil.Process(pid)] if psutil.pid_exists(pid) else [])]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
    pids.unlink(missing_ok=True)


def main() -> None:
    """All victims, many seeds."""
    if sys.argv[1:2] == ["--build"]:
        work, models, items, nodes, people = sys.argv[2:]
        works = (Path(line.strip()) for line in sys.stdin) if work == "-" else [Path(work)]
        run_builds(works, Path(models), Path(items), int(nodes), int(people))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--victims", nargs="*", default=list(VICTIMS))
    given = parser.parse_args()
    from infra import assets
    from tests.data_pipeline.test_crashes import files_of, write_items

    folder = Path(tempfile.mkdtemp(prefix="lato_chaos_"))
    items = write_items(folder, lambda name: str(assets.path(name)))
    assert start(folder / "calm", assets.folder(), items, 1).wait() == 0
    calm = files_of(folder / "calm" / "versions" / "v1")
    print("| victim | seeds | killed | builds that were faster | runs to the end | bytes |\n|---|---|---|---|---|---|")
    for victim in given.victims:
        runs = []
        shared = serve(folder / f"{victim}.log", assets.folder(), items) if victim in SURVIVED else None
        try:
            for seed in range(given.first, given.first + given.seeds):
                work = folder / f"{victim}_{seed}"
                runs.append(disturb(work, assets.folder(), items, victim, seed, shared))
                assert files_of(work / "versions" / "v1") == calm, f"{victim}, seed {seed}: other bytes"
                print(f"{victim} {seed}: {runs[-1]}", file=sys.stderr, flush=True)
                shutil.rmtree(work)
        finally:
            if shared is not None:
                end(shared, folder / victim)
        counts = [one.runs for one in runs]
        told = ", ".join(f"{counts.count(n)} x {n}" for n in sorted(set(counts)))
        print(
            f"| {victim} | {given.seeds} | {sum(one.struck for one in runs)} | {sum(one.missed for one in runs)} | {told} | identical |",
            flush=True,
        )


if __name__ == "__main__":
    main()
