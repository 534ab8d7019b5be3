"""What a `lato train` command was given, checked before anything starts; all mistakes are told at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from infra.errors import UserError


class Mistakes:
    """Collects a user's mistakes, to tell them all in one message before anything starts."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def add(self, text: str) -> None:
        """Another one."""
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


def check_sources(mistakes: Mistakes, data: list[str], settings: Any) -> tuple[list[Any], list[Any]]:
    """What is trained on, and the datasets opened; checked with the settings, where these are known."""
    from training.data import check_splits, mixture

    sources = mistakes.catch(lambda: [parse_source(text) for text in data]) or []
    datasets = open_datasets(mistakes, [source.uri for source in sources])
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
    from infra.addresses import folder_uri
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


def load_settings(stage: str, preset: str, config: str | None, overrides: list[str]) -> Any:
    """A stage's settings: the preset, what the YAML file changes of it, then key=value.

    Raises:
        UserError: There is no such stage or preset, or the settings are wrong.
    """
    from infra.config import load_config
    from training import presets

    mistakes = Mistakes()
    mistakes.catch(lambda: check_known("stage", stage, list(presets.STAGES)))
    mistakes.catch(lambda: check_known("--preset", preset, list(presets.NAMES)))
    mistakes.stop()
    start: Any = presets.preset(stage, preset)  # type: ignore[arg-type]
    settings = load_config(type(start), config, overrides, preset=start)
    if stage == "tokenizer" and settings.engine.checkpoint_activations:
        raise UserError("engine.checkpoint_activations: the tokenizer, which is small, keeps its activations; set it to false")
    return settings


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
    for name, folder in _starts(settings).items():
        if not (Path(folder) / "config.json").is_file():
            said.append(f"{name}: there is no model in {folder}; give the folder of a pretrained one: {name}=FOLDER")
    return said


def with_whole_paths(settings: Any) -> Any:
    """Settings whose folders are known from everywhere: Ray Train gives each rank a directory of its own, and an export may be asked for in another one."""
    from infra.addresses import folder_uri

    return settings.model_copy(update={name: folder_uri(folder) for name, folder in _starts(settings).items()})


def digests_of_starts(settings: Any) -> dict[str, str]:
    """What identifies the pretrained parts that a stage starts from, by name: settings beside weights, as a codec's scale is no weight of it.

    Raises:
        UserError: There are no weights in a folder.
    """
    from training.encode import revision_of

    return {name: revision_of(folder) for name, folder in _starts(settings).items()}


def _starts(settings: Any) -> dict[str, str]:
    """Folders of pretrained parts that settings name."""
    folders = {name: getattr(settings, name, None) for name in ("base", "codec")}
    return {name: folder for name, folder in folders.items() if folder}


def open_datasets(mistakes: Mistakes, uris: list[str]) -> list[Any]:
    """The datasets; those that cannot be opened are mistakes and left out."""
    from infra.addresses import folder_uri
    from training.data import Dataset

    opened = [mistakes.catch(partial(Dataset.open, folder_uri(uri))) for uri in uris]
    return [dataset for dataset in opened if dataset is not None]


def check_parts(mistakes: Mistakes, paths: dict[str, str], datasets: list[Any]) -> dict[str, str]:
    """The trained parts that a stage is given, checked; what identifies each of them, by name."""
    from training.encoded import EncodedCache
    from training.stage_factory import digest_of

    if "tokenizer" in paths:
        mistakes.catch(lambda: check_model("--tokenizer", paths["tokenizer"]))
    if "encoded" in paths:
        for dataset in datasets:
            mistakes.catch(partial(EncodedCache.open, paths["encoded"], dataset.digest))
    return {name: digest_of(folder, [dataset.digest for dataset in datasets]) for name, folder in paths.items()}


def check_model(option: str, folder: str) -> None:
    """Raises UserError where a folder holds no model."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{option}: there is no model in {folder} (no config.json)")


def check_known(option: str, given: str, known: list[str]) -> None:
    """Raises UserError where something is given that is not among what there is."""
    if given not in known:
        raise UserError(f"{option} {given}: expected one of {', '.join(known)}")
