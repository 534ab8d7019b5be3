"""`lato quickstart`: the whole mission at small size. What `make demo` runs."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.jobs.options import ConfigFile, WorkDir


def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example dit.engine.steps=400")] = None,
    work_dir: WorkDir = "work/quickstart",
    config: ConfigFile = None,
) -> None:
    """Runs the whole mission at small size: data, three trainings, edits, scores and a report."""
    from infra.jobs.common import open_work
    from infra.jobs.demo import QuickstartConfig, run_quickstart

    with open_work(QuickstartConfig, config, list(overrides or []), work_dir, "lato quickstart") as (settings, work):
        run_quickstart(settings, work)
