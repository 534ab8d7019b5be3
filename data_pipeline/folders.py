"""Work lists of folders: which files of a folder are sources, and which are not and are told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from data_pipeline.worklist import IMAGE_SUFFIXES, VIDEO_SUFFIXES, WorkItem, check_items, id_of, is_utf8, item_for
from infra.addresses import filesystem_of, folder_uri, is_local, join
from infra.console import say
from infra.errors import UserError


def items_from_folder(folder: str, work: str | None = None, **columns: Any) -> list[WorkItem]:
    """Every video and image in a folder and below it, on disk or in an object store; ids are made from paths within it. Hidden and other
    files are passed over, and told.

    Args:
        folder: Which.
        work: The build's own folder: where that lies in it, the pictures that builds made are no sources.
        columns: The same of all.

    Raises:
        UserError: There is no such folder, or nothing usable in it; its name is not UTF-8; or it is the build's own.
    """
    folder = folder_uri(folder)
    filesystem, root = filesystem_of(folder)
    if not filesystem.isdir(root):
        raise UserError(f"{folder}: there is no such folder. Give a folder with videos or images.")
    inside = sorted(str(path).removeprefix(root).lstrip("/") for path in filesystem.find(root))
    own = _place_in(folder, work) if work else None
    if own == ".":
        raise UserError(f"{folder}: this is the build's own folder, and what builds make lies in it. Give a folder elsewhere: --work-dir")
    inside = [name for name in inside if own is None or not name.startswith(f"{own}/")]
    shown = [name for name in inside if not any(part.startswith(".") for part in name.split("/"))]
    known_kinds = [name for name in shown if name.lower().endswith(VIDEO_SUFFIXES + IMAGE_SUFFIXES)]
    files = with_names_in_utf8(folder, known_kinds)
    _tell_others(folder, sorted(set(shown) - set(known_kinds)), len(inside) - len(shown))
    if not files:
        known = " ".join(VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        raise UserError(f"{folder}: no videos or images in it. Looked for {known}.")
    named = [(join(folder, name), id_of(name.rsplit(".", 1)[0])) for name in files]
    return check_items([item_for(uri, **({"source_id": source_id} | columns)) for uri, source_id in named], folder)


def with_names_in_utf8(folder: str, names: list[str]) -> list[str]:
    """Those names of files in a folder that a work list can hold; tells the others.

    Raises:
        UserError: The folder's own name is none of these.
    """
    if not is_utf8(folder):
        raise UserError(f"{_spelled(folder)}: this folder's name is not UTF-8, and a work list cannot hold it. Rename it.")
    others = [_spelled(name) for name in names if not is_utf8(name)]
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        say(
            f"  warning: {folder}: {len(others)} files are passed over, as their names are not UTF-8 ({shown}). Rename them to have them used."
        )
    return [name for name in names if is_utf8(name)]


def _spelled(name: str) -> str:
    """A file's name as it can be printed."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _place_in(folder: str, other: str) -> str | None:
    """Where in a folder another lies, `.` where it is the same; None where it lies elsewhere."""
    outer, inner = (os.path.realpath(uri) if is_local(uri) else uri for uri in (folder_uri(folder), folder_uri(other)))
    if inner == outer:
        return "."
    return inner.removeprefix(f"{outer}/") if inner.startswith(f"{outer}/") else None


def _tell_others(folder: str, others: list[str], hidden: int) -> None:
    """Says which files are no sources, by their suffix with one as an example."""
    kinds: dict[str, list[str]] = {}
    for name in others:
        kinds.setdefault(Path(name).suffix.lower() or "without a suffix", []).append(name)
    told = [
        f"{len(names)} {_spelled(kind)} ({_spelled(names[0])}{', ...' if len(names) > 1 else ''})" for kind, names in sorted(kinds.items())
    ]
    told += [f"{hidden} hidden"] if hidden else []
    if told:
        say(
            f"  warning: {folder}: {len(others) + hidden} files are passed over, as neither videos nor images that can be read: {', '.join(told)}"
        )
