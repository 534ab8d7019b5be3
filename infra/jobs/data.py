"""`lato data`: build datasets, and ask about them."""

from __future__ import annotations

import typer

from infra.jobs import replay
from infra.jobs.data_build import build_until, built_folder, print_plan, split_settings

_SETTINGS = typer.Argument(None, help="A YAML file, and key=value: folder=clips synthetic.anny.people=100")
_WORK = typer.Option("work/data", help="Where everything goes.")
_CONFIG = typer.Option(None, help="A YAML file.")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Build datasets, and ask about them.", no_args_is_help=True)
    app.add_typer(group, name="data")

    @group.command()
    def build(
        settings: list[str] = _SETTINGS,
        work_dir: str = _WORK,
        config: str = _CONFIG,
        dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and stop."),
    ) -> None:
        """Sources -> observations -> pairs -> shards. Run again, it goes on where it stopped."""
        from data_pipeline.build import build_dataset
        from data_pipeline.config import DataConfig
        from data_pipeline.publish import print_version
        from infra.config import load_config
        from infra.jobs.common import open_work, perception_models
        from infra.runtime import stop_ray

        yaml, overrides = split_settings(settings, config)
        if dry_run:
            print_plan(load_config(DataConfig, yaml, overrides))
            return
        with open_work(DataConfig, yaml, overrides, work_dir, "lato data build") as (build_config, work):
            models = perception_models()
            print_version(build_dataset(build_config, work, models))
            stop_ray()

    @group.command()
    def observe(settings: list[str] = _SETTINGS, work_dir: str = _WORK, config: str = _CONFIG) -> None:
        """A build's first stage alone: look at all sources, pair nothing."""
        from data_pipeline.config import DataConfig
        from data_pipeline.observe import observe as look
        from infra.console import say
        from infra.jobs.common import open_work, perception_models
        from infra.runtime import stop_ray

        yaml, overrides = split_settings(settings, config)
        with open_work(DataConfig, yaml, overrides, work_dir, "lato data observe") as (build_config, work):
            ledger = look(build_config, work, perception_models()).ledger
            for name, count in ledger.counts().items():
                say(f"{count:>8}  {name}")
            stop_ray()

    @group.command()
    def pair(settings: list[str] = _SETTINGS, work_dir: str = _WORK, config: str = _CONFIG) -> None:
        """A build up to its verdicts: what thresholds would accept. No source is opened for it where all are observed."""
        build_until("pair", settings, work_dir, config)

    @group.command()
    def render(settings: list[str] = _SETTINGS, work_dir: str = _WORK, config: str = _CONFIG) -> None:
        """A build up to the crops of accepted pairs; what is left then is packing."""
        build_until("render", settings, work_dir, config)

    @group.command()
    def backfill(
        names: list[str] = typer.Argument(help="Column groups: identity, occlusion, writing, surroundings, fer."),
        work_dir: str = typer.Option("work/data", help="The build's folder."),
        pack: str = typer.Option(None, help="Folder of an insightface pack, for identity."),
        workers: int = typer.Option(2, help="Ray actors; 0 works in this process."),
        gpus: float = typer.Option(0.0, help="Share of a GPU for each."),
    ) -> None:
        """Computes column groups for everything observed, from the stored face chips: no video is opened."""
        from data_pipeline.groups import GroupsConfig, group_digests
        from data_pipeline.groups import backfill as fill
        from data_pipeline.ledger import read_ledger
        from infra.console import say
        from infra.jobs.common import perception_models
        from infra.lease import lease
        from infra.storage import folder_uri

        work = folder_uri(work_dir)
        ledger = read_ledger(work)
        settings = GroupsConfig(names=tuple(names), pack=pack, gpus=gpus)
        models = perception_models()
        with lease(work, "lato data backfill"):
            parts = [part for row in ledger if row.get("faces") for part in row["parts"]]
            say(
                f"{fill(parts, group_digests(models, settings), settings, models, work, workers)} of {len(parts) * len(names)} parts computed"
            )

    @group.command()
    def merge(
        version: str = typer.Argument(help="Name of a version."),
        first: str = typer.Argument(help="Source id."),
        second: str = typer.Argument(help="Source id of the same person."),
        work_dir: str = typer.Option("work/data", help="The build's folder."),
    ) -> None:
        """Confirms that two sources show one person; the next version that extends this one drops the samples in the lower of their splits."""
        from data_pipeline.extend import merge as confirm
        from infra.console import say
        from infra.lease import lease

        work = built_folder(work_dir)
        with lease(work, "lato data merge"):
            done = confirm(work, version, first, second)
        say(
            f"{first} is in {done['splits'][0]}, {second} in {done['splits'][1]}: {done['dropped']} samples go with the next lato data build extends={version}"
        )

    @group.command()
    def audit(
        work_dir: str = typer.Option("work/data", help="The build's folder."),
        version: str = typer.Option("v1", help="Name of the version."),
        per_stratum: int = typer.Option(20, min=1, help="Pairs of each stratum: accepted, and each filter's just-rejected."),
        seed: int = typer.Option(0, help="Another seed, another sample."),
        port: int = typer.Option(8300, min=1, max=65535, help="Of the page on 127.0.0.1."),
    ) -> None:
        """Label a sample of accepted and just-rejected pairs in a browser; labels beat the filters at the next build."""
        from data_pipeline.audit import serve_audit, summarize
        from infra.console import say, table
        from infra.storage import folder_uri

        work = folder_uri(work_dir)
        server = serve_audit(work, version, per_stratum, seed, port)
        say(f"http://127.0.0.1:{port}  (g: good, b: bad; stop with Ctrl-C)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.server_close()
        table("Labels", ["stratum", "labelled", "good", "rate", "low", "high"], summarize(work))

    @group.command()
    def verify(version: str = typer.Argument(help="Folder of a published version.")) -> None:
        """Re-reads everything: hashes, counts, members, decodability. Exits with 1 if anything is wrong."""
        from data_pipeline.verify import verify_version
        from infra.console import say
        from infra.storage import folder_uri

        wrong = verify_version(folder_uri(version))
        for line in wrong:
            say(line)
        say("all well" if not wrong else f"{len(wrong)} things are wrong")
        raise typer.Exit(int(bool(wrong)))

    @group.command()
    def report(
        work_dir: str = typer.Option("work/data", help="The build's folder."),
        version: str = typer.Option("v1", help="Name of the version."),
    ) -> None:
        """One page about a version: funnel, filters, coverage, groups, contact sheets of accepted and just-rejected pairs."""
        from data_pipeline.report import write_data_report
        from infra.console import say
        from infra.storage import folder_uri

        say(write_data_report(folder_uri(work_dir), version))

    @group.command()
    def why(
        what: str = typer.Argument(help="A sample's key, a source id, or source_id@seconds."),
        work_dir: str = typer.Option("work/data", help="The build's folder."),
        version: str = typer.Option("v1", help="Name of the version."),
    ) -> None:
        """The path of a sample, source or frame: what became of it, every score beside its threshold."""
        from data_pipeline.why import why as explain
        from infra.console import say
        from infra.storage import folder_uri

        for line in explain(what, folder_uri(work_dir), version):
            say(line)

    @group.command()
    def diff(first: str = typer.Argument(help="Folder of a version."), second: str = typer.Argument(help="Folder of another.")) -> None:
        """What changed from one version to another: samples added, removed and why, moved to another split, changed."""
        from data_pipeline.diff import diff_versions
        from infra.console import say
        from infra.storage import folder_uri

        found = diff_versions(folder_uri(first), folder_uri(second))
        say(f"{found['samples'][0]} -> {found['samples'][1]} samples" + ("; the bytes are equal" if found["equal"] else ""))
        for name in ("added", "removed", "moved", "changed"):
            shown = ", ".join(str(entry) for entry in found[name][:5])
            say(f"{len(found[name]):>7} {name}" + (f": {shown}{' ...' if len(found[name]) > 5 else ''}" if shown else ""))
        for reason, count in found["removed_because"].items():
            say(f"{count:>14} {reason}")

    @group.command()
    def forget(
        source: str = typer.Option(None, help="Source id."),
        identity: str = typer.Option(None, help="Declared person."),
        licence: str = typer.Option(None, help="Everything under this licence."),
        photo: str = typer.Option(None, help="A photo of a person: every source that shows somebody that much alike."),
        work_dir: str = typer.Option("work/data", help="The build's folder."),
        tracking_uri: str = typer.Option(
            None, help="MLflow, to name the runs that were trained on it; the work folder's own where there is one."
        ),
    ) -> None:
        """Takes a source, a person or a licence out of observations, crops, shards, pictures in MLflow and all later builds."""
        from data_pipeline.forget import forget as take_out
        from data_pipeline.forget import sources_like
        from infra.console import say
        from infra.errors import UserError
        from infra.jobs.common import perception_models
        from infra.lease import lease
        from infra.registry import models_of
        from infra.runs import check_tracking, delete_pictures, run_id_of, runs_that_read
        from infra.storage import exists, join
        from infra.tracking import default_uri

        work = built_folder(work_dir)
        if tracking_uri is None and exists(join(work, "mlflow.db")):
            tracking_uri = default_uri(work)
        if tracking_uri:
            check_tracking(tracking_uri)  # before anything is taken out: what is found later could not be told any more
        with lease(work, "lato data forget"):
            alike = sources_like(work, photo, perception_models()) if photo else []
            for name, similarity in alike:
                say(f"  {name} shows somebody {similarity:.2f} alike")
            if photo and not alike:
                raise UserError(f"{photo}: nobody in this build looks like that")
            done = take_out(work, source, identity, licence, [name for name, _ in alike])
        say(f"{done.sources} sources taken out")
        if not done.sources:
            asked = ", ".join(name for name in (source, identity, licence) if name)
            say(f"  nobody has this name: no source of this build is {asked}. It is recorded, and kept out of later builds")
        for version, count in done.samples.items():
            say(f"  version {version}: {count} samples taken out")
        for run in runs_that_read(tracking_uri, done.digests) if tracking_uri else []:
            say(f"  trained on them: {run}; {delete_pictures(tracking_uri, run)} pictures and pages deleted there")
            for model in models_of(tracking_uri, run_id_of(run)):
                say(f"    a registered model that was made by it: {model}")

    @group.command()
    def worklist(
        name: str = typer.Argument(help="celebv_hq, celebv_text, hdtf or openhumanvid."),
        path: str = typer.Argument(help="The list's own file; for hdtf the folder of its tables."),
        videos: str = typer.Argument(help="Folder with the files, downloaded already."),
        out: str = typer.Option("worklist.parquet", help="The work list that is written."),
    ) -> None:
        """Turns a public list into a work list."""
        from data_pipeline.public_lists import read_public_list
        from data_pipeline.worklist import write_worklist
        from infra.console import say
        from infra.storage import folder_uri

        items, missing = read_public_list(name, path, folder_uri(videos))
        write_worklist(items, out)
        say(
            f"{out}: {len(items)} sources; {len(missing)} of the list are not in {videos}"
            + (f" ({', '.join(missing[:5])} ...)" if missing else "")
        )

    @group.command()
    def view(
        version: str = typer.Argument(help="Folder of a version."),
        name: str = typer.Argument(help="Name of the view; it is published beside the version."),
        where: str = typer.Option(..., help='Conditions on manifest columns: "kind = video and identity_similarity >= 0.6".'),
        weight: float = typer.Option(1.0, help="How often training draws its samples, against 1 for what it is mixed with."),
    ) -> None:
        """A named part of a version with a digest of its own, which training can read."""
        from data_pipeline.subset import make_view
        from infra.console import say
        from infra.storage import folder_uri

        folder, samples = make_view(folder_uri(version), name, where, weight)
        say(f"{folder}: " + ", ".join(f"{count} {split}" for split, count in sorted(samples.items())))

    @group.command()
    def export(
        version: str = typer.Argument(help="Folder of a version."),
        folder: str = typer.Argument(help="Where to."),
        licence: list[str] = typer.Option([], help="Only these licences; `commercial` stands for all that allow commercial use."),
    ) -> None:
        """Copies a version into a folder that stands alone."""
        from data_pipeline.subset import export as copy_out
        from data_pipeline.subset import restricted_models
        from infra.console import say
        from infra.storage import folder_uri

        exported, left = copy_out(folder_uri(version), folder_uri(folder), licence)
        for what, counts in (("exported", exported), ("left out", left)):
            say(f"{what}: " + (", ".join(f"{count} {licence}" for licence, count in sorted(counts.items())) or "nothing"))
        for line in restricted_models(folder):
            say(f"note: a model that measured or made these samples is under no licence known to allow commercial use: {line}")

    @group.command()
    def retry(
        reason: str = typer.Option(..., "--class", help="crash, hang, memory, decode, truncated, changed, missing, or render."),
        work_dir: str = typer.Option("work/data", help="The build's folder."),
    ) -> None:
        """Reopens what failed for one reason; the next build looks at it again."""
        from data_pipeline.retry import reopen
        from infra.console import say
        from infra.lease import lease

        work = built_folder(work_dir)
        with lease(work, "lato data retry"):
            names = reopen(work, reason)
        say(f"{len(names)} sources reopened: {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}. Run lato data build again.")

    replay.register(group)
