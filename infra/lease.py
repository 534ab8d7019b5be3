"""The lease that keeps two jobs out of one folder: who holds it, and the heartbeat that says the holder still lives."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.addresses import filesystem_of, join
from infra.errors import UserError
from infra.storage import commit, read_bytes

LEASE_EXPIRES = 60.0
"""Seconds without a heartbeat after which a lease is no longer held."""
_TRIES = 10
"""So often a lease is asked for that others let go at that very moment."""
LEASE = "lease.json"
"""Names of all leases end so."""


@contextmanager
def lease(folder: str, purpose: str, name: str = LEASE) -> Iterator[None]:
    """Holds a folder while a job works in it.

    Args:
        folder: Which.
        purpose: The job, as others are told who holds it.
        name: Of the lease: another one holds one thing in the folder, beside who holds all of it.

    Raises:
        UserError: Somebody else holds it (named), or the folder cannot be written to. A holder that died on this machine, or that has not been heard of
            for a minute, is taken over.
    """
    uri = join(folder, name)
    mine = {
        "owner": f"{os.getpid()}@{socket.gethostname()}",
        "purpose": purpose,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "nonce": os.urandom(8).hex(),
    }
    for _ in range(_TRIES):
        if commit(uri, _beat(mine), exclusive=True):
            break
        try:
            holder = _holder(uri)
        except FileNotFoundError:  # let go a moment ago: whoever creates it now has it
            continue
        if holder:
            raise UserError(f"{folder} is in use: {holder}. Wait for it, stop it, or choose another folder.")
        commit(uri, _beat(mine))
        time.sleep(0.05)
        if not _is_of(uri, mine):
            raise UserError(f"{folder} was taken by another job at the same moment. Start again.")
        break
    else:
        raise UserError(f"{folder} is taken and let go again by other jobs, {_TRIES} times just now. Start again.")
    stop = threading.Event()
    heart = threading.Thread(target=_keep_alive, args=(uri, mine, stop), daemon=True, name="lease")
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        filesystem, path = filesystem_of(uri)
        if _is_of(uri, mine):
            with suppress(FileNotFoundError):
                filesystem.rm(path)


def _is_of(uri: str, mine: dict[str, str]) -> bool:
    try:
        return mine["nonce"].encode() in read_bytes(uri)
    except FileNotFoundError:
        return False


def _beat(holder: dict[str, str]) -> bytes:
    return json.dumps(holder | {"heartbeat": time.time()}).encode()


def _keep_alive(uri: str, mine: dict[str, str], stop: threading.Event) -> None:
    while not stop.wait(LEASE_EXPIRES / 6):
        commit(uri, _beat(mine))


def _holder(uri: str) -> str | None:
    """Who holds a lease, as text; None where nobody does any more.

    Raises:
        FileNotFoundError: It was let go.
        UserError: The file does not say.
    """
    data = read_bytes(uri)
    try:
        holder = json.loads(data)
        pid, _, host = holder["owner"].partition("@")
        gone = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
        held = not gone and time.time() - holder["heartbeat"] < LEASE_EXPIRES
        return f"{holder['purpose']} (process {holder['owner']}, since {holder['since']})" if held else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{uri} is damaged ({error}). Delete it if no other job works in this folder, and start again.") from error
