"""Reopens failures: what failed for one reason is looked at again by the next build."""

from __future__ import annotations

import pyarrow.compute as pc

from data_pipeline.attempts import clear_attempts
from data_pipeline.candidates import read_candidates_table
from data_pipeline.groups import delete_columns
from data_pipeline.ledger import read_ledger, reasons_of
from data_pipeline.observations import part_uri
from data_pipeline.published import read_index, write_index
from data_pipeline.versions import published_in
from infra.addresses import join
from infra.errors import UserError
from infra.storage import delete, list_files


def reopen(work: str, reason: str) -> list[str]:
    """Deletes parts and attempts of the sources that failed, or of which a piece failed, for a reason (`crash`, `hang`, `memory`, `decode`, `truncated`,
    `changed`, `missing`), and what was made of these parts. What is seen the next time lies under the same fingerprints, so that no version is taken to
    stand: the next build makes it again.

    `render` stands for pairs whose crops could not be cut: versions that lack such pairs stay published, and the next build makes them again.

    Returns:
        Their source ids.

    Raises:
        UserError: No build is here, or nothing failed for that reason.
    """
    failed = [row for row in read_ledger(work) if row["status"] == "failed"]
    if reason == "render":
        return _reopen_renders(work)
    mine = [row for row in failed if reason in reasons_of(row)]
    if not mine:
        known = ", ".join(sorted({told for row in failed for told in reasons_of(row)})) or "nothing failed"
        raise UserError(f"no source failed with {reason!r}; reasons in this build: {known}")
    clear_attempts(work)
    for folder in _whole_versions(work):  # first: a retry that is killed here is finished by another
        _reopen_version(folder)
    for uri in list_files(join(work, "pairs")):  # of whole bundles, by the names of their parts
        delete(uri)
    parts = {part for row in mine for part in row["parts"]}
    delete_columns(work, parts)
    for part in sorted(parts):
        delete(part_uri(work, part))
    return [row["source_id"] for row in mine]


def _whole_versions(work: str) -> list[str]:
    return [folder for folder in published_in(work) if "created_from" in read_index(folder)]  # a view or an export has none


def _reopen_version(folder: str) -> None:
    """Takes from a version's index what it was made from, so that it is not taken to stand; its samples stay as they are."""
    write_index(folder, read_index(folder) | {"created_from": "reopened"})


def _reopen_renders(work: str) -> list[str]:
    """Reopens each version with failed renders."""
    names: set[str] = set()
    for folder in _whole_versions(work):
        table = read_candidates_table(folder, ["verdict", "source_id", "target_id"])
        lost = table.filter(pc.equal(table["verdict"], "render failed"))
        if len(lost):
            names.update(lost["source_id"].to_pylist(), lost["target_id"].to_pylist())
            _reopen_version(folder)
    if not names:
        raise UserError("no pair of a version here is 'render failed'")
    return sorted(names)
