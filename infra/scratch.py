"""Room on this machine for what is large and not to stay."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.addresses import is_local, local_path
from infra.errors import UserError
from infra.storage import no_room


def scratch_folder() -> Path:
    """Where this machine keeps what is large and not to stay: `$LATO_SCRATCH`, or the temporary folder, which may be memory."""
    return Path(os.environ.get("LATO_SCRATCH") or tempfile.gettempdir())


@contextmanager
def scratch_for(uri: str) -> Iterator[str]:
    """A file of this machine for what is to be committed to `uri`, gone at the end: beside it where that is local, so that what a kill leaves is swept; else
    in `scratch_folder`.

    Raises:
        UserError: There is no room for it, or that folder cannot be written to.
    """
    place = local_path(uri).parent if is_local(uri) else scratch_folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix=f".{uri.rsplit('/', 1)[-1][:80]}.", suffix=".tmp", dir=place)
        os.close(handle)
    except OSError as error:
        if is_local(uri):
            raise no_room(error, place) from error
        raise UserError(f"cannot write to {place}: {error.strerror}. Name another folder of this machine: LATO_SCRATCH") from error
    try:
        yield path
    except OSError as error:
        raise no_room(error, place) from error
    finally:
        Path(path).unlink(missing_ok=True)
