"""State files of a folder, JSON, JSON lines or Parquet: one message where one is damaged, with what to do about it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from infra.backoff import passes, retried
from infra.errors import UserError
from infra.storage import exists, open_read, read_bytes

DERIVED = "Delete it and run lato data build again: it is made anew from what else is there."
INPUT = "It holds what people said, and cannot be made anew: mend it, or restore it from a copy."
PUBLISHED = "Copy the version again, or delete this file and build the version again."
T = TypeVar("T")


@contextmanager
def reading(what: str, mend: str) -> Iterator[None]:
    """What a damaged file raises where its content is taken apart becomes a message. A disk that fails is no damaged file.

    Args:
        what: The file, and its line where there are lines.
        mend: What to do.

    Raises:
        UserError: The file is damaged.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        if isinstance(error, MemoryError) or (
            isinstance(error, OSError) and (error.errno is not None or passes(error))
        ):  # the machine's, or a store's that does not answer; Arrow's own have no number
            raise
        said = f"{error} is missing" if isinstance(error, KeyError) else (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{what} is damaged ({said}). {mend}") from error


def _read(uri: str, mend: str) -> bytes:
    return there(uri, mend, lambda: read_bytes(uri))


def there(uri: str, mend: str, read: Callable[[], T]) -> T:
    """What `read` gives of a file; of a published version it must be there.

    Raises:
        FileNotFoundError: There is none, and it is no file of a published version.
        UserError: A published version lacks it.
    """
    try:
        return read()
    except FileNotFoundError as error:
        if mend != PUBLISHED:  # what a build made may be away: who asks for it knows what that means
            raise
        raise UserError(f"{uri} is missing or damaged: there is no such file. Copy the version again, or build it again.") from error


def _read_some(uri: str, mend: str, take: Callable[[IO[bytes]], T]) -> T:
    """What `take` reads here and there in a file; of a file on a store nothing else is fetched."""

    def read() -> T:
        with open_read(uri, ahead=False) as file, reading(uri, mend):
            return take(file)

    return there(uri, mend, lambda: retried(read))


def read_json(uri: str, needed: Collection[str] = (), mend: str = DERIVED) -> Any:
    """A JSON file's value; with `needed`, an object that has these names.

    Raises:
        FileNotFoundError: There is none, and it is no file of a published version.
        UserError: It is damaged, or a published version lacks it.
    """
    data = _read(uri, mend)
    with reading(uri, mend):
        value = json.loads(data)
        for name in needed:
            value[name]
    return value


def read_rows(uri: str, needed: Collection[str], mend: str) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none where there is no file.

    Args:
        uri: The file.
        needed: Names that each has.
        mend: What to do where the file is damaged.

    Raises:
        UserError: It is damaged, and in which line.
    """
    rows = []
    for number, line in enumerate(read_bytes(uri).splitlines() if exists(uri) else [], start=1):
        with reading(f"{uri}: line {number}", mend):
            rows.append(json.loads(line))
            for name in needed:
                rows[-1][name]
    return rows


def read_table(uri: str, columns: list[str] | None = None, mend: str = DERIVED) -> pa.Table:
    """A Parquet file's rows, or some columns of them.

    Raises:
        FileNotFoundError: There is none, and it is no file of a published version.
        UserError: It is damaged, or a published version lacks it.
    """
    if columns is not None:
        return _read_some(uri, mend, lambda file: pq.read_table(file, columns=columns))
    data = _read(uri, mend)
    with reading(uri, mend):
        return pq.read_table(io.BytesIO(data))


def read_schema(uri: str) -> pa.Schema:
    """A Parquet file's columns, and what is told of the whole in its metadata: its last bytes. Raises as `read_table` does."""
    return _read_some(uri, DERIVED, pq.read_schema)
