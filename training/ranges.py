"""Pieces of files by offset and length, from disk or an object store, from any thread."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO

from infra.addresses import filesystem_of, is_local
from infra.errors import UserError

_OPEN = 256
"""Local files that are kept open: opening is slow on network file systems."""


class RangeReader:
    """Reads from files that do not change while they are read: an open one is kept, whatever is put in its place."""

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=_OPEN)(_open_local)

    def __reduce__(self) -> tuple[type[RangeReader], tuple[()]]:
        return RangeReader, ()  # another process opens its own

    def read(self, uri: str, offset: int, length: int) -> bytes:
        """Bytes of a file.

        Raises:
            UserError: The file is not there, or ends too early.
        """
        if not is_local(uri):
            return self.read_many([(uri, offset, length)])[0]
        try:
            file = self._open(uri)  # one that falls out of the cache is closed when the last thread that reads it lets go
        except FileNotFoundError as error:
            raise _missing(uri) from error
        return _whole(uri, offset, length, os.pread(file.fileno(), length, offset))

    def read_many(self, pieces: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Many (uri, offset, length), all of one store; an object store is asked for them side by side.

        Raises:
            UserError: As `read`.
        """
        if not pieces or is_local(pieces[0][0]):
            return [self.read(*piece) for piece in pieces]
        filesystem, _ = filesystem_of(pieces[0][0])
        paths = [filesystem._strip_protocol(uri) for uri, _, _ in pieces]
        starts, ends = [start for _, start, _ in pieces], [start + length for _, start, length in pieces]
        found = filesystem.cat_ranges(paths, starts, ends, on_error="return")
        for (uri, _, _), data in zip(pieces, found, strict=True):
            if isinstance(data, FileNotFoundError):
                raise _missing(uri) from data
            if isinstance(data, BaseException):
                raise data
        return [_whole(*piece, data) for piece, data in zip(pieces, found, strict=True)]


def list_sizes(folder: str) -> dict[str, int]:
    """Bytes of the files in a folder by name, from one listing; empty where there is no folder."""
    filesystem, path = filesystem_of(folder)
    filesystem.invalidate_cache(path)
    entries = filesystem.ls(path, detail=True) if filesystem.isdir(path) else []
    return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}


def _open_local(uri: str) -> IO[bytes]:
    return open(Path(uri.removeprefix("file://")), "rb", buffering=0)


def _whole(uri: str, offset: int, length: int, data: bytes) -> bytes:
    if len(data) != length:
        raise UserError(f"{uri}: ends before byte {offset + length}; it was cut short. Copy it again.")
    return data


def _missing(uri: str) -> UserError:
    return UserError(f"{uri}: this file is gone. Was it deleted, or the dataset changed (lato data forget), while it was in use?")
