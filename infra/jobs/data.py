"""`lato data`: build and verify datasets."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Build and verify datasets.", no_args_is_help=True)
    app.add_typer(group, name="data")

    @group.command()
    def build(
        overrides: list[str] = typer.Argument(None, help="key=value, for example folder=clips synthetic.people=100"),
        work_dir: str = typer.Option("work/data", help="Where everything goes."),
        config: str = typer.Option(None, help="A YAML file."),
    ) -> None:
        """Sources -> observations -> pairs -> shards. Run again, it goes on where it stopped."""
        from data_pipeline.build import DataConfig, build_dataset, print_version
        from infra.jobs.common import open_work, perception_models
        from infra.runtime import RuntimeConfig, start_ray, stop_ray

        with open_work(DataConfig, config, list(overrides or []), work_dir, "lato data build") as (settings, work):
            models = perception_models()
            start_ray(RuntimeConfig())
            print_version(build_dataset(settings, work, models))
            stop_ray()

    @group.command()
    def verify(version: str = typer.Argument(help="Folder of a published version.")) -> None:
        """Re-reads everything: hashes, counts, members, decodability. Exits with 1 if anything is wrong."""
        from data_pipeline.verify import verify_version
        from infra.console import say

        wrong = verify_version(version)
        for line in wrong:
            say(line)
        say("all well" if not wrong else f"{len(wrong)} things are wrong")
        raise typer.Exit(int(bool(wrong)))
