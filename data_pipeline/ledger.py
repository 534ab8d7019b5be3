"""The ledger: what became of every source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from infra.addresses import join
from infra.errors import UserError
from infra.state import DERIVED, read_rows
from infra.storage import exists


def warn_of_count(pieces: list[dict[str, Any]]) -> list[str]:
    """A warning where a video's container states another number of frames than its pieces had together: no verdict, some writers count otherwise.

    Args:
        pieces: Ledger rows of the parts of a source that was looked at whole.
    """
    if not all(row.get("stated_frames") and row["status"] != "failed" for row in pieces):
        return []
    stated, decoded = pieces[0]["stated_frames"], sum(row["decoded_frames"] for row in pieces)
    return [] if stated == decoded else [f"its container states {stated} frames, it has {decoded}"]


def unread_row(source_id: str, reason: str, message: str, status: str = "failed") -> dict[str, Any]:
    """The row of a source that cannot be read at all, or (rejected) must not be: nothing of it has a part."""
    return {"source_id": source_id, "status": status, "reason": reason, "message": message, "parts": []}


def merge_failures(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """What the row of a source says of pieces that failed for different reasons: the first is its `reason`, all are its `reasons`; nothing where there is
    one reason."""
    told = {row["reason"]: row["message"] for row in reversed(pieces) if row["status"] == "failed"}
    if len(told) < 2:
        return {}
    return {"reasons": sorted(told), "message": "; ".join(f"{reason}: {told[reason]}" for reason in sorted(told))}


def reasons_of(row: dict[str, Any]) -> set[str]:
    """All reasons for which a source, or pieces of it, failed or were rejected."""
    return set(row.get("reasons") or [row.get("reason")]) - {None}


_GONE = ("changed", "missing")
"""Failures after which there is nothing to cut crops from: the file is not what was looked at."""


def read_ledger(work: str) -> list[dict[str, Any]]:
    """A build's rows as it left them.

    Raises:
        UserError: No build is here, or the ledger is damaged.
    """
    uri = join(work, "ledger.jsonl")
    if not exists(uri):
        raise UserError(f"{work}: no build here (ledger.jsonl is missing)")
    return read_rows(uri, ("source_id", "status", "parts"), DERIVED)


@dataclass(frozen=True)
class Ledger:
    """One row a source: `source_id`, `status` (ok | rejected | failed | pending), `reason`, `message`, counts, `not_chosen` (why other faces are no
    representatives -> how many), `parts`, `warnings` where there are any, and `reasons` where pieces failed for several."""

    rows: list[dict[str, Any]]

    def with_status(self, status: str) -> list[dict[str, Any]]:
        """The rows of one status."""
        return [row for row in self.rows if row["status"] == status]

    def usable(self) -> list[dict[str, Any]]:
        """The rows whose observations go on: ok, and those failed of which something was seen before a tear, or in other segments."""
        return [row for row in self.rows if row["status"] == "ok" or (row.get("faces") and reasons_of(row).isdisjoint(_GONE))]

    def counts(self, copies: Collection[str] = ()) -> dict[str, int]:
        """How many sources ended how: `ok`, `rejected: no face`, `failed: truncated` ...; `copies` are told as near-duplicates, whatever else they are."""
        names = (
            row["status"] if not row.get("reason") else f"{row['status']}: {row['reason']}"
            for row in self.rows
            if row["source_id"] not in copies
        )
        counts = Counter(names) + Counter({"rejected: near-duplicate": len(copies)})
        return dict(sorted(counts.items()))

    def total(self, column: str) -> int:
        """Sum of a count over all sources."""
        return sum(int(row.get(column) or 0) for row in self.rows)

    def not_chosen(self) -> dict[str, int]:
        """How many faces went no further, by why; with the representatives they are all faces."""
        reasons: Counter[str] = Counter()
        for row in self.rows:
            reasons.update(row.get("not_chosen", {}))
        return dict(sorted(reasons.items()))
