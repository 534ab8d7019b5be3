"""`lato train`: one stage on published dataset versions, the encoded cache, and what a run would take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import typer

from infra.errors import UserError

Launcher = Literal["ray", "plain"]
_DATA = typer.Option(
    help="URI[:weight] of a dataset version or view; give several for a mixture. Without a weight: the view's own, or its size."
)
_PRESET = typer.Option("base", help="tiny (CPU, minutes), base (one GPU) or full (the paper's sizes): what --config and key=value change.")
_WORK = typer.Option("work/train", help="Where runs go.")
_CONFIG = typer.Option(None, help="A YAML file.")
_LAUNCHER = typer.Option("ray", help="ray: Ray Train. plain: processes of this machine, without Ray.")
_FORK = typer.Option(None, help="Start a new run of this name from the newest checkpoint's weights of the run that stands.")
_CHECKPOINTS = typer.Option(
    None, help="Where checkpoints go, a folder a run: an object store, for example. If not given, into the run's folder."
)
_OVERRIDES = typer.Argument(None, help="key=value, for example engine.steps=500 engine.zero_stage=3")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Train the tokenizer, the predictor and the DiT with DeepSpeed on Ray Train.", no_args_is_help=True)
    app.add_typer(group, name="train")

    @group.command()
    def tokenizer(
        overrides: list[str] = _OVERRIDES,
        data: list[str] = _DATA,
        preset: str = _PRESET,
        config: str = _CONFIG,
        work_dir: str = _WORK,
        launcher: str = _LAUNCHER,
        fork: str = _FORK,
        checkpoints: str = _CHECKPOINTS,
    ) -> None:
        """Stage 1: the landmark tokenizer."""
        _train("tokenizer", overrides, data, preset, config, work_dir, launcher, fork, checkpoints, {})

    @group.command()
    def predictor(
        overrides: list[str] = _OVERRIDES,
        data: list[str] = _DATA,
        preset: str = _PRESET,
        config: str = _CONFIG,
        work_dir: str = _WORK,
        launcher: str = _LAUNCHER,
        fork: str = _FORK,
        checkpoints: str = _CHECKPOINTS,
    ) -> None:
        """Stage 2: the landmark predictor."""
        _train("predictor", overrides, data, preset, config, work_dir, launcher, fork, checkpoints, {})

    @group.command()
    def dit(
        overrides: list[str] = _OVERRIDES,
        data: list[str] = _DATA,
        tokenizer: str = typer.Option(help="Folder of the trained tokenizer."),
        encoded: str = typer.Option(help="Folder that `lato train encode` wrote."),
        preset: str = _PRESET,
        config: str = _CONFIG,
        work_dir: str = _WORK,
        launcher: str = _LAUNCHER,
        fork: str = _FORK,
        checkpoints: str = _CHECKPOINTS,
    ) -> None:
        """Stage 3: the DiT with landmark tokens."""
        _train("dit", overrides, data, preset, config, work_dir, launcher, fork, checkpoints, {"tokenizer": tokenizer, "encoded": encoded})

    @group.command()
    def encode(
        overrides: list[str] = typer.Argument(None, help="key=value, for example mirror=true workers=8 gpus=1"),
        data: list[str] = typer.Option(help="URI of a dataset version or view; give several to encode them into one folder."),
        encoder: str = typer.Option(help="Folder of the VLM."),
        out: str = typer.Option(help="Where the states go."),
        vae: str = typer.Option(None, help="Folder of the image codec, to encode pictures too."),
        config: str = _CONFIG,
    ) -> None:
        """States of every sample with and without its instruction, and latents of its pictures, once."""
        from infra.config import load_config
        from infra.runtime import stop_ray
        from training.encode import EncodeConfig
        from training.encode import encode as encode_samples

        mistakes = _Mistakes()
        settings = mistakes.catch(lambda: load_config(EncodeConfig, config, list(overrides or [])))
        datasets = _open(mistakes, data)
        for what, folder in (("--encoder", encoder), ("--vae", vae)):
            if folder:
                mistakes.catch(partial(_is_model, what, folder))
        mistakes.stop()
        for dataset in datasets:
            encode_samples(dataset, encoder, out, settings, vae)
        stop_ray()

    @group.command()
    def export(
        run: str = typer.Argument(help="Folder of a run, as work/train/runs/dit."),
        checkpoint: str = typer.Option("newest", help="newest, best, or a step's number."),
    ) -> None:
        """Exports a checkpoint's model into `export-<step>` of the run's folder, also while the run goes on; its driver registers it."""
        from training.rank import export_one

        print_card(export_one(Path(run), checkpoint))

    @group.command()
    def plan(
        stage: str = typer.Argument(help="tokenizer, predictor or dit."),
        overrides: list[str] = _OVERRIDES,
        preset: str = _PRESET,
        config: str = _CONFIG,
        gpu: str = typer.Option("h100", help="Kind of GPU."),
        gpus: int = typer.Option(None, help="How many; the preset's engine.workers if not given."),
        zero: int = typer.Option(None, help="ZeRO stage, as engine.zero_stage."),
        mfu: float = typer.Option(
            0.35,
            help="Share of the GPU's peak that the model's FLOPs reach, for the hours; what checkpointing computes twice does not count.",
        ),
        samples: int = typer.Option(150_000, help="Size of the dataset, for the size of the encoded cache."),
    ) -> None:
        """What a run would take: memory by ZeRO stage, FLOPs, hours, sizes on disk. Exit 2 where it cannot fit, with the nearest plan that does."""
        from infra.jobs.train_plan import print_plan

        changes = [*(overrides or [])]
        changes += [f"engine.workers={gpus}"] if gpus is not None else []
        changes += [f"engine.zero_stage={zero}"] if zero is not None else []
        mistakes = _Mistakes()
        settings = mistakes.catch(lambda: _settings(stage, preset, config, changes))
        mistakes.catch(lambda: _known("--gpu", gpu, _gpus()))
        if not 0 < mfu <= 1:
            mistakes.add(f"--mfu {mfu}: expected a share above 0 and up to 1")
        mistakes.stop()
        print_plan(stage, settings, gpu, mfu, samples)


def print_card(card: dict[str, Any]) -> None:
    """Says what was exported."""
    from infra.console import say

    held_out = "" if card["held_out"] is None else f", held-out {card['held_out']:.4f}"
    say(f"  {card['stage']}: step {card['step']}{held_out} -> {card['folder']}")


class _Mistakes:
    """Collects a user's mistakes, to tell them all in one message before anything starts."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def add(self, text: str) -> None:
        self._said.append(text)

    def catch(self, check: Callable[[], Any]) -> Any:
        """The check's result; None where it found a mistake."""
        try:
            return check()
        except UserError as error:
            self._said.append(str(error))
            return None

    def stop(self) -> None:
        """Raises UserError where there was any."""
        if self._said:
            raise UserError("\n".join(self._said))


def _train(
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
    from infra.jobs.common import hold_work
    from infra.runtime import RuntimeConfig, start_ray, stop_ray
    from infra.storage import folder_uri, is_local, join
    from infra.tracking import default_uri
    from training import resume_rules
    from training.launch import made_of, train
    from training.stage_factory import Job

    mistakes = _Mistakes()
    settings = mistakes.catch(lambda: _settings(stage, preset, config, list(overrides or [])))
    mistakes.catch(lambda: _known("--launcher", launcher, ["ray", "plain"]))
    sources, datasets = _sources(mistakes, data, settings)
    paths = {name: folder_uri(folder) for name, folder in paths.items()}
    digests = {dataset.uri: dataset.digest for dataset in datasets} | _digests(mistakes, paths, datasets)
    if not is_local(work_dir):
        mistakes.add(f"--work-dir {work_dir}: expected a folder that every machine sees, not an object store")
    mistakes.stop()
    run = Path(folder_uri(work_dir)) / "runs" / stage
    kept = folder_uri(checkpoints) if checkpoints else None
    job = Job(stage=stage, config=settings, data=tuple(sources), folder=str(run), checkpoints=kept and join(kept, run.name), **paths)
    if stage != "tokenizer":  # which fits every dataset, and reads all of it when it is made
        job.make()  # what a stage refuses is told here, not by ranks
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


def _sources(mistakes: _Mistakes, data: list[str], settings: Any) -> tuple[list[Any], list[Any]]:
    """What is trained on, and the datasets opened; checked with the settings, where these are known."""
    from training.data import check_splits, mixture

    sources = mistakes.catch(lambda: [parse_source(text) for text in data]) or []
    datasets = _open(mistakes, [source.uri for source in sources])
    for dataset in datasets:
        for split in ("train", "val"):
            mistakes.catch(partial(dataset.split, split))
    if len(datasets) == len(sources):
        mistakes.catch(lambda: check_splits(datasets))
    if settings is not None:
        for line in _unfit(settings):
            mistakes.add(line)
        if len(datasets) == len(sources):
            mistakes.catch(lambda: mixture(datasets, sources, settings.engine.seed))
    return sources, datasets


def parse_source(text: str) -> Any:
    """`URI[:weight]` -> DataSource; a local path made absolute.

    Raises:
        UserError: The weight is not above 0.
    """
    from infra.storage import folder_uri
    from training.config import DataSource

    uri, colon, last = text.rpartition(":")
    try:
        weight = float(last) if colon and uri else None
    except ValueError:
        weight = None
    if weight is None:
        uri = text
    elif not 0 < weight < float("inf"):
        raise UserError(f"--data {text}: expected a weight above 0, given {last}")
    return DataSource(uri=folder_uri(uri), weight=weight)


def _settings(stage: str, preset: str, config: str | None, overrides: list[str]) -> Any:
    from infra.config import load_config
    from training import presets

    mistakes = _Mistakes()
    mistakes.catch(lambda: _known("stage", stage, list(presets.STAGES)))
    mistakes.catch(lambda: _known("--preset", preset, list(presets.NAMES)))
    mistakes.stop()
    start: Any = presets.preset(stage, preset)  # type: ignore[arg-type]
    return load_config(type(start), config, overrides, preset=start)


def _unfit(settings: Any) -> list[str]:
    """What of a run's settings does not fit together, or names what is not there."""
    engine, said = settings.engine, []
    if engine.global_batch % (engine.workers * engine.accumulation):
        said.append(
            f"engine.global_batch: {engine.global_batch} samples do not divide over {engine.workers} ranks (engine.workers) x "
            f"{engine.accumulation} micro-batches (engine.accumulation)"
        )
    if (engine.offload == "all" and engine.zero_stage != 3) or (engine.offload == "optimizer" and engine.zero_stage == 0):
        said.append(f"engine.offload: {engine.offload} needs ZeRO {'3' if engine.offload == 'all' else '1, 2 or 3'} (engine.zero_stage)")
    for name in ("base", "codec"):
        folder = getattr(settings, name, None)
        if folder and not (Path(folder) / "config.json").is_file():
            said.append(f"{name}: there is no model in {folder}; give the folder of a pretrained one: {name}=FOLDER")
    return said


def _open(mistakes: _Mistakes, uris: list[str]) -> list[Any]:
    from infra.storage import folder_uri
    from training.data import Dataset

    opened = [mistakes.catch(partial(Dataset.open, folder_uri(uri))) for uri in uris]
    return [dataset for dataset in opened if dataset is not None]


def _digests(mistakes: _Mistakes, paths: dict[str, str], datasets: list[Any]) -> dict[str, str]:
    """What identifies the trained parts that a stage is given."""
    from training.encoded import EncodedCache
    from training.stage_factory import digest_of

    if "tokenizer" in paths:
        mistakes.catch(lambda: _is_model("--tokenizer", paths["tokenizer"]))
    if "encoded" in paths:
        for dataset in datasets:
            mistakes.catch(partial(EncodedCache.open, paths["encoded"], dataset.digest))
    return {name: digest_of(folder, [dataset.digest for dataset in datasets]) for name, folder in paths.items()}


def _is_model(option: str, folder: str) -> None:
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{option}: there is no model in {folder} (no config.json)")


def _known(option: str, given: str, known: list[str]) -> None:
    if given not in known:
        raise UserError(f"{option} {given}: expected one of {', '.join(known)}")


def _gpus() -> list[str]:
    from training.gpus import GPUS

    return list(GPUS)
