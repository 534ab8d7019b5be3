"""What changed from one version to another."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.candidates import read_candidate_pieces
from data_pipeline.published import home_of, read_index, read_manifest, read_manifest_table


def diff_versions(first: str, second: str) -> dict[str, Any]:
    """Compares two published versions by their manifests.

    Returns:
        `samples` of both, keys `added`, `removed`, `moved` (to another split: (key, from, to)) and `changed` (same key, other values in a column that
        both have), counts by reason of the second's verdict for removed keys, and whether the bytes are equal.

    Raises:
        UserError: One of them is no published version.
    """
    digests = [read_index(folder)["digest"] for folder in (first, second)]
    ours, theirs = ({str(row["key"]): row for row in read_manifest(folder)} for folder in (first, second))
    removed = sorted(ours.keys() - theirs.keys())
    shared = sorted(ours.keys() & theirs.keys())
    mine, other = (next(iter(rows.values()), {}) for rows in (ours, theirs))  # an older version may have fewer columns: that is no change
    columns = [name for name in mine if name in other and not name.endswith(("_offset", "_length")) and name not in ("shard", "split")]
    reasons = Counter[str]()
    if removed:
        reasons = _reasons(second, removed)
    return {
        "samples": (len(ours), len(theirs)),
        "equal": digests[0] == digests[1],
        "added": sorted(theirs.keys() - ours.keys()),
        "removed": removed,
        "removed_because": dict(reasons),
        "moved": [(key, ours[key]["split"], theirs[key]["split"]) for key in shared if ours[key]["split"] != theirs[key]["split"]],
        "changed": [key for key in shared if any(ours[key].get(name) != theirs[key].get(name) for name in columns)],
    }


def _reasons(folder: str, keys: list[str]) -> Counter[str]:
    """Why these are not in a version, view or export: how often which reason."""
    index = read_index(folder)
    if "candidates" not in read_index(home_of(folder)):
        return Counter(
            {f"not in the export, which tells no reasons (its licences: {', '.join(index.get('licences') or ['all'])})": len(keys)}
        )
    wanted, verdicts = pa.array(keys, pa.string()), dict[str, str]()
    for piece in read_candidate_pieces(folder, ["key", "verdict"]):
        found = piece.filter(pc.is_in(piece["key"], wanted))
        verdicts.update(zip(found["key"].to_pylist(), found["verdict"].to_pylist(), strict=True))
    if "view_of" in index:
        held = set(read_manifest_table(home_of(folder))["key"].to_pylist())
        verdicts |= {key: f"left out by the view (where: {index['where']})" for key in keys if key in held}
    return Counter(verdicts.get(key, "no longer a candidate") for key in keys)
