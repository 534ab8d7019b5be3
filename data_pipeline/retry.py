"""Reopens failures: what failed for one reason is looked at again by the next build."""

from __future__ import annotations

import json

from data_pipeline.attempts import clear_attempts
from data_pipeline.observations import part_uri
from infra.errors import UserError
from infra.storage import delete, exists, join, read_bytes


def reopen(work: str, reason: str) -> list[str]:
    """Deletes parts and attempts of the sources that failed for a reason (`crash`, `hang`, `memory`, `decode`, `truncated`, `changed`, `missing`).

    Returns:
        Their source ids.

    Raises:
        UserError: No build is here, or nothing failed for that reason.
    """
    if not exists(join(work, "ledger.jsonl")):
        raise UserError(f"{work}: no build here (ledger.jsonl is missing)")
    failed = [row for row in map(json.loads, read_bytes(join(work, "ledger.jsonl")).splitlines()) if row["status"] == "failed"]
    mine = [row for row in failed if row["reason"] == reason]
    if not mine:
        known = ", ".join(sorted({row["reason"] for row in failed})) or "nothing failed"
        raise UserError(f"no source failed with {reason!r}; reasons in this build: {known}")
    clear_attempts(work)
    for row in mine:
        for part in row["parts"]:
            delete(part_uri(work, part))
    return [row["source_id"] for row in mine]
