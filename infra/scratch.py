"""Room on this machine for what is large and not to stay."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from infra.addresses import is_local, local_path
from infra.errors import UserError
from infra.storage import no_room


def scratch_folder() -> Path:
    """Where this machine keeps what is large and not to stay: `$LATO_SCRATCH`, or the temporary folder, which may be memory."""
    return Path(os.environ.get("LATO_SCRATCH") or tempfile.gettempdir())


def scratch_files() -> Path:
    """The folder in it for single files, of all builds of this machine: their bytes are counted together, and the oldest that nobody holds go (`staging`)."""
    return scratch_folder() / "lato_scratch"


@contextmanager
def scratch_for(uri: str) -> Iterator[str]:
    """A file of this machine for what is to be committed to `uri`, gone at the end: beside it where that is local, else in `scratch_files`; so that what a
    kill leaves is swept (`infra.storage.sweep_temporaries`, `sweep_scratch`).

    Raises:
        UserError: There is no room for it, or that folder cannot be written to.
    """
    place = local_path(uri).parent if is_local(uri) else scratch_files()
    try:
        place.mkdir(parents=True, exist_ok=True)
        held, path = _new_file(uri, place)
    except OSError as error:
        if is_local(uri):
            raise no_room(error, place) from error
        raise not_writable(error, place) from error
    try:
        with held:
            yield path
    except OSError as error:
        raise no_room(error, place) from error
    finally:
        Path(path).unlink(missing_ok=True)


def _new_file(uri: str, place: Path) -> tuple[IO[bytes], str]:
    """An empty file, and it open with a lock, which ends with this process."""
    while True:
        handle, path = tempfile.mkstemp(prefix=f".{uri.rsplit('/', 1)[-1][:80]}.", suffix=".tmp", dir=place)
        held = os.fdopen(handle, "rb")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_SH)
        if os.path.exists(path):
            return held, path
        held.close()  # swept before it had its lock


def not_writable(error: OSError, place: Path) -> UserError:
    """What to raise where scratch cannot be written to."""
    return UserError(f"cannot write to {place}: {error.strerror}. Name another folder of this machine: LATO_SCRATCH")


def sweep_scratch() -> int:
    """Deletes what killed builds into object stores left half-written on this machine, whichever builds they were; returns how many."""
    swept = 0
    for path in scratch_files().glob(".*.tmp"):
        with suppress(FileNotFoundError, PermissionError), path.open("r+b") as file:  # another user's is theirs to delete
            if not is_held(file, without_locks=True):
                path.unlink()
                swept += 1
    return swept


def is_held(file: IO[bytes], without_locks: bool = False) -> bool:
    """Whether somebody else has a lock on an open file; `without_locks` is the answer where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return without_locks
    return False
