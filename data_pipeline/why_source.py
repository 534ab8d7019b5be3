"""What became of a source, and of the faces in a frame of it: of `why`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow.compute as pc

from data_pipeline.copies import read_copies
from data_pipeline.observations import read_part
from data_pipeline.published import home_of, read_manifest_table, read_pair
from data_pipeline.rules import LIMITS, PairingConfig, passes
from data_pipeline.tracks import why_not_chosen
from infra.errors import UserError

Row = dict[str, Any]
_QUALITY = ("sharpness", "noise", "clipped", "blockiness", "letterbox", "face_px")
_LIMIT_OF = {score: (name, sign) for score, name, sign in LIMITS.values()}
_FACE = (
    "frame",
    "pts",
    "track",
    "detection_score",
    "expression",
    "expression_intensity",
    "declared",
    "yaw",
    "pitch",
    "roll",
    "representative",
    *_QUALITY,
)


def explain_source(row: Row) -> list[str]:
    """What its row of the ledger says: status, licence, counts, warnings, and the models that looked at it."""
    said = f"source {row['source_id']}: {row['status']}"
    if row.get("reason"):
        said += f" ({row['reason']}): {row.get('message')}"
    counts = ", ".join(f"{row[name]} {name}" for name in ("frames", "faces", "tracks", "representatives") if row.get(name) is not None)
    licence = [f"licence {row['licence']}"] if row.get("licence") else []
    chosen = [f"  {count} no representatives: {reason}" for reason, count in row.get("not_chosen", {}).items()]
    return [said, *licence, *([counts] if counts else []), *chosen, *(f"warning: {text}" for text in row.get("warnings", ()))]


def explain_models(models: dict[str, str]) -> list[str]:
    """A line a model: its role, or group and file, and its sha256."""
    return [f"  model {name:<12} sha256 {digest[:16]}" for name, digest in sorted(models.items())]


def explain_samples(row: Row, folder: str) -> list[str]:
    """What a version has of a source: what it is a copy of, its split, how many samples in which shards, and by which models they were measured.

    Args:
        row: Of the ledger.
        folder: The version's, or a view's.
    """
    name, home = row["source_id"], home_of(folder)
    lines = []
    if copy := read_copies(home).get(name):
        lines.append(
            f"not used (near-duplicate): it shows the clip of {copy.of}: faces move alike in {copy.moments} of {copy.out_of} moments of the shorter one, "
            f"{abs(copy.offset):.1f} s {'later' if copy.offset >= 0 else 'earlier'} here"
        )
    table = read_manifest_table(home)
    ends = [pc.equal(table[end], name) for end in ("source_id", "target_id") if end in table.column_names]  # older ones name the first
    mine = table.filter(pc.or_kleene(*ends) if len(ends) > 1 else ends[0]).to_pylist()
    shards: dict[str, Counter[str]] = {}
    for sample in mine:
        shards.setdefault(sample["split"], Counter())[sample["shard"]] += 1
    for split, counts in sorted(shards.items()):
        there = ", ".join(f"{count} in {shard}" for shard, count in sorted(counts.items()))
        lines.append(f"in {split}, {counts.total()} samples: {there}")
    models = read_pair(home, mine[0]).meta.provenance.models if mine else row.get("models", {})
    return [*lines, *([] if mine else ["no samples, and so in no split"]), *explain_models(models)]


def seconds(text: str) -> float:
    """The time in `source@time`.

    Raises:
        UserError: It is none.
    """
    try:
        second = float(text)
        if 0 <= second < math.inf:
            return second
    except ValueError:
        pass  # told below
    raise UserError(f"@{text}: expected seconds after the @, 0 or more, for example clip@12.4")


def faces_at(row: Row, second: float, work: str) -> list[Row]:
    """The faces in the frame that was looked at nearest to a time, each with its part and its number there."""
    found = []
    for part in row["parts"]:
        table = read_part(work, part).select(list(_FACE))
        rows = table.to_pylist()
        reasons = why_not_chosen(rows)
        found += [face | {"part": part, "row": number, "not_chosen": reasons[number]} for number, face in enumerate(rows)]
    nearest = min((abs(face["pts"] - second) for face in found), default=0.0)
    return [face for face in found if abs(face["pts"] - second) == nearest]


def explain_faces(faces: list[Row], second: str, config: PairingConfig | None) -> list[str]:
    """What was read of each face, and whether it went on to pairing.

    Args:
        faces: Of one frame.
        second: The time that was asked for.
        config: Thresholds, of which those that one face alone can miss stand beside its scores; None where no version says by which it is judged.
    """
    if not faces:
        return [f"at {second} s: no face in any frame of this source"]
    lines = [f"frame {faces[0]['frame']} ({faces[0]['pts']:.2f} s) is the nearest to {second} s in which a face was seen"]
    for face in faces:
        pose = ", ".join(f"{axis} {face[axis]:.0f}" for axis in ("yaw", "pitch"))
        roll = f"roll {face['roll']:.0f}{_limit('tilt', abs(face['roll']), config)}"
        drawn = face["declared"] or face["expression"] == "neutral"  # how strongly it shows is asked of neither
        shown = "" if drawn else _limit("expression_strength", face["expression_intensity"], config)
        lines.append(
            f"  track {face['track']}: detected {face['detection_score']:.2f}, {face['expression']} {face['expression_intensity']:.2f}{shown}, {pose}, {roll}"
        )
        if face["representative"]:
            scores = ", ".join(f"{name} {face[name]:.3g}{_limit(name, face[name], config)}" for name in _QUALITY)
            lines.append(f"    a representative of its track: {scores}")
        else:
            lines.append(f"    not a representative: {face['not_chosen']}")
    return lines


def _limit(score: str, value: float, config: PairingConfig | None) -> str:
    """What a pair's filter would ask of a face, and whether this one fails; nothing where none asks."""
    if config is None or score not in _LIMIT_OF:
        return ""
    name, sign = _LIMIT_OF[score]
    limit = getattr(config, name)
    return f" ({'>=' if sign > 0 else '<='} {limit:g}{'' if passes(value, limit, sign) else ': failed'})"
