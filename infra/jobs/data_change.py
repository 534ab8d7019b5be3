"""`lato data`, what changes a build or makes something of its versions: merges, removals, reopened failures; views and exports."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.jobs.options import BUILD, BuildDir, VersionDir


def merge(
    version: Annotated[str, typer.Argument(help="Name of a version.")],
    first: Annotated[str, typer.Argument(help="Source id.")],
    second: Annotated[str, typer.Argument(help="Source id of the same person.")],
    work_dir: BuildDir = BUILD,
) -> None:
    """Confirms that two sources show one person: builds put them on one side; one that extends this version drops the samples in the lower of their splits."""
    from data_pipeline.extend import merge as confirm
    from infra.console import say
    from infra.jobs.common import built_folder
    from infra.lease import lease

    work = built_folder(work_dir)
    with lease(work, "lato data merge"):
        done = confirm(work, version, first, second)
    say(
        f"{first} is in {done['splits'][0]}, {second} in {done['splits'][1]}: {done['dropped']} samples go with the next lato data build extends={version}"
    )


def forget(
    source: Annotated[str | None, typer.Option(help="Source id.")] = None,
    identity: Annotated[str | None, typer.Option(help="Declared person.")] = None,
    licence: Annotated[str | None, typer.Option(help="Everything under this licence.")] = None,
    photo: Annotated[str | None, typer.Option(help="A photo of a person: every source that shows somebody that much alike.")] = None,
    work_dir: BuildDir = BUILD,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow, to name the runs that were trained on it; the work folder's own where there is one.")
    ] = None,
) -> None:
    """Takes a source, a person or a licence out of observations, crops, shards, what runs logged in MLflow and all later builds."""
    from data_pipeline.forget import forget as take_out
    from data_pipeline.forget import sources_like
    from data_pipeline.versions import SHOWN
    from infra.addresses import join
    from infra.console import say
    from infra.errors import UserError
    from infra.jobs.common import built_folder, perception_models
    from infra.lease import lease
    from infra.runs import check_tracking
    from infra.storage import exists
    from infra.tracking import default_uri

    work = built_folder(work_dir)
    if tracking_uri is None and exists(join(work, "mlflow.db")):
        tracking_uri = default_uri(work)
    if tracking_uri:
        check_tracking(tracking_uri)  # before anything is taken out: what is found later could not be told any more
    with lease(work, "lato data forget"), lease(work, "lato data forget", SHOWN):
        alike = sources_like(work, photo, perception_models()) if photo else []
        for name, similarity in alike:
            say(f"  {name} shows somebody {similarity:.2f} alike")
        if photo and not alike:
            raise UserError(f"{photo}: nobody in this build looks like that")
        done = take_out(work, source, identity, licence, [name for name, _ in alike])
    say(f"{done.sources} sources taken out")
    if not done.sources:
        asked = ", ".join(name for name in (source, identity, licence) if name)
        before = (
            "It was asked for before, and is kept out of later builds" if done.repeated else "It is recorded, and kept out of later builds"
        )
        say(f"  nobody has this name: no source of this build is {asked}. {before}")
    for version, count in done.samples.items():
        say(f"  version {version}: {count} samples taken out")
    if tracking_uri and (done.sources or done.repeated):  # whom this build never had, nobody was trained on
        _tell_runs(tracking_uri, done.digests)


def _tell_runs(tracking_uri: str, digests: list[str]) -> None:
    """Names the runs and models that were trained on versions of which something was taken out, now or before; deletes what these runs logged of samples."""
    from infra.console import say
    from infra.registry import models_of
    from infra.runs import KEPT, delete_artifacts, run_id_of, runs_that_read

    runs = runs_that_read(tracking_uri, digests)
    for run in runs:
        say(f"  trained on a version of which something was taken out: {run}; {delete_artifacts(tracking_uri, run)} files deleted there")
        for model in models_of(tracking_uri, run_id_of(run)):
            say(f"    a registered model that was made by it: {model}")
    if runs:
        say(
            f"  left in MLflow: parameters, metrics, and of these runs' files {', '.join(KEPT)}. Models may have learned from whom was taken out"
        )


def view(
    version: VersionDir,
    name: Annotated[str, typer.Argument(help="Name of the view; it is published beside the version.")],
    where: Annotated[
        str,
        typer.Option(
            help='Conditions on manifest columns: "kind = video and identity_similarity >= 0.6". No value is unequal (!=) to any.'
        ),
    ],
    weight: Annotated[float, typer.Option(help="How often training draws its samples, against 1 for what it is mixed with.")] = 1.0,
) -> None:
    """A named part of a version with a digest of its own, which training can read."""
    from data_pipeline.published import read_index
    from data_pipeline.subset import make_view
    from data_pipeline.versions import build_of
    from infra.addresses import folder_uri
    from infra.console import say
    from infra.lease import lease

    uri = folder_uri(version).rstrip("/")
    read_index(uri)  # before a folder is held that is not there
    with lease(build_of(uri), "lato data view"):
        folder, samples = make_view(uri, name, where, weight)
    say(f"{folder}: " + ", ".join(f"{count} {split}" for split, count in sorted(samples.items())))


def export(
    version: VersionDir,
    folder: Annotated[str, typer.Argument(help="Where to.")],
    licence: Annotated[
        list[str] | None, typer.Option(help="Only these licences; `commercial` stands for all that allow commercial use.")
    ] = None,
) -> None:
    """Copies a version into a folder that stands alone."""
    from data_pipeline.subset import export as copy_out
    from data_pipeline.subset import restricted_models
    from infra.addresses import folder_uri
    from infra.console import say

    exported, left = copy_out(folder_uri(version), folder_uri(folder), licence or [])
    for what, counts in (("exported", exported), ("left out", left)):
        say(f"{what}: " + ("; ".join(f"{count} {licence}" for licence, count in sorted(counts.items())) or "nothing"))
    for line in restricted_models(folder):
        say(f"note: a model that measured or made these samples is under no licence known to allow commercial use: {line}")


def retry(
    reason: Annotated[str, typer.Option("--class", help="crash, hang, memory, decode, truncated, changed, missing, or render.")],
    work_dir: BuildDir = BUILD,
) -> None:
    """Reopens what failed for one reason; the next build looks at it again."""
    from data_pipeline.retry import reopen
    from infra.console import say
    from infra.jobs.common import built_folder
    from infra.lease import lease

    work = built_folder(work_dir)
    with lease(work, "lato data retry"):
        names = reopen(work, reason)
    say(f"{len(names)} sources reopened: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}. Run lato data build again.")
