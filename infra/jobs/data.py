"""`lato data`: build datasets, ask about them, change what is there."""

from __future__ import annotations

import typer

from infra.jobs import data_ask, data_build, data_change, replay

app = typer.Typer(help="Build datasets, and ask about them.", no_args_is_help=True)
for _command in (
    data_build.build,
    data_build.observe,
    data_build.pair,
    data_build.render,
    data_build.backfill,
    data_change.merge,
    data_ask.audit,
    data_ask.verify,
    data_ask.report,
    data_ask.why,
    data_ask.diff,
    data_change.forget,
    data_build.worklist,
    data_change.view,
    data_change.export,
    data_change.retry,
    replay.replay,
):
    app.command()(_command)
