"""The step at which a test ends a process: how every crash point of storage is shown to be harmless."""

import os
import signal

_steps = 0


def failpoint(uri: str) -> None:
    """Ends this process with SIGKILL at the step that `$LATO_FAIL_AT_STEP` names: before and after each commit, before each deletion. Steps are those of
    files whose uri contains `$LATO_FAIL_IN` (all but leases and attempts by default).
    """
    global _steps
    wanted = os.environ.get("LATO_FAIL_AT_STEP")
    if wanted is None:
        return
    where = os.environ.get("LATO_FAIL_IN")
    if (where not in uri) if where else (uri.endswith("lease.json") or "/attempts/" in uri):
        return
    _steps += 1
    if _steps == int(wanted):
        os.kill(os.getpid(), signal.SIGKILL)
