"""Sources of one content under different names: one is used, the others are rejected(duplicate), and no pixel of theirs is read.

Which one stays depends on names alone, and on what a version that is extended has: not on workers, nor on the order of the work list.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from data_pipeline.ledger import Ledger
from data_pipeline.observations import committed_fingerprints, read_ledger_row, read_made
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.errors import UserError
from infra.state import DERIVED, read_rows
from infra.storage import sha256_bytes

_DECLARED = ("identity", "licence", "consent", "split")
"""What must be said alike of equal contents: a row that is not used would take with it what it alone says."""
_EMPTY = sha256_bytes(b"")


def find_duplicates(items: list[WorkItem], contents: Mapping[str, str | None], published: Collection[str] = frozenset()) -> dict[str, str]:
    """Finds sources that show the same: equal content, kind, span and box. Empty files do not: each is a failure of its own.

    Args:
        items: The work list.
        contents: Source id -> digest of its content; None where it cannot be read.
        published: Sources with samples in the version that is extended, or of which samples were taken out: these stay, whatever their names.

    Returns:
        Source id -> the source that is used in its place: one that is published, or else the first by name.

    Raises:
        UserError: Something else is declared of a duplicate than of the source that stays; all of them, a line each.
    """
    same: dict[Any, list[WorkItem]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.source_id):
        content = contents[item.source_id]
        if content and content != _EMPTY:
            same[content, item.kind, item.start or 0.0, item.end, item.box].append(item)
    found: dict[str, str] = {}
    mistakes = []
    for work in same.values():
        first = next((item for item in work if item.source_id in published), work[0])
        others = [item for item in work if item.source_id != first.source_id and item.source_id not in published]
        found |= {item.source_id: first.source_id for item in others}
        said = {name: {str(getattr(item, name)) for item in (first, *others)} for name in _DECLARED}
        differs = [f"{name} {' or '.join(sorted(values))}" for name, values in said.items() if len(values) > 1]
        if differs:
            mistakes.append(f"  {', '.join(item.source_id for item in (first, *others))}: {', '.join(differs)}")
    if mistakes:
        raise UserError(
            "sources have the same content, and the work list says different things of them. Say one thing, or leave all but one out:\n"
            + "\n".join(mistakes)
        )
    return found


def duplicate_row(source_id: str, first: str) -> dict[str, Any]:
    """The ledger row of a source that is not used because `first` has its content."""
    message = f"same content as {first}"
    return {"source_id": source_id, "status": "rejected", "reason": "duplicate", "message": message, "same_as": first, "parts": []}


def refuse_renamed(ledger: Ledger, items: Sequence[WorkItem], published: Collection[str], work: str) -> Ledger:
    """A ledger in which sources are duplicates that show what an extended version had under a name that nothing is read of any more (it is listed no longer, or
    its file is gone): samples that were taken out would come back. They have its content, kind and box, and their span meets its own. So are sets that were made
    from them, or from other duplicates of what that version had.

    Args:
        ledger: Of all items.
        items: The work list.
        published: As in `find_duplicates`.
        work: The build's folder, whose parts say what was shown under which name.
    """
    contents = {row["source_id"]: row["content"] for row in ledger.rows if "content" in row}
    unread = set(published) - contents.keys()
    shown: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for part in sorted(committed_fingerprints(work)) if unread else ():
        if read_ledger_row(work, part)["source_id"] in unread:
            of = read_made(work, part)["of"]
            shown[of["content"]].append(of["item"])
    found = {row["source_id"]: row["same_as"] for row in ledger.rows if row.get("same_as") in published}
    for item in items:
        for known in shown.get(contents.get(item.source_id, ""), ()):
            if item.source_id not in published and _shows(item, known):
                found[item.source_id] = known["source_id"]
    made = {item.source_id: item.attributes.get("made_from", "") for item in items if item.source_id not in published}
    found |= {name: found[origin] for name, origin in made.items() if origin in found}
    return Ledger([duplicate_row(row["source_id"], found[row["source_id"]]) if row["source_id"] in found else row for row in ledger.rows])


def _shows(item: WorkItem, known: dict[str, Any]) -> bool:
    """Whether a source of some content shows what a segment with that content showed."""
    alike = item.kind == known["kind"] and (item.box and list(item.box)) == known["box"]
    return alike and (item.start or 0.0) < (known["end"] or math.inf) and known["start"] < (item.end or math.inf)


def duplicates_of(work: str, names: Iterable[str]) -> set[str]:
    """Sources with the content of some, whichever of them was used, as the last build left it; without these themselves."""
    rows = read_rows(join(work, "ledger.jsonl"), ("source_id",), DERIVED)
    used = {row["source_id"]: row.get("same_as") or row["source_id"] for row in rows}
    given = set(names)
    wanted = given | {used.get(name, name) for name in given}
    return wanted.union(name for name, first in used.items() if first in wanted) - given
