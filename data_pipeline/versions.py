"""A build's versions by their names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_pipeline.published import home_of, is_published, read_index
from infra.addresses import join
from infra.errors import UserError
from infra.lease import LEASE, lease
from infra.state import DERIVED, read_json
from infra.storage import commit, delete, exists, list_folders

SHOWN = f"shown.{LEASE}"
"""The lease on what is written of a version's people beside its samples: taken for a moment by who writes a label or a report, also while a build runs, and by
`forget` from its first to its last step."""

_EMPTY = "empty.json"
"""Of a build that accepted no pair: the version's name and the funnel, for who asks why."""


def published_in(work: str) -> list[str]:
    """Folders of all versions and views of a build."""
    return [folder for folder in list_folders(join(work, "versions")) if is_published(folder)]


def find_version(work: str, name: str) -> str:
    """The folder of a version or view.

    Raises:
        UserError: There is none of that name; those that there are are named, or what became of all that its build looked at.
    """
    folder = join(work, "versions", name)
    if not is_published(folder):
        if told := why_empty(work, name):
            raise UserError("\n".join([f"{work}: {told[0]}", *told[1:], "lato data why SOURCE tells of each source and frame."]))
        published = [folder.rsplit("/", 1)[-1] for folder in published_in(work)]
        known = f"Versions here: {', '.join(published)}" if published else "Nothing is published here; is it the folder of a build?"
        raise UserError(f"{work}: no build of a version {name!r} here. {known}")
    return folder


def keep_empty(work: str, name: str, funnel: list[dict[str, Any]]) -> None:
    """Keeps what became of all that a build looked at which accepted no pair."""
    commit(join(work, _EMPTY), json.dumps({"version": name, "funnel": funnel}, indent=1).encode())


def drop_empty(work: str) -> None:
    """Forgets it: its counts are of people who may be gone."""
    delete(join(work, _EMPTY))


def why_empty(work: str, name: str) -> list[str]:
    """Where a build that accepted no pair for a version lost all of them, as lines: its funnel, and what to do; none where it is not so."""
    kept = read_json(join(work, _EMPTY), ("version", "funnel"), DERIVED) if exists(join(work, _EMPTY)) else None
    if kept is None or kept["version"] != name:
        return []
    steps: dict[str, list[str]] = {}
    for row in kept["funnel"]:
        steps.setdefault(row["step"], []).append(f"{row['count']} {row['name']}")
    lines = [f"  {step}: {', '.join(counts)}" for step, counts in steps.items()]
    mend = "Loosen what refused most under `pairing`, or give other sources, and build again."
    return [f"the last build of {name} accepted no pair, so that nothing is published. What became of all it looked at:", *lines, mend]


def build_of(folder: str) -> str:
    """The folder of the build that a version is of, which holds its lease; of one that was copied elsewhere, the folder that it lies in."""
    beside_it = folder.rsplit("/", 1)[0]
    return beside_it.rsplit("/", 1)[0] if beside_it.endswith("/versions") else beside_it


def check_unchanged(folder: str, index: dict[str, Any]) -> None:
    """Raises UserError where a version has not the samples and candidates any more that its index named when it was read."""
    now = read_index(folder) if is_published(folder) else {}
    if any(now.get(name) != index.get(name) for name in ("digest", "candidates", "revision")):
        raise UserError(
            f"{folder} changed meanwhile: it was built anew, or something was taken out of it. What was made of it is not kept. Start again."
        )


@contextmanager
def showing(folder: str, index: dict[str, Any], purpose: str) -> Iterator[None]:
    """Holds what is written of a version's people while something that was made of it is written, so that nobody comes back who was just forgotten.

    Args:
        folder: The version's.
        index: Its index, as it was when what is written was made.
        purpose: The command.

    Raises:
        UserError: Somebody is just being forgotten, or the version is not the same any more.
    """
    with lease(build_of(folder), purpose, SHOWN):
        check_unchanged(folder, index)
        yield


def whole_version(work: str, name: str) -> str:
    """The folder of a version that is no view or export: with shards, verdicts and a funnel of its own.

    Raises:
        UserError: There is none of that name, or it is a view or an export.
    """
    folder = find_version(work, name)
    index = read_index(folder)
    if "view_of" in index:
        of = index["view_of"].rsplit("/", 1)[-1]
        raise UserError(
            f"{name} is a view of {of} (where: {index['where']}), and this is asked of whole versions: give {of}. "
            f"Views are read by lato data why, verify, diff and export, and by lato train: {folder}"
        )
    check_judged(folder)
    return folder


def check_judged(folder: str) -> None:
    """Raises UserError where a version, or the one a view is of, has no verdicts: an export, copied among a build's versions."""
    if "candidates" not in read_index(home_of(folder)):
        raise UserError(
            f"{folder} is an export, which has no verdicts: ask the version that it was copied of. Keep exports out of a build's folder"
        )
