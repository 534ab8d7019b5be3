"""`lato quickstart`: the whole mission at small size. What `make demo` runs."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""

    @app.command()
    def quickstart(
        overrides: list[str] = typer.Argument(None, help="key=value, for example dit.engine.steps=400"),
        work_dir: str = typer.Option("work/quickstart", help="Where everything goes."),
        config: str = typer.Option(None, help="A YAML file."),
    ) -> None:
        """Runs the whole mission at small size: data, three trainings, edits, scores and a report."""
        from infra.jobs.common import open_work
        from infra.jobs.demo import QuickstartConfig, run_quickstart

        with open_work(QuickstartConfig, config, list(overrides or []), work_dir, "lato quickstart") as (settings, work):
            run_quickstart(settings, work)
