"""Why a source, a frame or a sample is in a dataset or not: its whole path, every score beside its threshold."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from data_pipeline.candidates import find_candidates, read_candidate_pieces
from data_pipeline.ledger import read_ledger
from data_pipeline.published import home_of, is_published, read_manifest_table, read_pair
from data_pipeline.rules import ASKED, EDITS, LIMITS, SETTINGS, PairingConfig, passes
from data_pipeline.versions import check_judged, find_version, why_empty
from data_pipeline.why_refused import explain_refusal
from data_pipeline.why_source import explain_faces, explain_models, explain_samples, explain_source, faces_at, seconds
from infra.addresses import join
from infra.errors import UserError
from infra.state import PUBLISHED, read_json, reading
from infra.storage import exists

_SHOWN = 12
_LINE = "  {:<18} {:>8}  {:<10} {}"


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
        return _explain_pair(by_key[0], pairing_config(folder), folder, work)
    ledger = {row["source_id"]: row for row in read_ledger(work)}
    if source_id not in ledger:
        known = sum(map(len, read_candidate_pieces(folder, ["key"])))
        raise UserError(f"{what}: neither a sample's key nor a source of this build. {len(ledger)} sources, {known} candidates are known.")
    lines = explain_source(ledger[source_id]) + explain_samples(ledger[source_id], folder)
    ends = ["source_id", "target_id"]
    mine = find_candidates(folder, ends, lambda piece: pc.or_(*(pc.equal(piece[end], source_id) for end in ends)))
    if second:
        faces = faces_at(ledger[source_id], seconds(second), work)
        lines += explain_faces(faces, second, pairing_config(folder))
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
        lines += explain_source(row) + explain_models(row.get("models", {}))
        if second:
            lines += explain_faces(faces_at(row, seconds(second), work), second, None)
    return lines


def pairing_config(folder: str) -> PairingConfig:
    """The thresholds that a version, or the one a view is of, was judged by."""
    uri = join(home_of(folder), SETTINGS)
    return _settings(uri) if exists(uri) else PairingConfig()


def _settings(uri: str) -> PairingConfig:
    found = read_json(uri, mend=PUBLISHED)
    with reading(uri, PUBLISHED):
        return PairingConfig(**found["pairing"])


def _explain_pair(row: dict[str, Any], config: PairingConfig, folder: str, work: str) -> list[str]:
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
        lines.append(_LINE.format(name, score, limit, passed))
    limits, said = explain_refusal(row, config, folder, work)
    lines += [_LINE.format(*line) for line in limits] + said
    return lines + (_explain_sample(row["key"], folder) if row["split"] else [])


def explain(row: dict[str, Any], config: PairingConfig) -> list[tuple[str, str, str, str]]:
    """Every score of a candidate beside its threshold: (filter, score, threshold, passed or failed)."""
    evaluated = row["held_out"] or row["verdict"] == "held out"  # by itself, or by likeness
    lines = [
        ("expression verifier", "misread" if row["misread"] else "as asked", "as asked", _said(not row["misread"])),
        _beside("pose discriminator", row["declared_miss"], config.pose_tolerance, -1),
        *(_beside(name, row[score], getattr(config, limit), sign) for name, (score, limit, sign) in EDITS.items()),
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
    return lines + explain_models(source.models)
