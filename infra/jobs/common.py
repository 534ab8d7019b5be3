"""What the commands share: reading a config, holding the work folder, finding builds and models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from infra import assets
from infra.addresses import folder_uri, join
from infra.config import Config, dump_config, load_config
from infra.errors import UserError
from infra.lease import lease
from infra.storage import commit, exists

C = TypeVar("C", bound=Config)


@contextmanager
def open_work(model: type[C], config_path: str | None, overrides: list[str], work_dir: str, purpose: str) -> Iterator[tuple[C, str]]:
    """Checks the config, takes the work folder, writes the resolved config there; yields config and the folder's absolute path."""
    config = load_config(model, config_path, overrides)
    with hold_work(config, work_dir, purpose) as work:
        yield config, work


@contextmanager
def hold_work(config: Config, work_dir: str, purpose: str) -> Iterator[str]:
    """Takes the work folder for a config that was checked, writes it there; yields the folder's absolute path."""
    work = folder_uri(work_dir)
    with lease(work, purpose):
        commit(join(work, "config.yaml"), dump_config(config).encode())
        yield work


def built_folder(work_dir: str) -> str:
    """The folder of a build that is there, for commands that make none.

    Raises:
        UserError: There is no build.
    """
    work = folder_uri(work_dir)
    if not exists(join(work, "worklist.parquet")):
        raise UserError(f"{work}: no build here (worklist.parquet is missing). Give the folder of a build: --work-dir")
    return work


def perception_models() -> Path:
    """The folder with the perception models.

    Raises:
        UserError: One of them is missing.
    """
    missing = [name for name in ("yunet", "sface", "face_landmarker", "fr_landmark", "fer", "text_detector") if assets.verify(name) != "ok"]
    if missing:
        raise UserError(f"perception models are missing: {', '.join(missing)}. Fetch them: lato assets fetch")
    return assets.folder()
