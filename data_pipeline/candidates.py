"""The candidates table: every pair that was judged, with its scores and its verdict, beside the version that came of it."""

from __future__ import annotations

import io
from typing import Any

import pyarrow.parquet as pq

from data_pipeline.pack import CANDIDATES, encode_table, home_of, read_index
from data_pipeline.pairing import Candidate, PairingConfig
from data_pipeline.render import crop_name
from infra.storage import commit, join, read_bytes

SCORES = ("similarity", "sharpness", "noise", "clipped", "blockiness", "letterbox", "upscale", "padding", "roll")
_END = ("frame", "track", "pts", "yaw", "pitch", "roll", "expression", "expression_intensity", "skin_ita", "face_px")

LIMITS: dict[str, tuple[str, str, int]] = {
    "identity": ("similarity", "min_similarity", 1),
    "blurred": ("sharpness", "min_sharpness", 1),
    "noisy": ("noise", "max_noise", -1),
    "badly exposed": ("clipped", "max_clipped", -1),
    "blocky": ("blockiness", "max_blockiness", -1),
    "letterboxed": ("letterbox", "max_letterbox", -1),
    "too small": ("upscale", "max_upscale", -1),
    "cut off": ("padding", "max_padding", -1),
    "tilted": ("roll", "max_abs_roll", -1),
}
"""Verdict -> its score, the threshold's name in `PairingConfig`, and 1 where the score must reach it, -1 where it must stay under."""


def write_candidates(candidates: list[Candidate], splits: dict[str, str], licences: dict[str, str], folder: str) -> None:
    """Commits the table of a version.

    Args:
        candidates: All that were judged.
        splits: Key -> split of those that became samples.
        licences: Source id -> licence.
        folder: The version's.
    """
    rows = [_row(c, splits.get(c.key), licences[c.source["source_id"]]) for c in candidates]
    commit(join(folder, CANDIDATES), encode_table(rows))


def read_candidates(folder: str) -> list[dict[str, Any]]:
    """Rows of a version's table; of a view, those of its version. An export has none."""
    home = home_of(folder)
    name = read_index(home).get("candidates")
    return [] if name is None else pq.read_table(io.BytesIO(read_bytes(join(home, name)))).to_pylist()


def explain(row: dict[str, Any], config: PairingConfig) -> list[tuple[str, str, str, str]]:
    """Every score of a candidate beside its threshold: (filter, score, threshold, passed or failed)."""
    lines = []
    for verdict, (score, name, sign) in LIMITS.items():
        limit = getattr(config, name)
        passed = row[score] * sign >= limit * sign
        if verdict == "identity" and row["kind"] == "synthetic":
            lines.append((verdict, f"{row[score]:.3g}", "declared", "not applied"))
        else:
            lines.append((verdict, f"{row[score]:.3g}", f"{'>=' if sign > 0 else '<='} {limit:g}", "passed" if passed else "failed"))
    return lines


def _row(candidate: Candidate, split: str | None, licence: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": candidate.key,
        "source_id": candidate.source["source_id"],
        "target_id": candidate.target["source_id"],
        "kind": candidate.source["kind"],
        "person": candidate.person,
        "scope": candidate.scope,
        "licence": licence,
        "verdict": candidate.verdict,
        "edit": None if candidate.edit is None else str(candidate.edit),
        "edit_kind": None if candidate.edit is None else candidate.edit.kind,
        "split": split,
        "crop_source": list(candidate.crops[0]),
        "crop_target": list(candidate.crops[1]),
        "rendered": [crop_name(row, crop) for row, crop in zip((candidate.source, candidate.target), candidate.crops, strict=True)],
    }
    row |= {name: float(candidate.scores[name]) for name in SCORES}
    for side, end in (("from", candidate.source), ("to", candidate.target)):
        row |= {f"{side}_{name}": end[name] for name in _END}
    return row
