"""`lato train`: one stage on a published dataset version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Train the tokenizer, the predictor and the DiT with DeepSpeed on Ray Train.", no_args_is_help=True)
    app.add_typer(group, name="train")
    dataset_option = typer.Option(help="Folder of a published dataset version.")
    work_option = typer.Option("work/train", help="Where runs go.")
    config_option = typer.Option(None, help="A YAML file.")
    overrides_argument = typer.Argument(None, help="key=value, for example engine.steps=500 engine.zero_stage=3")

    @group.command()
    def tokenizer(
        overrides: list[str] = overrides_argument, dataset: str = dataset_option, work_dir: str = work_option, config: str = config_option
    ) -> None:
        """Stage 1: the landmark tokenizer."""
        from training.stages.tokenizer import TokenizerConfig

        _train("tokenizer", TokenizerConfig, config, overrides, work_dir, dataset)

    @group.command()
    def predictor(
        overrides: list[str] = overrides_argument, dataset: str = dataset_option, work_dir: str = work_option, config: str = config_option
    ) -> None:
        """Stage 2: the landmark predictor."""
        from training.stages.predictor import PredictorConfig

        _train("predictor", PredictorConfig, config, overrides, work_dir, dataset)

    @group.command()
    def encode(
        overrides: list[str] = typer.Argument(None, help="key=value, for example mirror=true workers=8 gpus=1"),
        dataset: str = dataset_option,
        encoder: str = typer.Option(help="Folder of the VLM."),
        out: str = typer.Option(help="Where the states go."),
        vae: str = typer.Option(None, help="Folder of the image codec, to encode pictures too."),
        config: str = config_option,
    ) -> None:
        """States of every sample with and without its instruction, and latents of its pictures, once."""
        from infra.config import load_config
        from infra.runtime import stop_ray
        from training.data import Dataset
        from training.encode import EncodeConfig
        from training.encode import encode as encode_samples

        settings = load_config(EncodeConfig, config, list(overrides or []))
        encode_samples(Dataset.open(dataset), encoder, out, settings, vae)
        stop_ray()

    @group.command()
    def dit(
        overrides: list[str] = overrides_argument,
        dataset: str = dataset_option,
        tokenizer: str = typer.Option(help="Folder of the trained tokenizer."),
        text_states: str = typer.Option(help="Folder that `lato train encode` wrote."),
        work_dir: str = work_option,
        config: str = config_option,
    ) -> None:
        """Stage 3: the DiT with landmark tokens."""
        from infra.storage import folder_uri
        from training.stages.dit_config import DitConfig

        _train("dit", DitConfig, config, overrides, work_dir, dataset, tokenizer=folder_uri(tokenizer), encoded=folder_uri(text_states))


def _train(
    stage: str, model: type[Any], config: str | None, overrides: list[str] | None, work_dir: str, dataset: str, **paths: str
) -> None:
    from infra.jobs.common import open_work
    from infra.runtime import RuntimeConfig, start_ray, stop_ray
    from infra.tracking import default_uri
    from training.config import DataSource
    from training.data import Dataset
    from training.launch import train
    from training.stage_factory import Job, digest_of

    with open_work(model, config, list(overrides or []), work_dir, f"lato train {stage}") as (settings, work):
        version = Dataset.open(dataset)
        version.split("train"), version.split("val")
        version.check()  # once, here: ranks compare sizes only
        start_ray(RuntimeConfig())
        data = (DataSource(uri=version.uri),)
        job = Job(stage=stage, config=settings, data=data, folder=str(Path(work) / "runs" / stage), **paths)
        train(job, {version.uri: version.digest} | {name: digest_of(path) for name, path in paths.items()}, default_uri(work), "lato")
        stop_ray()
