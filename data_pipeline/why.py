"""Why a source, a frame or a sample is in a dataset or not: its whole path, every score beside its threshold."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow.compute as pc

from data_pipeline.candidates import find_candidates, read_candidate_pieces
from data_pipeline.copies import read_copies
from data_pipeline.ledger import read_ledger
from data_pipeline.observations import read_part
from data_pipeline.published import home_of, is_published, read_manifest_table, read_pair
from data_pipeline.rules import ASKED, LIMITS, SETTINGS, PairingConfig, passes
from data_pipeline.tracks import why_not_chosen
from data_pipeline.versions import check_judged, find_version, why_empty
from infra.addresses import join
from infra.errors import UserError
from infra.state import PUBLISHED, read_json, reading
from infra.storage import exists

_SHOWN = 12
_QUALITY = ("sharpness", "noise", "clipped", "blockiness", "letterbox", "face_px")
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


def why(what: str, work: str, version: str = "v1") -> list[str]:
    """The path of a sample's key, a source id, or `source_id@seconds`, as lines of text.

    Args:
        what: Which.
        work: The build's folder.
        version: Name of the version.

    Raises:
        UserError: Nothing of that name is known here.
    """
    source_id, _, second = what.partition("@")
    if not is_published(join(work, "versions", version)) and (lines := _explain_unpaired(source_id, second, work)):
        return lines + (why_empty(work, version) or [f"no version {version!r} is published here: of its pairs nothing is known"])
    folder = find_version(work, version)
    check_judged(folder)
    by_key = find_candidates(folder, ["key"], lambda piece: pc.equal(piece["key"], what))
    if by_key:
        return _explain_pair(by_key[0], pairing_config(folder), folder)
    ledger = {row["source_id"]: row for row in read_ledger(work)}
    if source_id not in ledger:
        known = sum(map(len, read_candidate_pieces(folder, ["key"])))
        raise UserError(f"{what}: neither a sample's key nor a source of this build. {len(ledger)} sources, {known} candidates are known.")
    lines = _explain_source(ledger[source_id])
    copy = read_copies(home_of(folder)).get(source_id)
    if copy:
        lines.append(
            f"not used (near-duplicate): it shows the clip of {copy.of}: faces move alike in {copy.moments} of {copy.out_of} moments of the shorter one, "
            f"{abs(copy.offset):.1f} s {'later' if copy.offset >= 0 else 'earlier'} here"
        )
    ends = ["source_id", "target_id"]
    mine = find_candidates(folder, ends, lambda piece: pc.or_(*(pc.equal(piece[end], source_id) for end in ends)))
    if second:
        faces = _faces_at(ledger[source_id], _seconds(second), work)
        lines += _explain_faces(faces, second)
        seen = {(face["part"], face["row"]) for face in faces}
        mine = [row for row in mine if seen & {(row[f"{side}_part"], row[f"{side}_row"]) for side in ("from", "to")}]
    verdicts = Counter(row["verdict"] for row in mine)
    lines += [f"{len(mine)} candidate pairs"] + [f"  {count:>6}  {name}" for name, count in verdicts.most_common()]
    for row in sorted(mine, key=lambda row: (row["verdict"] != "accepted", row["key"]))[:_SHOWN]:
        lines.append(f"  {row['key']}  {row['from_pts']:.2f} -> {row['to_pts']:.2f} s  {row['edit'] or '-'}  {row['verdict']}")
    if len(mine) > _SHOWN:
        lines.append(f"  and {len(mine) - _SHOWN} more")
    return lines


def _explain_unpaired(source_id: str, second: str, work: str) -> list[str]:
    """What ledger and parts say of a source or a frame of it, whatever was published; nothing where it is no source of this build."""
    ledger = read_ledger(work) if exists(join(work, "ledger.jsonl")) else []
    lines = []
    for row in (row for row in ledger if row["source_id"] == source_id):
        lines += _explain_source(row)
        if second:
            lines += _explain_faces(_faces_at(row, _seconds(second), work), second)
    return lines


def _seconds(text: str) -> float:
    try:
        second = float(text)
        if 0 <= second < math.inf:
            return second
    except ValueError:
        pass  # told below
    raise UserError(f"@{text}: expected seconds after the @, 0 or more, for example clip@12.4")


def _faces_at(row: dict[str, Any], second: float, work: str) -> list[dict[str, Any]]:
    """The faces in the frame that was looked at nearest to a time, each with its part and its number there."""
    found = []
    for part in row["parts"]:
        table = read_part(work, part).select(list(_FACE))
        rows = table.to_pylist()
        reasons = why_not_chosen(rows)
        found += [face | {"part": part, "row": number, "not_chosen": reasons[number]} for number, face in enumerate(rows)]
    nearest = min((abs(face["pts"] - second) for face in found), default=0.0)
    return [face for face in found if abs(face["pts"] - second) == nearest]


def _explain_faces(faces: list[dict[str, Any]], second: str) -> list[str]:
    """What was read of each face, and whether it went on to pairing."""
    if not faces:
        return [f"at {second} s: no face in any frame of this source"]
    lines = [f"frame {faces[0]['frame']} ({faces[0]['pts']:.2f} s) is the nearest to {second} s in which a face was seen"]
    for face in faces:
        pose = ", ".join(f"{axis} {face[axis]:.0f}" for axis in ("yaw", "pitch", "roll"))
        lines.append(
            f"  track {face['track']}: detected {face['detection_score']:.2f}, {face['expression']} {face['expression_intensity']:.2f}, {pose}"
        )
        if face["representative"]:
            scores = ", ".join(f"{name} {face[name]:.3g}" for name in _QUALITY)
            lines.append(f"    a representative of its track: {scores}")
        else:
            lines.append(f"    not a representative: {face['not_chosen']}")
    return lines


def pairing_config(folder: str) -> PairingConfig:
    """The thresholds that a version, or the one a view is of, was judged by."""
    uri = join(home_of(folder), SETTINGS)
    return _settings(uri) if exists(uri) else PairingConfig()


def _settings(uri: str) -> PairingConfig:
    found = read_json(uri, mend=PUBLISHED)
    with reading(uri, PUBLISHED):
        return PairingConfig(**found["pairing"])


def _explain_source(row: dict[str, Any]) -> list[str]:
    said = f"source {row['source_id']}: {row['status']}"
    if row.get("reason"):
        said += f" ({row['reason']}): {row.get('message')}"
    counts = ", ".join(f"{row[name]} {name}" for name in ("frames", "faces", "tracks", "representatives") if row.get(name) is not None)
    chosen = [f"  {count} no representatives: {reason}" for reason, count in row.get("not_chosen", {}).items()]
    return [said, *([counts] if counts else []), *chosen, *(f"warning: {text}" for text in row.get("warnings", ()))]


def _explain_pair(row: dict[str, Any], config: PairingConfig, folder: str) -> list[str]:
    lines = [f"{row['key']}: {row['verdict']}" + (f", in {row['split']}" if row["split"] else "")]
    lines.append(f"person {row['person']}, scope {row['scope']}, edit {row['edit'] or 'none of ours'}")
    for side in ("from", "to"):
        source = row["source_id" if side == "from" else "target_id"]
        pose = ", ".join(f"{axis} {row[f'{side}_{axis}']:.0f}" for axis in ("yaw", "pitch", "roll"))
        face = f"{row[f'{side}_expression']} {row[f'{side}_expression_intensity']:.2f}"
        lines.append(
            f"{side} {source} track {row[f'{side}_track']} frame {row[f'{side}_frame']} ({row[f'{side}_pts']:.2f} s): {face}, {pose}"
        )
    for name, score, limit, passed in explain(row, config):
        if name in ASKED and row["verdict"] not in ("accepted", *ASKED) and row[LIMITS[name][0]] is None:
            passed = f"not asked: refused before by {row['verdict']}"
        lines.append(f"  {name:<18} {score:>8}  {limit:<10} {passed}")
    return lines + (_explain_sample(row["key"], folder) if row["split"] else [])


def explain(row: dict[str, Any], config: PairingConfig) -> list[tuple[str, str, str, str]]:
    """Every score of a candidate beside its threshold: (filter, score, threshold, passed or failed)."""
    evaluated = row["held_out"] or row["verdict"] == "held out"  # by itself, or by likeness
    lines = [
        ("expression verifier", "misread" if row["misread"] else "as asked", "as asked", _said(not row["misread"])),
        _beside("pose discriminator", row["declared_miss"], config.pose_tolerance, -1),
        _beside("pose step", row["pose_miss"], config.pose_tolerance, -1),
        _beside("like intensity", row["intensity_gap"], config.max_intensity_gap, -1),
        ("evaluation sets", "in one" if evaluated else "in none", "in none", _said(not evaluated)),
    ]
    for verdict, (score, name, sign) in LIMITS.items():
        if verdict == "identity" and row["kind"] == "synthetic" and row[score] is not None:
            lines.append((verdict, f"{row[score]:.3g}", "declared", "not applied"))
        else:
            lines.append(_beside(verdict, row[score], getattr(config, name), sign))
    return lines


def _beside(name: str, score: float | None, limit: float, sign: int) -> tuple[str, str, str, str]:
    """A line of a score and its threshold."""
    asks = f"{'>=' if sign > 0 else '<='} {limit:g}"
    return (name, "-", asks, "not computed") if score is None else (name, f"{score:.3g}", asks, _said(bool(passes(score, limit, sign))))


def _said(passed: bool) -> str:
    return "passed" if passed else "failed"


def _explain_sample(key: str, folder: str) -> list[str]:
    """Where an accepted pair lies, what it asks for, and by which models it was measured."""
    home = home_of(folder)
    table = read_manifest_table(home)
    found = table.filter(pc.equal(table["key"], key)).to_pylist()
    if not found:
        return ["no longer in the version: it was removed"]
    row = found[0]
    meta = read_pair(home, row).meta
    start = min(row[name] for name in row if name.endswith("_offset"))
    by = f", rewritten by {meta.rewriting.model}, seed {meta.rewriting.seed}" if meta.rewriting else ""
    lines = [f"shard {row['shard']} from byte {start}: {meta.instruction!r} (template {meta.template}{by})"]
    source = meta.provenance
    ends = [("source", source.source_id, source.source_sha256, source.licence, source.consent, source.url)]
    if source.target_id and source.target_sha256:
        ends.append(
            ("target", source.target_id, source.target_sha256, str(source.target_licence), source.target_consent, source.target_url)
        )
    for end, name, digest, licence, consent, url in ends:
        more = (f", consent {consent}" if consent else "") + (f", from {url}" if url else "")
        lines.append(f"{end} {name}, sha256 {digest[:16]}, licence {licence}{more}")
    return lines + [f"  model {name:<12} sha256 {digest[:16]}" for name, digest in sorted(source.models.items())]
