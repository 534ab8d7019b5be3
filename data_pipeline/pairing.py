"""Pairs of representatives: which edit leads from one to the other, and whether the pair is good enough. Thresholds are applied here and only here."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.config import Config
from infra.storage import sha256_bytes
from lato.edits import POSE_STEP, Edit, Expression, Intensity
from lato.faces.expression import is_verifiable
from lato.faces.quality import hash_distance
from lato.landmarks import interocular_distance

_AXES = ("yaw", "pitch", "roll")


class PairingConfig(Config):
    """What makes a pair. Scores are stored; changing a number here decodes nothing again."""

    pose_tolerance: float = 10.0
    """Degrees by which a pose change may miss a multiple of 30, on each axis."""
    min_similarity: float = 0.45
    """Cosine of the two identity vectors (the threshold of the embedded recognizer, SFace). Not applied to synthetic people: a recognizer trained on
    photos takes different ones for the same person and, under strong expressions, one for two; their identity is declared."""
    min_sharpness: float = 15.0
    """Variance of the Laplacian on the 160 px face."""
    max_noise: float = 12.0
    """Grey levels."""
    max_clipped: float = 0.25
    """Share of pixels at the limits of exposure."""
    max_blockiness: float = 2.5
    """Step over codec blocks' borders, in steps elsewhere."""
    max_letterbox: float = 0.35
    """Share of the frame in black bars."""
    near_duplicate_bits: int = 10
    """Of 256: a pair whose source and target are both this near to those of an accepted pair of the same person and edit is its near-duplicate."""
    max_upscale: float = 1.5
    """How much a crop may be enlarged to 512 px."""
    max_padding: float = 0.02
    """Share of the crop that may lie outside the frame."""
    max_abs_roll: float = 45.0
    """Degrees; a face read as tilted further is a misreading at a cut more often than not."""
    min_expression: float = 0.45
    """How strongly an expression must show on a face of which nothing is declared; weaker readings are wrong too often."""
    margin: float = 2.1
    """Side of the crop in units of the larger extent of both faces' landmarks."""
    per_cell: int = 2
    """Pairs of one person kept for one edit."""
    per_identity: int = 12
    """Pairs of one person in all; both directions of a pair count once."""
    same_person: bool = False
    """Also pair pictures of one declared person that are not of one track (photo sets); stored as scope same_person."""


@dataclass(frozen=True)
class Candidate:
    """An ordered pair of observations with its scores and verdict."""

    source: dict[str, Any]
    target: dict[str, Any]
    edit: Edit | None
    scope: str
    crops: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Of source and target: left, top, side in image pixels. Equal within a track."""
    scores: dict[str, float]
    verdict: str
    """`accepted`, or why not."""

    @property
    def key(self) -> str:
        """The sample's key, from what identifies the two frames."""
        ends = [[row["source_id"], row["source_sha256"], row["frame"], row["track"]] for row in (self.source, self.target)]
        return "p_" + sha256_bytes(json.dumps(ends).encode())[:20]

    @property
    def person(self) -> str:
        """Whom the pair shows, as far as is known."""
        return self.source["identity"] or f"{self.source['source_id']}/{self.source['track']}"


def find_candidates(rows: list[dict[str, Any]], config: PairingConfig) -> list[Candidate]:
    """All ordered pairs of representatives that may be paired, judged one by one.

    Args:
        rows: Observations (columns of `observations.SCHEMA`), of any number of sources.
        config: Thresholds.
    """
    tracks: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    photos: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["representative"]:
            tracks[(row["source_id"], row["track"])].append(row)
            if config.same_person and row["kind"] == "image" and row["identity"]:
                photos[row["identity"]].append(row)
    candidates = []
    for track in tracks.values():
        track.sort(key=lambda row: row["frame"])
        candidates += [_judge(a, b, "same_track", config) for a, b in itertools.permutations(track, 2)]
    for group in photos.values():
        group.sort(key=lambda row: (row["source_id"], row["frame"]))
        pairs = ((a, b) for a, b in itertools.permutations(group, 2) if a["source_id"] != b["source_id"])
        candidates += [_judge(a, b, "same_person", config) for a, b in pairs]
    return candidates


def apply_quotas(candidates: Iterable[Candidate], config: PairingConfig) -> list[Candidate]:
    """Caps what one person and one edit contribute; a pair and its reverse count once and are kept or dropped together.

    Returns:
        All candidates; those over a cap carry the verdict `quota`, near-duplicates `near-duplicate`.
    """
    candidates = list(candidates)
    twins: dict[frozenset[str], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if candidate.verdict == "accepted":
            ends = (candidate.source, candidate.target)
            twins[frozenset(f"{row['source_id']}/{row['track']}/{row['frame']}" for row in ends)].append(candidate)
    per_cell: Counter[tuple[str, str]] = Counter()
    per_person: Counter[str] = Counter()
    kept: set[str] = set()
    near: set[str] = set()
    hashes: dict[tuple[str, str], list[tuple[bytes, bytes]]] = defaultdict(list)
    for group in sorted(twins.values(), key=lambda group: (-min(c.scores["sharpness"] for c in group), group[0].key)):
        cells = [(candidate.person, str(candidate.edit)) for candidate in group]
        if any(_is_near(c, hashes[cell], config.near_duplicate_bits) for c, cell in zip(group, cells, strict=True)):
            near.update(candidate.key for candidate in group)
        elif per_person[group[0].person] < config.per_identity and all(per_cell[cell] < config.per_cell for cell in cells):
            per_person[group[0].person] += 1
            per_cell.update(cells)
            kept.update(candidate.key for candidate in group)
            for candidate, cell in zip(group, cells, strict=True):
                hashes[cell].append((candidate.source["phash"], candidate.target["phash"]))

    def final(candidate: Candidate) -> Candidate:
        if candidate.verdict != "accepted" or candidate.key in kept:
            return candidate
        return replace(candidate, verdict="near-duplicate" if candidate.key in near else "quota")

    return [final(candidate) for candidate in candidates]


def _is_near(candidate: Candidate, accepted: list[tuple[bytes, bytes]], bits: int) -> bool:
    ends = (candidate.source["phash"], candidate.target["phash"])
    return any(all(hash_distance(mine, other) <= bits for mine, other in zip(ends, pair, strict=True)) for pair in accepted)


def edit_between(source: dict[str, Any], target: dict[str, Any], tolerance: float) -> Edit | None:
    """The edit that leads from one observation to another, or None where none of ours does."""
    steps = {}
    for axis in _AXES:
        change = target[axis] - source[axis]
        steps[axis] = round(change / POSE_STEP) * POSE_STEP
        if abs(change - steps[axis]) > tolerance:
            return None
    expression = Expression(target["expression"]) if target["expression"] != source["expression"] else None
    if expression is None and not any(steps.values()):
        return None
    intensity = _intensity(target) if expression not in (None, Expression.NEUTRAL) else Intensity.PLAIN
    if max(abs(step) for step in steps.values()) > 90:
        return None
    return Edit(expression=expression, intensity=intensity, **steps)


def _intensity(row: dict[str, Any]) -> Intensity:
    if row["declared"]:
        return Intensity(json.loads(row["declared"])["intensity"])
    strength = row["expression_intensity"]
    return Intensity.SLIGHTLY if strength < 0.62 else Intensity.PLAIN if strength < 0.88 else Intensity.STRONGLY


def _judge(source: dict[str, Any], target: dict[str, Any], scope: str, config: PairingConfig) -> Candidate:
    edit = edit_between(source, target, config.pose_tolerance)
    crops = _shared_crop(source, target, config.margin) if scope == "same_track" else _eye_crops(source, target)
    similarity = float(np.dot(source["embedding"], target["embedding"]))
    scores = {
        "similarity": similarity,
        "sharpness": min(source["sharpness"], target["sharpness"]),
        "noise": max(source["noise"], target["noise"]),
        "clipped": max(source["clipped"], target["clipped"]),
        "blockiness": max(source["blockiness"], target["blockiness"]),
        "letterbox": max(source["letterbox"], target["letterbox"]),
        "upscale": 512.0 / min(crops[0][2], crops[1][2]),
        "padding": max(_padding(source, crops[0]), _padding(target, crops[1])),
        "roll": max(abs(source["roll"]), abs(target["roll"])),
    }
    return Candidate(source, target, edit, scope, crops, scores, _verdict(source, target, edit, scores, config))


def _verdict(source: dict[str, Any], target: dict[str, Any], edit: Edit | None, scores: dict[str, float], config: PairingConfig) -> str:
    declared = _declared_verdict(source, target, config)
    if declared:
        return declared
    if edit is None:
        return "no edit of ours"
    if edit.expression is not None and not is_verifiable(edit.expression):
        return "expression not verifiable"
    unclear = [
        r["expression"] != "neutral" and not r["declared"] and r["expression_intensity"] < config.min_expression for r in (source, target)
    ]
    checks = (
        ("expression unclear", any(unclear)),
        ("identity", source["kind"] != "synthetic" and scores["similarity"] < config.min_similarity),
        ("blurred", scores["sharpness"] < config.min_sharpness),
        ("noisy", scores["noise"] > config.max_noise),
        ("badly exposed", scores["clipped"] > config.max_clipped),
        ("blocky", scores["blockiness"] > config.max_blockiness),
        ("letterboxed", scores["letterbox"] > config.max_letterbox),
        ("too small", scores["upscale"] > config.max_upscale),
        ("cut off", scores["padding"] > config.max_padding),
        ("tilted", scores["roll"] > config.max_abs_roll),
    )
    return next((name for name, failed in checks if failed), "accepted")


def _declared_verdict(source: dict[str, Any], target: dict[str, Any], config: PairingConfig) -> str | None:
    """The expression verifier and pose discriminator of generated pictures: what was asked for must be what is measured."""
    for row in (source, target):
        if not row["declared"]:
            return None
        if json.loads(row["declared"])["expression"] != row["expression"]:
            return "expression verifier"
    asked = [json.loads(row["declared"]) for row in (source, target)]
    for axis in _AXES:
        step = round((asked[1][axis] - asked[0][axis]) / POSE_STEP) * POSE_STEP
        if abs(target[axis] - source[axis] - step) > config.pose_tolerance:
            return "pose discriminator"
    return None


def _points(row: dict[str, Any]) -> npt.NDArray[np.float64]:
    return np.asarray(row["landmarks"], np.float64).reshape(68, 2)


def _shared_crop(source: dict[str, Any], target: dict[str, Any], margin: float) -> tuple[Any, Any]:
    """One square over both faces, so that motion between them survives; shifted into the frame where it fits."""
    points = np.concatenate([_points(source), _points(target)])
    low, high = points.min(0), points.max(0)
    extent = max(np.ptp(_points(row), axis=0).max() for row in (source, target))
    frame = np.array([source["width"], source["height"]], np.float64)
    side = float(min(max(margin * extent, (high - low).max() * 1.15), max(frame.min(), (high - low).max())))
    centre = (low + high) / 2 - np.array([0.0, 0.12 * extent])  # the landmarks stop at the brows: leave room for hair
    corner = np.clip(centre - side / 2, 0, np.maximum(frame - side, 0))
    crop = (round(float(corner[0]), 2), round(float(corner[1]), 2), round(side, 2))
    return crop, crop


def _eye_crops(source: dict[str, Any], target: dict[str, Any]) -> tuple[Any, Any]:
    """Two pictures share no frame: each is cropped by the same rule in units of the distance between its outer eye corners."""

    def crop(row: dict[str, Any]) -> tuple[float, float, float]:
        points = _points(row)
        side = 4.2 * float(interocular_distance(points))
        centre = points[[36, 45]].mean(0) + np.array([0.0, 0.09 * side])
        return round(float(centre[0] - side / 2), 2), round(float(centre[1] - side / 2), 2), round(side, 2)

    return crop(source), crop(target)


def _padding(row: dict[str, Any], crop: tuple[float, float, float]) -> float:
    left, top, side = crop
    width = max(0.0, min(left + side, row["width"]) - max(left, 0.0))
    height = max(0.0, min(top + side, row["height"]) - max(top, 0.0))
    return 1.0 - width * height / (side * side)
