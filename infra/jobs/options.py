"""Arguments and options that several commands share; the defaults stand in the commands. Nothing heavy is imported here: help is instant."""

from __future__ import annotations

from typing import Annotated

import typer

ConfigFile = Annotated[str | None, typer.Option(help="A YAML file.")]
WorkDir = Annotated[str, typer.Option(help="Where everything goes.")]

# of `lato data`
BUILD = "work/data"
"""The build's folder where none is given."""
VERSION = "v1"
"""The version where none is named: what a build calls its own if it is not told (`DataConfig.name`)."""
Settings = Annotated[list[str] | None, typer.Argument(help="A YAML file, and key=value: folder=clips synthetic.anny.people=100")]
BuildDir = Annotated[str, typer.Option(help="The build's folder.")]
BuiltVersion = Annotated[str, typer.Option(help="Name of the version.")]
VersionDir = Annotated[str, typer.Argument(help="Folder of a version.")]

# of `lato train`
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, for example engine.steps=500 engine.zero_stage=3")]
Data = Annotated[
    list[str],
    typer.Option(
        help="URI[:weight] of a dataset version or view; give several for a mixture. Without a weight: the view's own, or its size."
    ),
]
Preset = Annotated[
    str, typer.Option(help="tiny (CPU, minutes), base (one GPU) or full (the paper's sizes): what --config and key=value change.")
]
RunsDir = Annotated[str, typer.Option(help="Where runs go.")]
Launcher = Annotated[str, typer.Option(help="ray: Ray Train. plain: processes of this machine, without Ray.")]
Fork = Annotated[str | None, typer.Option(help="Start a new run of this name from the newest checkpoint's weights of the run that stands.")]
Checkpoints = Annotated[
    str | None,
    typer.Option(help="Where checkpoints go, a folder a run: an object store, for example. If not given, into the run's folder."),
]
