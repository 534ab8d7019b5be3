"""What is to be sent to a server that may be down or slow: written to disk at once, sent in order by a thread.

Whoever puts something in waits for one append to a file, never for the server. What was sent is remembered on disk too, so that a process that is
killed at any moment loses nothing, and a step that is reported twice is put in once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.state import read_json, reading
from infra.storage import commit

_EVERY = 5.0
"""Seconds between two rounds of sending: what came in between goes together."""
_LONGEST_PAUSE = 30.0
"""Seconds between two attempts at a server that fails; the first pause is one second, each is twice the one before."""
_BATCH_BYTES, _BATCH_LINES = 1 << 20, 500
"""What is read from disk at a time, and so all that lies in memory."""
_RESEND = "Delete it and start again: what lies beside it is sent from its beginning, and a value that MLflow has already is not doubled."
_UNSENT = "Take that line out and start again: what it held is not sent."


class Refused(Exception):
    """The server will never take this entry; it is put aside, and the next one is sent."""


@dataclass(frozen=True)
class Entry:
    """One thing to send."""

    kind: str
    value: Any
    marks: dict[str, float]
    """What is done once it is sent: for each name, all up to this number."""
    length: int
    """Bytes of its line on disk."""


class Outbox:
    """Entries of one receiver.

    Args:
        path: The file of what is still to be sent, `<name>.jsonl`; `<name>.sent.json` and `<name>.refused.jsonl` lie beside it.
        send: Sends some of the first entries and returns how many (at least one); raises `Refused` if the first can never be sent, anything
            else if it is to be tried again. What it sent just before the process was killed is sent once more: it must bear that.
    """

    def __init__(self, path: Path, send: Callable[[list[Entry]], int]) -> None:
        self._path, self._state_path, self._refused = path, path.with_suffix(".sent.json"), path.with_suffix(".refused.jsonl")
        self._send = send
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        state: dict[str, Any] = {"offset": 0, "marks": {}}
        if self._state_path.exists():
            state = read_json(str(self._state_path), state, _RESEND)
        self._sent: dict[str, float] = state["marks"]
        self._size = self._end_of_last_line()
        self._offset = state["offset"]
        if self._offset > self._size:  # the file was emptied, and its state not yet written
            self._offset = 0
            self._remember()
        self._marks = dict(self._sent)
        offset = self._offset
        while offset < self._size:
            for entry in self._read(offset):
                self._raise_marks(self._marks, entry.marks)
                offset += entry.length
        if self._size:
            self._start()

    def __len__(self) -> int:
        """Bytes that were not sent yet."""
        return self._size - self._offset

    def is_new(self, mark: str, number: float) -> bool:
        """Whether nothing with this mark was put in with this number or a higher one."""
        return number > self._marks.get(mark, float("-inf"))

    def put(self, kind: str, value: Any, marks: Mapping[str, float] | None = None) -> None:
        """Writes an entry; the thread sends it."""
        line = json.dumps([kind, value, dict(marks or {})]).encode() + b"\n"
        with self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._append(line)
            self._size += len(line)
            self._raise_marks(self._marks, marks or {})
            self._start()
            self._changed.notify()

    def _append(self, line: bytes) -> None:
        """Writes a line whole or not at all: half of one would make the next one unreadable, and all that follow would never be sent."""
        with self._path.open("ab", buffering=0) as file:
            try:
                written = 0
                while written < len(line):  # a disk that fills takes a part first, and refuses the rest
                    written += file.write(line[written:])
            except OSError:
                file.truncate(self._size)
                raise

    def close(self, seconds: float) -> int:
        """Sends what is left, for as long as the server takes it and at most so many seconds; returns the bytes that stay on disk."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread:
            thread.join(seconds)
        return len(self)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name=f"outbox-{self._path.stem[:8]}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        pause, next_round, failing = 1.0, 0.0, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._offset < self._size)
                while not self._closing and (left := next_round - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._offset >= self._size:
                    self._acknowledge([])
                    self._thread = None  # under the lock: whoever puts something in from now on starts another
                    return
                entries = self._read(self._offset)
                last = self._closing  # an attempt that began before `close` does not count as its own
            refused = None
            try:
                taken = self._send(entries)
            except Refused as error:
                taken, refused = 1, str(error)
            except Exception as error:  # a guest: whatever the server's library raises is told once, and what was to be sent stays on disk
                if not failing:
                    self._tell(f"does not take {entries[0].kind}; kept in {self._path} and tried again: {_first_line(error)}")
                failing, next_round = True, time.monotonic() + pause
                pause = min(_LONGEST_PAUSE, 2 * pause)
                with self._changed:
                    if last:
                        self._thread = None
                        return
                continue
            if refused is not None:
                self._put_aside(entries[0], refused)
            if failing:
                self._tell("takes what it is sent again")
            pause, failing = 1.0, False
            if self._acknowledge(entries[:taken]):
                next_round = time.monotonic() + _EVERY

    def _acknowledge(self, entries: list[Entry]) -> bool:
        """Remembers that these were sent; returns whether that was all."""
        with self._changed:
            self._offset += sum(entry.length for entry in entries)
            for entry in entries:
                self._raise_marks(self._sent, entry.marks)
            with contextlib.suppress(UserError):  # a full disk: a later round remembers it, and until then what was sent may be sent again
                self._remember()
            empty = self._offset == self._size
            if empty and (self._closing or self._size > _BATCH_BYTES):  # under the lock: nothing is put into a file that goes
                self._path.unlink(missing_ok=True)
                self._offset = self._size = 0
                self._remember()
        return empty

    def _remember(self) -> None:
        commit(str(self._state_path), json.dumps({"offset": self._offset, "marks": self._sent}).encode())

    def _read(self, offset: int) -> list[Entry]:
        entries: list[Entry] = []
        end = min(self._size, offset + _BATCH_BYTES)
        with self._path.open("rb") as file:
            file.seek(offset)
            while offset < end and len(entries) < _BATCH_LINES:
                line = file.readline()
                with reading(f"{self._path}: the line at byte {offset}", _UNSENT):
                    kind, value, marks = json.loads(line)
                entries.append(Entry(kind, value, marks, len(line)))
                offset += len(line)
        return entries

    def _end_of_last_line(self) -> int:
        """Cuts off what a killed process had begun to write, and returns the file's size."""
        if not self._path.exists():
            return 0
        with self._path.open("rb+") as file:
            end = size = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
        return end

    def _put_aside(self, entry: Entry, why: str) -> None:
        with self._refused.open("a") as file:
            file.write(json.dumps([entry.kind, entry.value, why]) + "\n")
        self._tell(f"refused {entry.kind}, which was put into {self._refused}: {why}")

    @staticmethod
    def _raise_marks(marks: dict[str, float], higher: Mapping[str, float]) -> None:
        for name, number in higher.items():
            marks[name] = max(number, marks.get(name, float("-inf")))

    @staticmethod
    def _tell(what: str) -> None:
        logging.getLogger("lato.tracking").warning("MLflow %s", what)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
