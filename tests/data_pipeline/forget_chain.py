"""Forgets somebody without Ray, killed at every step: `python -m tests.data_pipeline.forget_chain START SCRATCH ASKED.json`.

The modules are imported once; each try is a fork. Step n (before and after a commit, before a deletion) ends a try on a fresh copy of START, and one on a copy
that all tries share. After each, what is published can be read; after another try that nothing ends, every file is that of a removal that was never disturbed.
Prints how often it was killed.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from data_pipeline.forget import forget
from data_pipeline.published import read_index, read_manifest, read_members


def forked(work: Path, asked: dict[str, str], fail_at: int | None) -> bool:
    """Forgets in a fork that dies at a step; whether it did."""
    pid = os.fork()
    if pid == 0:
        if fail_at:
            os.environ |= {"LATO_FAIL_AT_STEP": str(fail_at), "LATO_FAIL_IN": str(work)}
        try:
            forget(str(work), **asked)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), "it ended otherwise than it was ended"
    return status == signal.SIGKILL


def check_published(work: Path) -> None:
    """Reads every sample of every version; views are made anew after their versions."""
    for index in (work / "versions").glob("*/index.json"):
        folder = str(index.parent)
        if "view_of" not in read_index(folder):
            for row in read_manifest(folder):
                assert set(read_members(folder, row)) == {"json", "landmarks.npy", "source.jpg", "target.jpg"}


def files_of(work: Path) -> dict[str, bytes]:
    """All that is there, hidden files too."""
    return {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}


def check_same(work: Path, expected: dict[str, bytes]) -> None:
    """Whether a folder ended in the same files."""
    found = files_of(work)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    assert not wrong, wrong


def main() -> None:
    """Runs the chain; leaves in SCRATCH/calm what the undisturbed removal left."""
    start, scratch, asked = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    calm, shared, once = scratch / "calm", scratch / "shared", scratch / "once"
    for work in (calm, shared):
        shutil.copytree(start, work)
    forked(calm, asked, None)
    expected, kills, killed = files_of(calm), 0, True
    while killed:
        shutil.copytree(start, once)
        killed = forked(once, asked, kills + 1)
        kills += killed
        forked(shared, asked, kills + 1)
        check_published(once)
        check_published(shared)
        forked(once, asked, None)
        check_same(once, expected)
        shutil.rmtree(once)
    forked(shared, asked, None)
    check_same(shared, expected)
    print(kills)


if __name__ == "__main__":
    main()
