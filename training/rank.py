"""One rank of a training, wherever it was started: by Ray Train, by torchrun, or as one of some plain processes.

`torchrun --nproc-per-node 8 -m training.rank job.json` trains without Ray; `lato train ... --launcher plain` does the same on one machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from infra.errors import UserError
from infra.storage import commit
from training import checkpoint, engine
from training.export import export
from training.stage_factory import Job

PREEMPTED = 75
"""Exit status of a rank that saved and ended because it was asked to (the `try again` of sysexits)."""


DRIVER = "LATO_DRIVER"
"""The variable in which a driver that starts ranks as its own processes tells them its process id."""


def work(job: Job, preempted: Callable[[], bool] = lambda: False) -> None:
    """Trains, then rank 0 exports the last model, and the best where that is another; called on every rank.

    Raises:
        Exception: What stopped this rank; `failures/rank-....json` in the run's folder says it in words.
    """
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # ranks are placed by CPU; more threads would only fight
    rank, folder = int(os.environ["RANK"]), Path(job.folder)
    try:
        stage = job.make()
        engine.run(stage, job.engine, folder, job.checkpoints, preempted)
        dist.destroy_process_group()
        if rank == 0:
            export_all(job, folder)
    except Exception as error:
        text = {"kind": type(error).__name__, "text": str(error), "traceback": traceback.format_exc()}
        with contextlib.suppress(
            UserError, OSError
        ):  # on a full disk what stopped this rank is in its output alone; it must not be hidden behind the disk
            commit(str(folder / "failures" / f"rank-{rank:05d}.json"), json.dumps(text).encode())
        raise


def export_all(job: Job, folder: Path) -> None:
    """Exports of the newest and of the best checkpoint: `export`, and `export-best` where that is another; one of an earlier best is deleted."""
    newest, best = checkpoint.newest(job.checkpoint_folder), checkpoint.best(job.checkpoint_folder)
    assert newest is not None, "a training ends with a checkpoint"
    export(job.make(), newest, folder / "export")
    if best is not None and best != newest:
        export(job.make(), best, folder / "export-best")
    else:
        shutil.rmtree(folder / "export-best", ignore_errors=True)


def export_one(run: Path, which: str) -> dict[str, Any]:
    """Exports one checkpoint of a run into its folder.

    Args:
        run: The run's folder.
        which: `newest`, `best`, or a step's number.

    Raises:
        UserError: There is no such run or checkpoint, or it is torn.
    """
    if not (run / "job.json").is_file():
        raise UserError(f"{run}: no training was started here (no job.json)")
    job = Job.model_validate_json((run / "job.json").read_bytes())
    named = {"newest": checkpoint.newest, "best": checkpoint.best}
    found = checkpoint.markers(job.checkpoint_folder)
    there = {str(marker["step"]): path for path, marker in found.items()}
    chosen = named[which](job.checkpoint_folder) if which in named else there.get(which)
    if chosen is None:
        whole = " whose files are all whole" if which in named and there else ""
        raise UserError(f"{run}: no checkpoint {which}{whole}; there are those of steps {', '.join(there) or 'none'}")
    if which not in named and not checkpoint.is_whole(chosen, found[chosen]):
        raise UserError(
            f"{chosen}: files of this checkpoint are missing or changed. Copy it back, or export another (newest, best, or a step)."
        )
    step = int(chosen.rsplit("-", 1)[-1])
    return export(job.make(), chosen, run / f"export-{step}") | {"folder": str(run / f"export-{step}")}


def main() -> int:
    """`python -m training.rank job.json`."""
    from infra.runtime import quieten

    quieten()
    _end_with_driver()
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    try:
        work(job)
    except engine.Preempted as error:
        print(error, file=sys.stderr)
        return PREEMPTED
    return 0


def _end_with_driver() -> None:
    """Ranks of a driver that is killed end with it: else they would write into the same run as those of the next one."""
    driver = os.environ.get(DRIVER)
    if driver is None:
        return
    set_death_signal, option = getattr(ctypes.CDLL(None), "prctl", None), 1  # PR_SET_PDEATHSIG; Linux alone has it
    if set_death_signal is not None:
        set_death_signal(option, signal.SIGKILL)
    if os.getppid() != int(driver):  # it died before that
        sys.exit(f"the driver (process {driver}) has ended")


if __name__ == "__main__":
    sys.exit(main())
