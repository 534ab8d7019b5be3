"""`lato doctor`."""

from __future__ import annotations

import typer


def doctor() -> None:
    """What this machine has and lacks; exits with 1 if something needed is missing."""
    from infra.console import table
    from infra.doctor import examine

    checks = examine()
    state = {True: "ok", False: "missing"}
    rows = [(c.name, c.found, state[c.ok] if c.ok or c.needed else "optional", "" if c.ok else c.mend) for c in checks]
    table("This machine", ["what", "found", "state", "to mend"], rows)
    raise typer.Exit(int(any(c.needed and not c.ok for c in checks)))
