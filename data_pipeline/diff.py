"""What changed from one version to another."""

from __future__ import annotations

from collections import Counter
from typing import Any

from data_pipeline.candidates import read_candidates
from data_pipeline.pack import read_index, read_manifest


def diff_versions(first: str, second: str) -> dict[str, Any]:
    """Compares two published versions by their manifests.

    Returns:
        `samples` of both, keys `added`, `removed`, `moved` (to another split: (key, from, to)) and `changed` (same key, other columns), counts by reason of the
        second's verdict for removed keys, and whether the bytes are equal.

    Raises:
        UserError: One of them is no published version.
    """
    digests = [read_index(folder)["digest"] for folder in (first, second)]
    ours, theirs = ({str(row["key"]): row for row in read_manifest(folder)} for folder in (first, second))
    removed = sorted(ours.keys() - theirs.keys())
    shared = sorted(ours.keys() & theirs.keys())
    columns = [
        name for name in next(iter(ours.values()), {}) if not name.endswith(("_offset", "_length")) and name not in ("shard", "split")
    ]
    reasons: Counter[str] = Counter()
    if removed:
        verdicts = {row["key"]: row["verdict"] for row in read_candidates(second)}
        reasons = Counter(verdicts.get(key, "no longer a candidate") for key in removed)
    return {
        "samples": (len(ours), len(theirs)),
        "equal": digests[0] == digests[1],
        "added": sorted(theirs.keys() - ours.keys()),
        "removed": removed,
        "removed_because": dict(reasons),
        "moved": [(key, ours[key]["split"], theirs[key]["split"]) for key in shared if ours[key]["split"] != theirs[key]["split"]],
        "changed": [key for key in shared if any(ours[key].get(name) != theirs[key].get(name) for name in columns)],
    }
