"""`lato data`, what makes a dataset: the build, its stages alone, columns that were not asked for, work lists of public data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from infra.jobs.options import BUILD, BuildDir, Settings, WorkDir


def build(
    settings: Settings = None,
    work_dir: WorkDir = BUILD,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Sources -> observations -> pairs -> shards. Run again, it goes on where it stopped."""
    from data_pipeline.build import build_dataset
    from data_pipeline.config import DataConfig
    from data_pipeline.publish import print_version
    from infra.config import load_config
    from infra.jobs.common import open_work, perception_models
    from infra.runtime import stop_ray

    yaml, overrides = _split(settings)
    if dry_run:
        _print_plan(load_config(DataConfig, yaml, overrides), work_dir)
        return
    with open_work(DataConfig, yaml, overrides, work_dir, "lato data build") as (build_config, work):
        models = perception_models()
        print_version(build_dataset(build_config, work, models))
        stop_ray()


def observe(settings: Settings = None, work_dir: WorkDir = BUILD) -> None:
    """A build's first stage alone: look at all sources, pair nothing."""
    from data_pipeline.build import extended_by
    from data_pipeline.config import DataConfig
    from data_pipeline.observe import observe as look
    from infra.console import say
    from infra.jobs.common import open_work, perception_models
    from infra.runtime import stop_ray

    yaml, overrides = _split(settings)
    with open_work(DataConfig, yaml, overrides, work_dir, "lato data observe") as (build_config, work):
        ledger = look(build_config, work, perception_models(), base=extended_by(build_config, work)).ledger
        for name, count in ledger.counts().items():
            say(f"{count:>8}  {name}")
        stop_ray()


def pair(settings: Settings = None, work_dir: WorkDir = BUILD) -> None:
    """A build up to its verdicts: what thresholds would accept. No source is opened for it where all are observed."""
    _build_until("pair", settings, work_dir)


def render(settings: Settings = None, work_dir: WorkDir = BUILD) -> None:
    """A build up to the crops of accepted pairs; what is left then is packing."""
    _build_until("render", settings, work_dir)


def backfill(
    names: Annotated[list[str], typer.Argument(help="Column groups: identity, occlusion, writing, surroundings, fer.")],
    work_dir: BuildDir = BUILD,
    pack: Annotated[str | None, typer.Option(help="Folder of an insightface pack, for identity.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0 works in this process.")] = 2,
    gpus: Annotated[float, typer.Option(min=0, help="Share of a GPU for each.")] = 0.0,
) -> None:
    """Computes column groups for everything observed, from the stored face chips: no video is opened."""
    from data_pipeline.groups import GroupsConfig, group_digests
    from data_pipeline.groups import backfill as fill
    from data_pipeline.ledger import read_ledger
    from data_pipeline.observations import committed_fingerprints
    from infra.console import say
    from infra.jobs.common import built_folder, perception_models
    from infra.lease import lease

    work = built_folder(work_dir)
    settings = GroupsConfig(names=tuple(names), pack=pack, gpus=gpus)
    models = perception_models()
    with lease(work, "lato data backfill"):
        ledger, there = read_ledger(work), committed_fingerprints(work)
        named = [part for row in ledger if row.get("faces") for part in row["parts"]]
        parts = [part for part in named if part in there]
        if away := len(named) - len(parts):
            say(
                f"  {away} of {len(named)} parts are not there (lato data retry takes them away): lato data build looks at their sources again"
            )
        done = fill(parts, group_digests(models, settings), settings, models, work, workers)
        say(f"{done} of {len(parts) * len(names)} parts computed")


def worklist(
    name: Annotated[str, typer.Argument(help="celebv_hq, celebv_text, hdtf or openhumanvid.")],
    path: Annotated[str, typer.Argument(help="The list's own file; for hdtf the folder of its tables.")],
    videos: Annotated[str, typer.Argument(help="Folder with the files, downloaded already.")],
    out: Annotated[str, typer.Option(help="The work list that is written, as Parquet.")] = "worklist.parquet",
) -> None:
    """Turns a public list into a work list."""
    from data_pipeline.public_lists import read_public_list
    from data_pipeline.worklist import check_is_parquet, write_worklist
    from infra.addresses import folder_uri
    from infra.console import say

    check_is_parquet(out)  # before minutes of reading
    items, missing = read_public_list(name, path, folder_uri(videos))
    write_worklist(items, out)
    absent = f" ({', '.join(missing[:5])} ...)" if missing else ""
    say(f"{out}: {len(items)} sources; {len(missing)} of the list are not in {videos}{absent}")


def _split(settings: list[str] | None) -> tuple[str | None, list[str]]:
    """A command's arguments as its YAML file, where there is one, and its overrides."""
    from infra.errors import UserError

    files = [text for text in settings or [] if text.endswith((".yaml", ".yml")) and "=" not in text]
    if len(files) > 1:
        raise UserError(f"give one YAML file, not {len(files)}: {', '.join(files)}")
    return (files[0] if files else None), [text for text in settings or [] if text not in files]


def _build_until(stage: Literal["pair", "render"], settings: list[str] | None, work_dir: str) -> None:
    """A build that stops after a stage and shows its funnel."""
    from data_pipeline.build import build_dataset
    from data_pipeline.config import DataConfig
    from data_pipeline.publish import Stopped, print_funnel, print_version
    from infra.jobs.common import open_work, perception_models
    from infra.runtime import stop_ray

    yaml, overrides = _split(settings)
    with open_work(DataConfig, yaml, overrides, work_dir, f"lato data {stage}") as (build_config, work):
        try:
            print_version(build_dataset(build_config, work, perception_models(), until=stage))
        except Stopped as stopped:
            print_funnel(stopped.funnel)
        stop_ray()


def _print_plan(settings: Any, work_dir: str) -> None:
    """What a build would look at, and for how long."""
    from data_pipeline.observe import read_sources
    from data_pipeline.plan import plan_build
    from infra.console import duration, say
    from infra.jobs.common import perception_models

    plan = plan_build(read_sources(settings, [], work_dir), settings, perception_models())
    workers, probe = settings.analyze.workers, plan.probe
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(plan.sources.items())) or "none"
    say(f"sources: {kinds}; {plan.megabytes:,.1f} MB to read, {duration(plan.video_seconds)} of video")
    for what, count in sorted(plan.refused.items()):
        say(f"  not allowed: {count:,} with {what}")
    if plan.unreadable:
        say(f"  cannot be read now: {len(plan.unreadable)} ({', '.join(plan.unreadable[:5])})")
    say(f"frames to look at: {plan.frames:,}, generated ones too; videos at {settings.analyze.fps:g} a second")
    say(f"samples: at most {plan.most_samples:,} by the quotas")
    if not probe.seconds_per_frame:
        say("time and bytes: nothing could be probed")
        return
    took = duration(plan.seconds(workers))
    say(
        f"analysis: {probe.seconds_per_frame * 1000:.0f} ms CPU a frame (probe), {took} with {workers} workers, "
        f"of which {duration(probe.start_seconds)} until the first can begin; crops come on top"
    )
    if plan.asked:
        each = plan.asked / 2**20
        say(f"memory: {each:,.0f} MB that a worker asks Ray for, its decoder in it; {each * workers:,.0f} MB for {workers}, and the driver")
    say(f"memory of this command, which has the models loaded: {probe.worker_megabytes:,.0f} MB")
    say(
        f"disk: {plan.observation_megabytes:,.1f} MB of observations, at most {plan.shard_megabytes:,.1f} MB of shards and as much of crops"
    )
