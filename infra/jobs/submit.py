"""`lato submit -- COMMAND`: the same command on a running Ray cluster, through the Ray Jobs API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

_AGENT_TRIES = 6  # each takes about 12 s: the head itself waits for an agent
_EXCLUDES = [".git", ".venv", "work", "tests", "docs", "**/__pycache__", "**/.*_cache", "*.egg-info", ".cache"]


def submit(
    command: Annotated[list[str], typer.Argument(help="A lato command, after `--`: lato submit -- quickstart --work-dir /shared/demo")],
    address: Annotated[str, typer.Option(help="Dashboard of the Ray head.")] = "http://127.0.0.1:8265",
) -> None:
    """Sends a command to a Ray head, follows its log and exits with its status."""
    raise typer.Exit(run_remotely(command, address))


def run_remotely(command: list[str], address: str) -> int:
    """Submits, follows and waits; returns 0 if the job succeeded, else 1.

    Raises:
        UserError: The head does not answer.
    """
    import os
    import shlex

    # Ray guards a head with a token where one exists, but its Jobs client only sends it when told to
    if (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobStatus, JobSubmissionClient

    from infra.console import say
    from infra.environment import COMMIT_VARIABLE, git_state
    from infra.errors import UserError

    try:
        client = JobSubmissionClient(address)
    except ConnectionError as error:
        raise UserError(f"no Ray head answers at {address}. Start one (ray start --head), or give --address.") from error
    root = Path(__file__).parents[2]
    entrypoint = "python -m infra.cli " + " ".join(shlex.quote(word) for word in command)
    job = _submit(client, entrypoint, {"working_dir": str(root), "excludes": _EXCLUDES, "env_vars": {COMMIT_VARIABLE: git_state()}})
    say(f"job {job} on {address}: {entrypoint}\n(stop it with: ray job stop --address {address} {job})")
    shown = 0
    while True:
        status = client.get_job_status(job)
        log = client.get_job_logs(job)
        if len(log) > shown:
            print(log[shown:], end="", flush=True)
            shown = len(log)
        if status.is_terminal():
            break
        time.sleep(1)
    say(f"job {job}: {status.value.lower()}")
    return 0 if status == JobStatus.SUCCEEDED else 1


def _submit(client: Any, entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Submits; a head that has just started takes a few seconds until one of its agents can run jobs.

    Raises:
        UserError: No agent came.
    """
    from infra.errors import UserError

    for _ in range(_AGENT_TRIES):
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
        time.sleep(2)
    raise UserError(
        "the head answers, but has no agent that runs jobs. Most often another Ray on the same machine holds the agent's port:"
        " start the head with --dashboard-agent-listen-port=PORT."
    )
