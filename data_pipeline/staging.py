"""Copies of remote sources on this machine, for whoever decodes them: fetched once, kept while somebody reads them, and evicted by their age."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from data_pipeline.sources import state_of
from infra.addresses import is_local
from infra.backoff import retried
from infra.errors import UserError
from infra.scratch import is_held, scratch_files
from infra.storage import open_read, sha256_bytes

_SCRATCH_BYTES = 20 * 1024**3
_IN_USE = 3600.0


@contextmanager
def staged(uri: str) -> Iterator[Path]:
    """A local path of a source: its own, or of its copy in scratch (`$LATO_SCRATCH` or the temporary folder; over 20 GB those unused for an hour go).

    Raises:
        OSError: The source cannot be read; `is_gone` says whose fault it is.
        UserError: Scratch cannot be written to.
    """
    if is_local(uri):
        yield Path(uri.removeprefix("file://"))
        return
    target = _staged_at(uri)
    with suppress(OSError):  # it is not there, or what is wrong with the folder is told below
        os.utime(target)  # before it is asked for: an old one might be evicted meanwhile
    while (held := _held(target)) is None:
        _fetch(uri, target)
    with held:
        yield target


def _held(target: Path) -> IO[bytes] | None:
    """The copy, open and with a lock that says so, as its path alone is what a decoder is given; None where there is none (any more)."""
    try:
        held = target.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # another user's, no more open files
        raise UserError(
            f"cannot read {target}: {error.strerror}. Name another folder for copies of remote sources (LATO_SCRATCH), or mend this one"
        ) from error
    with suppress(OSError):  # a file system without locks: the hour alone keeps it
        fcntl.flock(held, fcntl.LOCK_SH)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(held.fileno()), target.stat()):
            return held
    held.close()  # evicted, perhaps fetched again, before there was a lock: it would be on what nobody is given
    return None


def _fetch(uri: str, target: Path) -> None:
    part = _new_file(target.parent)
    try:
        retried(lambda: _copy_to(uri, part))
        _put(part, target)
    finally:
        Path(part).unlink(missing_ok=True)
    _evict(target.parent)


def _put(part: str, target: Path) -> None:
    """Gives a whole copy its name, unless another worker was quicker: that one's copy is locked, and may be read by its path now."""
    try:
        os.link(part, target)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not target.exists():
            os.replace(part, target)


def _new_file(scratch: Path) -> str:
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=scratch, suffix=".part")
    except OSError as error:  # of this machine: it must not be taken for one of the source
        raise UserError(
            f"cannot write to {scratch}: {error.strerror}. Name another folder for copies of remote sources: LATO_SCRATCH"
        ) from error
    os.close(handle)
    return part


def _copy_to(uri: str, part: str) -> None:
    with open(part, "wb") as out, open_read(uri) as given:
        shutil.copyfileobj(given, out, 1 << 20)


def _staged_at(uri: str) -> Path:
    return scratch_files() / f"{sha256_bytes(state_of(uri).encode())[:32]}{Path(uri.rsplit('/', 1)[-1]).suffix}"


def drop_staged(uri: str) -> None:
    """Deletes this machine's scratch copy of a remote source."""
    if not is_local(uri):
        with suppress(FileNotFoundError):  # gone from the store, or never staged here; what is not used goes by itself
            _staged_at(uri).unlink()


def _evict(scratch: Path) -> None:
    """Deletes the oldest copies over the limit; none of the last hour, and none that another worker has open."""
    found = []
    for file in scratch.iterdir():
        with suppress(FileNotFoundError):  # another worker evicts too
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in found)
    for used, size, file in sorted(found):
        if total <= _SCRATCH_BYTES or used > time.time() - _IN_USE:
            break
        with suppress(FileNotFoundError, PermissionError), file.open("r+b") as held:  # another user's is theirs to delete
            if not is_held(held):
                file.unlink()
                total -= size
