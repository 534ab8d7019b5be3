"""Files on disk or object store: one way to commit, to read, to list and to delete; and hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from infra.addresses import filesystem_of, folder_uri, is_local, join, local_path
from infra.backoff import retried
from infra.errors import UserError
from infra.failpoint import failpoint

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def commit(uri: str, data: bytes, *, exclusive: bool = False) -> bool:
    """Writes a whole file or nothing.

    On a file system: a temporary file in the same folder, fsync, rename (a hard link when exclusive), fsync of the folder. On an object store: one put,
    conditional when exclusive.

    Args:
        uri: Where.
        data: The whole content.
        exclusive: Create only if absent.

    Returns:
        False if it was there already and `exclusive` was asked for.

    Raises:
        UserError: The folder cannot be written to.
    """
    if not is_local(uri):
        return _commit_object(uri, data, exclusive)
    path = local_path(uri)
    if exclusive and path.exists():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    except OSError as error:  # no right to write, a read-only disk, a file where a folder should be
        raise UserError(f"cannot write to {path.parent}: {error.strerror}. Choose a folder that you may write to.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        failpoint(uri)
        if exclusive:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        else:
            os.replace(temporary, path)
        _fsync_folder(path.parent)
        failpoint(uri)
        return True
    except OSError as error:
        raise no_room(error, path.parent) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def sweep_temporaries(folder: str) -> int:
    """Deletes what killed commits left below a local folder that the caller holds; returns how many."""
    if not is_local(folder):
        return 0
    stale = [path for path in local_path(folder).rglob(".*.tmp") if path.is_file()]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def commit_changed(uri: str, data: bytes) -> None:
    """Commits a file unless it has that content already: a rerun writes nothing anew."""
    if not exists(uri) or read_bytes(uri) != data:
        commit(uri, data)


def no_room(error: OSError, folder: Path) -> Exception:
    """What to raise of an error in writing to a folder: a message, where there is no room."""
    if error.errno not in _NO_ROOM:
        return error
    return UserError(f"cannot write to {folder}: {error.strerror}. Make room, then run the same command again: what was done stands.")


def commit_file(path: str, uri: str) -> None:
    """Commits a local file's content, without holding it in memory."""
    if is_local(uri):
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:80]}.", suffix=".tmp", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as out, open(path, "rb") as given:
                shutil.copyfileobj(given, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
            os.chmod(temporary, 0o644)
            failpoint(uri)
            os.replace(temporary, target)
            _fsync_folder(target.parent)
        except OSError as error:
            raise no_room(error, target.parent) from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    else:
        filesystem, name = filesystem_of(uri)
        filesystem.put_file(path, name)
    failpoint(uri)


def copy_file(source: str, target: str) -> None:
    """Puts a committed file in a second place: a hard link on one disk (committed files are replaced, never changed), else a copy."""
    if is_local(source) and is_local(target):
        local_path(target).parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another disk, or one without links
            os.link(local_path(source), local_path(target))
            return
    commit(target, read_bytes(source))


def read_bytes(uri: str) -> bytes:
    """The whole content of a file.

    Raises:
        FileNotFoundError: There is none.
    """
    if is_local(uri):  # by fsspec it takes several times as long, most of the time of a small file
        path = local_path(uri)
        _check_regular(path)
        return path.read_bytes()
    return retried(lambda: _read_object(uri))


def _read_object(uri: str) -> bytes:
    with open_read(uri) as file:
        return file.read()


def open_read(uri: str, *, ahead: bool = True) -> IO[bytes]:
    """A seekable binary file.

    Args:
        uri: Which.
        ahead: Fetch more from a store than is read, as most files are read to their end.

    Raises:
        FileNotFoundError: There is none, or what is there is no regular file: a pipe would be waited for, a device has no end.
    """
    if is_local(uri):
        _check_regular(local_path(uri))
    filesystem, path = filesystem_of(uri)
    return filesystem.open(path, "rb") if ahead or is_local(uri) else filesystem.open(path, "rb", cache_type="none")


def _check_regular(path: Path) -> None:
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder its opening says what it is
        raise FileNotFoundError(errno.ENOENT, "no regular file (a pipe, a socket or a device)", str(path))


def exists(uri: str) -> bool:
    """Whether there is a file or folder."""
    filesystem, path = filesystem_of(uri)
    return bool(filesystem.exists(path))


def list_files(folder: str, suffix: str = "") -> list[str]:
    """URIs of the files in a folder (not below it) that end in `suffix`, sorted; empty where there is no folder. Hidden files are left out."""
    return [join(folder, name) for name in sorted(file_names(folder, suffix))]


def file_names(folder: str, suffix: str = "") -> Iterator[str]:
    """Names of the files that `list_files` gives, in no order; of a local folder with millions none but the one at hand is held."""
    names = _local_names(local_path(folder)) if is_local(folder) else _names_on_store(folder)
    return (name for name in names if name.endswith(suffix) and not name.startswith("."))


def _local_names(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_file(follow_symlinks=False))


def _names_on_store(folder: str) -> Iterator[str]:
    yield from (entry["name"].rsplit("/", 1)[-1] for entry in _entries(folder) if entry["type"] == "file")


def list_folders(folder: str) -> list[str]:
    """URIs of the folders in a folder, sorted; empty where there is none."""
    names = [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in _entries(folder) if entry["type"] == "directory"]
    return [join(folder, name) for name in sorted(names)]


def _entries(folder: str) -> list[dict[str, Any]]:
    """What lies in a folder; nothing where there is none. That is not asked beforehand: on a store a folder is gone with the last object in it."""
    filesystem, path = filesystem_of(folder)
    try:
        found = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return [entry for entry in found if entry["name"].rstrip("/") != path.rstrip("/")]  # of a file it gives the file


def files_below(folder: str) -> list[str] | None:
    """Names, from the folder on, of all files in it and below it, sorted; None where there is no folder."""
    filesystem, root = filesystem_of(folder_uri(folder))
    if not filesystem.isdir(root):
        return None
    return sorted(str(path).removeprefix(root).lstrip("/") for path in filesystem.find(root))


def delete(uri: str) -> None:
    """Deletes a file; one that is gone already is well."""
    filesystem, path = filesystem_of(uri)
    failpoint(uri)
    with suppress(FileNotFoundError):
        filesystem.rm_file(path)


def delete_folder(uri: str) -> None:
    """Deletes a folder and all below it; one that is gone already is well."""
    filesystem, path = filesystem_of(uri)
    failpoint(uri)
    with suppress(FileNotFoundError):
        filesystem.rm(path, recursive=True)


def size_of(uri: str) -> int:
    """Bytes of a file."""
    filesystem, path = filesystem_of(uri)
    return int(filesystem.size(path))


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(uri: str) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open_read(uri) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_model(file: Path) -> str:
    """Hex digest of a local file that many builds read and few change: hashed once a process, and again where its inode, size or time of change is another."""
    state = file.stat()
    return _sha256_of(file, (state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache
def _sha256_of(file: Path, state: tuple[int, int, int]) -> str:
    return sha256_file(str(file))


def sha256_json(value: Any) -> str:
    """Hex digest of a value's canonical JSON (sorted keys, no spaces): equal values, equal digests."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode())


def _commit_object(uri: str, data: bytes, exclusive: bool) -> bool:
    filesystem, path = filesystem_of(uri)
    try:
        with filesystem.open(path, "xb" if exclusive else "wb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
