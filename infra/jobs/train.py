"""`lato train`: one stage on published dataset versions, the encoded cache, and what a run would take."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.jobs.options import Checkpoints, ConfigFile, Data, Fork, Launcher, Overrides, Preset, RunsDir
from infra.jobs.train_checks import (
    Mistakes,
    check_known,
    check_model,
    check_parts,
    check_sources,
    digests_of_starts,
    load_settings,
    open_datasets,
    with_whole_paths,
)

app = typer.Typer(help="Train the tokenizer, the predictor and the DiT with DeepSpeed on Ray Train.", no_args_is_help=True)


@app.command("predictor", help="Stage 2: the landmark predictor.")
@app.command("tokenizer", help="Stage 1: the landmark tokenizer.")
def train_on_data(
    context: typer.Context,
    overrides: Overrides = None,
    *,
    data: Data,
    preset: Preset = "base",
    config: ConfigFile = None,
    work_dir: RunsDir = "work/train",
    launcher: Launcher = "ray",
    fork: Fork = None,
    checkpoints: Checkpoints = None,
) -> None:
    """A stage that needs nothing but a dataset; the command's name says which."""
    start_stage(context.command.name, overrides, data, preset, config, work_dir, launcher, fork, checkpoints, {})


@app.command()
def dit(
    overrides: Overrides = None,
    *,
    data: Data,
    tokenizer: Annotated[str, typer.Option(help="Folder of the trained tokenizer.")],
    encoded: Annotated[str, typer.Option(help="Folder that `lato train encode` wrote.")],
    preset: Preset = "base",
    config: ConfigFile = None,
    work_dir: RunsDir = "work/train",
    launcher: Launcher = "ray",
    fork: Fork = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Stage 3: the DiT with landmark tokens."""
    parts = {"tokenizer": tokenizer, "encoded": encoded}
    start_stage("dit", overrides, data, preset, config, work_dir, launcher, fork, checkpoints, parts)


@app.command()
def encode(
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example mirror=true workers=8 gpus=1")] = None,
    *,
    data: Annotated[list[str], typer.Option(help="URI of a dataset version or view; give several to encode them into one folder.")],
    encoder: Annotated[str, typer.Option(help="Folder of the VLM.")],
    out: Annotated[str, typer.Option(help="Where the states go.")],
    vae: Annotated[str | None, typer.Option(help="Folder of the image codec, to encode pictures too.")] = None,
    config: ConfigFile = None,
) -> None:
    """States of every sample with and without its instruction, and latents of its pictures, once."""
    from infra.config import load_config
    from infra.runtime import stop_ray
    from training.encode import EncodeConfig
    from training.encode import encode as encode_samples

    mistakes = Mistakes()
    settings = mistakes.catch(lambda: load_config(EncodeConfig, config, list(overrides or [])))
    datasets = open_datasets(mistakes, data)
    for what, folder in (("--encoder", encoder), ("--vae", vae)):
        if folder:
            mistakes.catch(partial(check_model, what, folder))
    mistakes.stop()
    for dataset in datasets:
        encode_samples(dataset, encoder, out, settings, vae)
    stop_ray()


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Folder of a run, as work/train/runs/dit.")],
    checkpoint: Annotated[str, typer.Option(help="newest, best, or a step's number.")] = "newest",
) -> None:
    """Exports a checkpoint's model into `export-<step>` of the run's folder, also while the run goes on; its driver registers it."""
    from infra.console import say
    from training.rank import export_one

    card = export_one(Path(run), checkpoint)
    held_out = "" if card["held_out"] is None else f", held-out {card['held_out']:.4f}"
    say(f"  {card['stage']}: step {card['step']}{held_out} -> {card['folder']}")


@app.command()
def plan(
    stage: Annotated[str, typer.Argument(help="tokenizer, predictor or dit.")],
    overrides: Overrides = None,
    preset: Preset = "base",
    config: ConfigFile = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU.")] = "h100",
    gpus: Annotated[int | None, typer.Option(help="How many; the preset's engine.workers if not given.")] = None,
    zero: Annotated[int | None, typer.Option(help="ZeRO stage, as engine.zero_stage.")] = None,
    mfu: Annotated[
        float,
        typer.Option(
            help="Share of the GPU's peak that the model's FLOPs reach, for the hours; what checkpointing computes twice does not count."
        ),
    ] = 0.35,
    samples: Annotated[int, typer.Option(help="Size of the dataset, for the size of the encoded cache.")] = 150_000,
) -> None:
    """What a run would take: memory by ZeRO stage, FLOPs, hours, sizes on disk. Exit 2 where it cannot fit, with the nearest plan that does."""
    from infra.jobs.train_plan import print_plan
    from training.gpus import GPUS

    changes = [*(overrides or [])]
    changes += [f"engine.workers={gpus}"] if gpus is not None else []
    changes += [f"engine.zero_stage={zero}"] if zero is not None else []
    mistakes = Mistakes()
    settings = mistakes.catch(lambda: load_settings(stage, preset, config, changes))
    mistakes.catch(lambda: check_known("--gpu", gpu, list(GPUS)))
    if not 0 < mfu <= 1:
        mistakes.add(f"--mfu {mfu}: expected a share above 0 and up to 1")
    mistakes.stop()
    print_plan(stage, settings, gpu, mfu, samples)


def start_stage(
    stage: Any,
    overrides: list[str] | None,
    data: list[str],
    preset: str,
    config: str | None,
    work_dir: str,
    launcher: str,
    fork: str | None,
    checkpoints: str | None,
    paths: dict[str, str],
) -> None:
    """Checks all that a command was given, then trains one stage in a run of its own, or goes on with it.

    Args:
        stage: tokenizer, predictor or dit.
        overrides: key=value.
        data: Sources, as `URI[:weight]`.
        preset: What the settings start from.
        config: A YAML file.
        work_dir: Where runs go: a folder that every machine sees.
        launcher: ray or plain.
        fork: Name of a new run that starts from the weights of the one that stands.
        checkpoints: Where checkpoints go, if not into the run's folder.
        paths: Folders of the trained parts that the stage needs, by name.

    Raises:
        UserError: All mistakes in one message, before anything has started.
    """
    from infra.addresses import folder_uri, is_local, join
    from infra.jobs.common import hold_work
    from infra.runtime import RuntimeConfig, start_ray, stop_ray
    from infra.tracking import default_uri
    from training import resume_rules
    from training.launch import made_of, train
    from training.stage_factory import Job

    mistakes = Mistakes()
    settings = mistakes.catch(lambda: load_settings(stage, preset, config, list(overrides or [])))
    mistakes.catch(lambda: check_known("--launcher", launcher, ["ray", "plain"]))
    sources, datasets = check_sources(mistakes, data, settings)
    paths = {name: folder_uri(folder) for name, folder in paths.items()}
    digests = {dataset.uri: dataset.digest for dataset in datasets} | check_parts(mistakes, paths, datasets)
    if not is_local(work_dir):
        mistakes.add(f"--work-dir {work_dir}: expected a folder that every machine sees, not an object store")
    mistakes.stop()
    settings = with_whole_paths(settings)
    run = Path(folder_uri(work_dir)) / "runs" / stage
    kept = folder_uri(checkpoints) if checkpoints else None
    job = Job(stage=stage, config=settings, data=tuple(sources), folder=str(run), checkpoints=kept and join(kept, run.name), **paths)
    if stage != "tokenizer":  # which fits every dataset, and reads all of it when it is made
        job.make()  # what a stage refuses is told here, not by ranks
    digests |= digests_of_starts(settings)
    if fork:
        new = resume_rules.fork(run, fork, made_of(job, digests), job.checkpoints)
        job = job.model_copy(update={"folder": str(new), "checkpoints": kept and join(kept, new.name)})
    else:
        resume_rules.check(run, made_of(job, digests), job.checkpoints)
    with hold_work(settings, work_dir, f"lato train {stage}") as work:
        for dataset in datasets:
            dataset.check()  # every byte, once, here: ranks compare sizes only
        if launcher == "ray":
            start_ray(RuntimeConfig())
        train(job, digests, default_uri(work), "lato", launcher=launcher)  # type: ignore[arg-type]
        if launcher == "ray":
            stop_ray()
