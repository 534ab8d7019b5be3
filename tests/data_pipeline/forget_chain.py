"""Forgets somebody without Ray, killed at every step: `python -m tests.data_pipeline.forget_chain START SCRATCH ASKED.json`.

The modules are imported once; each try that is ended is a fork. Step n (before and after a commit, before a deletion) ends a try on a fresh copy of START, and
every eighth also one on a copy that these share. After each, what is published can be read; after a removal that nothing ends, every file is that of a
removal that was never disturbed. Prints how often it was killed.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pyarrow.dataset  # noqa: F401  (the first read of a Parquet file would import it, and pandas, in every fork)

from data_pipeline.forget import forget
from data_pipeline.published import read_index, read_manifest, read_members
from lato.pairs import decode_pair


def forked(work: Path, asked: dict[str, str], fail_at: int) -> bool:
    """Forgets in a fork that dies at a step; whether it did."""
    pid = os.fork()
    if pid == 0:
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
                decode_pair(row["key"], read_members(folder, row))


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
        shutil.copytree(start, work, copy_function=os.link)
    forget(str(calm), **asked)
    begun, expected, kills, killed = files_of(start), files_of(calm), 0, True
    while killed:
        shutil.copytree(start, once, copy_function=os.link)  # committed files are replaced, never changed
        killed = forked(once, asked, kills + 1)
        kills += killed
        check_published(once)
        if kills % 8 == 0:
            forked(shared, asked, kills)
            check_published(shared)
        forget(str(once), **asked)
        check_same(once, expected)
        shutil.rmtree(once)
    forget(str(shared), **asked)
    check_same(shared, expected)
    check_same(start, begun)
    print(kills)


if __name__ == "__main__":
    main()
