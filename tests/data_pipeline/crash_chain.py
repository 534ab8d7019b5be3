"""Builds a small dataset without Ray, killed at every step: `python -m tests.data_pipeline.crash_chain WORK MODELS ITEMS.json`.

What a build imports, the head that it draws and the models' hashes are read once; each build is a fork. Run n dies at the first or second step that it
takes anew (before and after a commit), so that the chain visits every commit of the build from both sides. Prints how often it was killed.
"""

import json
import os
import signal
import sys
from pathlib import Path

import mediapipe.tasks.python.vision  # noqa: F401  (what is first used in a build would be imported in every fork)
import onnxruntime  # noqa: F401
import pandas  # noqa: F401
import pyarrow.dataset  # noqa: F401

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.worklist import WorkItem
from infra.storage import sha256_model

CONFIG = DataConfig(
    synthetic=SyntheticConfig(anny=AnnyConfig(people=4, images=3, workers=0)),
    analyze=AnalyzeConfig(workers=0),
    pairing=PairingConfig(max_upscale=6.0, same_person=True),
    split=SplitConfig(val=0.25, test=0.25),
)


def build(work: str, models: Path, items: list[WorkItem]) -> None:
    """One build in this process."""
    build_dataset(CONFIG, work, models, items)


def forked(work: str, models: Path, items: list[WorkItem], fail_at: int | None) -> int:
    """Exit status of a build in a fork that dies at a step."""
    pid = os.fork()
    if pid == 0:
        if fail_at:
            os.environ["LATO_FAIL_AT_STEP"] = str(fail_at)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            build(work, models, items)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    """Runs the chain."""
    work, models = sys.argv[1], Path(sys.argv[2])
    items = [WorkItem(**row) for row in json.loads(Path(sys.argv[3]).read_text())]
    load_head()
    for file in filter(Path.is_file, models.iterdir()):
        sha256_model(file)
    kills = 0
    while True:
        status = forked(work, models, items, 1 + kills % 2)
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
        assert kills < 1000, "the chain makes no progress"
    assert os.waitstatus_to_exitcode(status) == 0
    print(kills)


if __name__ == "__main__":
    main()
