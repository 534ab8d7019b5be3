"""What the commands of `lato data` share: their settings, a build up to a stage, the plan of one, the folder of one."""

from __future__ import annotations

from typing import Any, Literal


def split_settings(settings: list[str] | None, config: str | None) -> tuple[str | None, list[str]]:
    """A command's arguments as its YAML file, given by place or by name, and its overrides."""
    from infra.errors import UserError

    files = [text for text in settings or [] if text.endswith((".yaml", ".yml")) and "=" not in text]
    if len(files) + bool(config) > 1:
        raise UserError(f"give one YAML file, not {len(files) + bool(config)}: {', '.join([*files, *([config] if config else [])])}")
    return (files[0] if files else config), [text for text in settings or [] if text not in files]


def build_until(stage: Literal["pair", "render"], settings: list[str] | None, work_dir: str, config: str | None) -> None:
    """A build that stops after a stage and shows its funnel."""
    from data_pipeline.build import build_dataset
    from data_pipeline.config import DataConfig
    from data_pipeline.publish import Stopped, print_funnel, print_version
    from infra.jobs.common import open_work, perception_models
    from infra.runtime import stop_ray

    yaml, overrides = split_settings(settings, config)
    with open_work(DataConfig, yaml, overrides, work_dir, f"lato data {stage}") as (build_config, work):
        try:
            print_version(build_dataset(build_config, work, perception_models(), until=stage))
        except Stopped as stopped:
            print_funnel(stopped.funnel)
        stop_ray()


def print_plan(settings: Any) -> None:
    """What a build would look at, and for how long."""
    from data_pipeline.observe import read_sources
    from data_pipeline.plan import plan_build
    from infra.console import duration, say
    from infra.jobs.common import perception_models

    plan = plan_build(read_sources(settings, []), settings, perception_models())
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
    say(f"analysis: {probe.seconds_per_frame * 1000:.0f} ms CPU a frame (probe), {took} with {workers} workers; crops come on top")
    say(
        f"memory: about {probe.worker_megabytes:,.0f} MB a worker, {probe.worker_megabytes * (workers + 1):,.0f} MB with all and the driver"
    )
    say(
        f"disk: {plan.observation_megabytes:,.1f} MB of observations, at most {plan.shard_megabytes:,.1f} MB of shards and as much of crops"
    )


def built_folder(work_dir: str) -> str:
    """The folder of a build that is there, for commands that make none."""
    from infra.errors import UserError
    from infra.storage import exists, folder_uri, join

    work = folder_uri(work_dir)
    if not exists(join(work, "worklist.parquet")):
        raise UserError(f"{work}: no build here (worklist.parquet is missing). Give the folder of a build: --work-dir")
    return work
