"""What changed from one version to another."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from data_pipeline.sheet import read_manifest
from infra.errors import UserError
from infra.storage import exists, join, read_bytes


def diff_versions(first: str, second: str) -> dict[str, Any]:
    """Compares two published versions by their manifests.

    Returns:
        `samples` of both, keys `added`, `removed`, `moved` (to another split: (key, from, to)) and `changed` (same key, other columns), counts by reason of the
        second's verdict for removed keys where its candidates are known, and whether the bytes are equal.

    Raises:
        UserError: One of them is no published version.
    """
    for folder in (first, second):
        if not exists(join(folder, "index.json")):
            raise UserError(f"{folder}: no published version here (there is no index.json)")
    ours, theirs = ({str(row["key"]): row for row in read_manifest(folder)} for folder in (first, second))
    removed = sorted(ours.keys() - theirs.keys())
    shared = sorted(ours.keys() & theirs.keys())
    columns = [
        name for name in next(iter(ours.values()), {}) if not name.endswith(("_offset", "_length")) and name not in ("shard", "split")
    ]
    reasons: Counter[str] = Counter()
    if removed and exists(join(second, "candidates.parquet")):
        from data_pipeline.candidates import read_candidates

        verdicts = {row["key"]: row["verdict"] for row in read_candidates(second)}
        reasons = Counter(verdicts.get(key, "no longer a candidate") for key in removed)
    digests = [json.loads(read_bytes(join(folder, "index.json")))["digest"] for folder in (first, second)]
    return {
        "samples": (len(ours), len(theirs)),
        "equal": digests[0] == digests[1],
        "added": sorted(theirs.keys() - ours.keys()),
        "removed": removed,
        "removed_because": dict(reasons),
        "moved": [(key, ours[key]["split"], theirs[key]["split"]) for key in shared if ours[key]["split"] != theirs[key]["split"]],
        "changed": [key for key in shared if any(ours[key].get(name) != theirs[key].get(name) for name in columns)],
    }
