"""The one exception that means: the user can mend this; and which of other libraries' mean the same."""

import traceback

_STORES = ("botocore.", "aiobotocore.", "s3fs.", "gcsfs.", "google.auth.", "aiohttp.")


class UserError(Exception):
    """A user's mistake or a missing thing they can supply.

    The message says what is wrong, where, and what to do. The command line prints it and exits with 2; it shows no traceback.
    """


class RayLost(UserError):
    """Ray itself is gone: nothing can be asked of it any more, not even to shut down."""


def is_of_a_store(error: BaseException) -> bool:
    """Whether an object store's client raised it, or raised what it came from: the store does not answer, or does not let one in."""
    cause = error.__cause__  # not its context: a bug in handling such an error is a bug
    frames = [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]
    known = [type(error).__module__, *frames[-1:]]  # gcsfs says "not allowed" with a plain OSError
    return any(f"{name}.".startswith(_STORES) for name in known) or (cause is not None and is_of_a_store(cause))
