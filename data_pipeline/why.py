"""Why a source, a frame or a sample is in a dataset or not: its whole path, every score beside its threshold."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from data_pipeline.candidates import explain, read_candidates
from data_pipeline.judge import PairingConfig
from infra.config import load_config
from infra.errors import UserError
from infra.storage import exists, join, read_bytes

_SHOWN = 12


def why(what: str, work: str, version: str = "v1") -> list[str]:
    """The path of a sample's key, a source id, or `source_id@seconds`, as lines of text.

    Args:
        what: Which.
        work: The build's folder.
        version: Name of the version.

    Raises:
        UserError: Nothing of that name is known here.
    """
    folder = join(work, "versions", version)
    if not exists(join(work, "ledger.jsonl")) or not exists(join(folder, "index.json")):
        raise UserError(f"{work}: no build of a version {version!r} here")
    rows = read_candidates(folder)
    config = pairing_config(work)
    source_id, _, second = what.partition("@")
    by_key = [row for row in rows if row["key"] == what]
    if by_key:
        return _explain_pair(by_key[0], config)
    ledger = {row["source_id"]: row for row in map(json.loads, read_bytes(join(work, "ledger.jsonl")).splitlines())}
    if source_id not in ledger:
        raise UserError(
            f"{what}: neither a sample's key nor a source of this build. {len(ledger)} sources, {len(rows)} candidates are known."
        )
    lines = _explain_source(ledger[source_id])
    mine = [row for row in rows if source_id in (row["source_id"], row["target_id"])]
    if second:
        mine = [row for row in mine if min(abs(row["from_pts"] - float(second)), abs(row["to_pts"] - float(second))) < 0.11]
        lines.append(f"at {second} s: {len(mine)} candidate pairs start or end there")
    verdicts = Counter(row["verdict"] for row in mine)
    lines += [f"{len(mine)} candidate pairs"] + [f"  {count:>6}  {name}" for name, count in verdicts.most_common()]
    for row in sorted(mine, key=lambda row: (row["verdict"] != "accepted", row["key"]))[:_SHOWN]:
        lines.append(f"  {row['key']}  {row['from_pts']:.2f} -> {row['to_pts']:.2f} s  {row['edit'] or '-'}  {row['verdict']}")
    if len(mine) > _SHOWN:
        lines.append(f"  and {len(mine) - _SHOWN} more")
    return lines


def pairing_config(work: str) -> PairingConfig:
    """The thresholds of a build, from the config that it left."""
    from data_pipeline.build import DataConfig

    return load_config(DataConfig, join(work, "config.yaml"), []).pairing if exists(join(work, "config.yaml")) else PairingConfig()


def _explain_source(row: dict[str, Any]) -> list[str]:
    said = f"source {row['source_id']}: {row['status']}"
    if row.get("reason"):
        said += f" ({row['reason']}): {row.get('message')}"
    counts = ", ".join(f"{row[name]} {name}" for name in ("frames", "faces", "tracks", "representatives") if row.get(name) is not None)
    return [said, *([counts] if counts else [])]


def _explain_pair(row: dict[str, Any], config: PairingConfig) -> list[str]:
    lines = [f"{row['key']}: {row['verdict']}" + (f", in {row['split']}" if row["split"] else "")]
    lines.append(f"person {row['person']}, scope {row['scope']}, edit {row['edit'] or 'none of ours'}")
    for side in ("from", "to"):
        source = row["source_id" if side == "from" else "target_id"]
        pose = ", ".join(f"{axis} {row[f'{side}_{axis}']:.0f}" for axis in ("yaw", "pitch", "roll"))
        face = f"{row[f'{side}_expression']} {row[f'{side}_expression_intensity']:.2f}"
        lines.append(
            f"{side} {source} track {row[f'{side}_track']} frame {row[f'{side}_frame']} ({row[f'{side}_pts']:.2f} s): {face}, {pose}"
        )
    return lines + [f"  {name:<14} {score:>8}  {limit:<10} {passed}" for name, score, limit, passed in explain(row, config)]
