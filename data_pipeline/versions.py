"""A build's versions by their names."""

from __future__ import annotations

from data_pipeline.pack import home_of, read_index
from infra.errors import UserError
from infra.storage import exists, join, list_folders


def find_version(work: str, name: str) -> str:
    """The folder of a version or view.

    Raises:
        UserError: There is none of that name; those that there are are named.
    """
    folder = join(work, "versions", name)
    if not exists(join(folder, "index.json")):
        published = [uri.rsplit("/", 1)[-1] for uri in list_folders(join(work, "versions")) if exists(join(uri, "index.json"))]
        known = f"Versions here: {', '.join(published)}" if published else "Nothing is published here; is it the folder of a build?"
        raise UserError(f"{work}: no build of a version {name!r} here. {known}")
    return folder


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
