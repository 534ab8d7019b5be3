"""What a run may change when it goes on, and how to fork it where it may not.

A run's folder holds what it was started with (`made_of.json`). Going on with other settings would mix two trainings in one curve, so it is refused, with
the keys that differ; a fork is a new run that starts at step 0 from the weights of the old one's newest checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.addresses import join
from infra.errors import UserError
from infra.storage import commit, exists, read_bytes
from training import checkpoint
from training.config import MAY_CHANGE

MADE_OF = "made_of.json"
FORK = "fork.json"


def differences(saved: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """`a.b.c` -> (saved, new) of every value that differs; None where one side has no such key."""
    old, now = dict(_flat(saved)), dict(_flat(new))
    return {key: (old.get(key), now.get(key)) for key in [*old, *(key for key in now if key not in old)] if old.get(key) != now.get(key)}


def forbidden(saved: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Those differences that a run that goes on may not have."""
    free = {f"config.engine.{name}" for name in MAY_CHANGE}
    return {key: values for key, values in differences(saved, new).items() if key not in free}


def check(folder: Path, made_of: Mapping[str, Any], checkpoints: str | None = None) -> None:
    """Raises UserError where a run stands in the folder and these settings may not go on with it; says which keys differ, and what to do.

    Args:
        folder: Of the run.
        made_of: What it is to go on with.
        checkpoints: Folder of its checkpoints, where it is not in the run's.
    """
    known = [uri for uri in _places(folder, checkpoints) if exists(uri)]
    if not known or not has_begun(folder, checkpoints):
        return
    wrong = forbidden(json.loads(read_bytes(known[0])), json.loads(json.dumps(_noted(made_of, checkpoints))))
    if not wrong:
        return
    lines = "\n".join(f"  {key}: {_shown(old)} there, {_shown(new)} now" for key, (old, new) in wrong.items())
    newest = checkpoint.newest(checkpoints or str(folder / "checkpoints"))
    fork = f"; or start a new run from its weights ({newest.rsplit('/', 1)[-1]}): --fork NAME" if newest else ""
    raise UserError(
        f"{folder}: a run stands here that was started with other settings, and these may not change when it goes on:\n{lines}\n"
        f"Give the settings it has{fork}; or begin anew with another --work-dir{' and another --checkpoints' if checkpoints else ''}."
    )


def _places(folder: Path, checkpoints: str | None) -> list[str]:
    """Where a run's settings are noted: in its folder, and beside checkpoints elsewhere, so that a run whose folder is lost goes on from them."""
    return [str(folder / MADE_OF), *([join(checkpoints, MADE_OF)] if checkpoints else [])]


def _noted(made_of: Mapping[str, Any], checkpoints: str | None) -> dict[str, Any]:
    return {**made_of, "checkpoints": checkpoints} if checkpoints else dict(made_of)


def has_begun(folder: Path, checkpoints: str | None) -> bool:
    """Whether a run in the folder has measured or kept anything: one that stopped before has nothing that other settings could mix with."""
    return (folder / "metrics.jsonl").is_file() or bool(checkpoint.markers(checkpoints or str(folder / "checkpoints")))


def prepare(folder: Path, made_of: Mapping[str, Any], checkpoints: str | None = None) -> None:
    """Makes a run's folder, or takes one that stands; what may change is noted.

    Raises:
        UserError: As `check`.
    """
    check(folder, made_of, checkpoints)
    folder.mkdir(parents=True, exist_ok=True)
    if not has_begun(folder, checkpoints):
        (folder / "state.json").unlink(missing_ok=True)  # an MLflow run keeps the first parameters that it is given
    for uri in _places(folder, checkpoints):
        commit(uri, json.dumps(_noted(made_of, checkpoints), indent=1).encode())


def fork(folder: Path, name: str, made_of: Mapping[str, Any], checkpoints: str | None = None) -> Path:
    """Makes a run that starts from the weights of another's newest checkpoint; one that stands already is taken as it is.

    Args:
        folder: Of the run that is forked.
        name: The new run's folder is called as the old one's, a hyphen, and this.
        made_of: What the new run is started with.
        checkpoints: Folder of the old run's checkpoints, where it is not in the run's; the new run's are beside it, under its own name.

    Returns:
        The new run's folder.

    Raises:
        UserError: There is nothing to start from; the name is none; or the fork stands and was started with yet other settings.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"--fork {name!r}: expected a name of letters, digits, - and _")
    new = folder.parent / f"{folder.name}-{name}"
    if not (new / FORK).is_file():
        known = checkpoint.newest(checkpoints or str(folder / "checkpoints"))
        if known is None:
            raise UserError(f"--fork {name}: {folder} has no complete checkpoint to start from")
        new.mkdir(parents=True, exist_ok=True)
        commit(str(new / FORK), json.dumps({"checkpoint": known}).encode())
    prepare(new, made_of, checkpoints and join(checkpoints.rsplit("/", 1)[0], new.name))
    return new


def start_weights(folder: Path) -> str | None:
    """The checkpoint whose weights a run without one of its own starts from; None for a run that is no fork.

    Raises:
        UserError: That checkpoint is gone or torn.
    """
    if not (folder / FORK).is_file():
        return None
    start = str(json.loads((folder / FORK).read_text())["checkpoint"])
    marker = checkpoint.markers(start.rsplit("/", 1)[0]).get(start)
    if marker is None or not checkpoint.is_whole(start, marker):
        raise UserError(
            f"{folder}: this run is a fork of {start}, {'which is gone' if marker is None else 'files of which are missing or changed'}; "
            "copy it back, or fork anew under another name"
        )
    return start


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
            yield from _flat({str(place): inner for place, inner in enumerate(value)}, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
