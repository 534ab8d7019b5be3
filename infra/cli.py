"""The `lato` command. Heavy imports stay inside the commands, so that help is instant."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from typing import Any, NoReturn

import typer

from infra.errors import RayLost, UserError, is_of_a_store
from infra.jobs import assets, data, doctor, edit, quickstart, submit, train
from infra.runtime import quieten

app = typer.Typer(
    name="lato",
    help="Build face-edit pairs on Ray, train LaTo with DeepSpeed, edit faces by instruction and measure the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(quickstart.quickstart)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.command()(edit.edit)
app.add_typer(assets.app, name="assets")
app.command()(doctor.doctor)
app.command()(submit.submit)


def main() -> None:
    """Runs the command line: 0 success, 2 a user's mistake, 130 interrupted."""
    quieten()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, RayLost):
            os._exit(2)  # leaving Ray would wait for it
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            print("\ninterrupted. The same command goes on where it stopped.", file=sys.stderr, flush=True)
            os._exit(130)  # worker processes of Ray end with their driver; waiting for its threads would hang here
        raise
    except Exception as error:
        if not is_of_a_store(error):
            raise
        print(
            f"error: the object store did not do what was asked of it: {error}\nCheck its address (AWS_ENDPOINT_URL), the credentials and the bucket, "
            "then run the same command again: what was done stands.",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)


def run() -> NoReturn:
    """The program: `main`, and then all that Python does at its end but its last step, in which pyarrow 25 aborts (status 134) one time in three where
    its threads have just begun."""
    status = 0
    try:
        main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            raise
        status = stop.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # tells the threads of pools to end, and waits for all that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
