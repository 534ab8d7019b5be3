"""Pairs of representatives: which edit leads from one to the other, with the scores that decide. No threshold is applied here (see `judge`).

A person's faces are scored all at once, as arrays; `i` and `j` index the two ends of each ordered pair.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.crops import Array, eye_crops, padding_of, shared_crops
from data_pipeline.render import crop_name
from data_pipeline.seek import Seeker
from data_pipeline.tracks import REPRESENTATIVES, bin_of
from infra.storage import sha256_bytes
from lato.edits import MAX_TURN, POSE_STEP, Edit, Expression, Intensity
from lato.faces.expression import is_verifiable

AXES = ("yaw", "pitch", "roll")
EXPRESSIONS = tuple(expression.value for expression in Expression)
INTENSITIES = tuple(intensity.value for intensity in Intensity)
_MILD, _STRONG = 0.62, 0.88
"""Readings under and over which an expression that was not drawn is called slight and strong."""
SCORES = (
    "similarity", "writing", "sharpness", "noise", "clipped", "blockiness", "letterbox", "upscale", "padding", "tilt", "occlusion",
    "expression_strength", "agreement", "intensity_gap", "pose_miss", "declared_miss", "background", "clothing",
)  # fmt: skip
"""Of a pair: the worse of its two ends. The first two, likeness of the two faces and text on them, are asked for when the pair is judged."""
STORED_SCORES = SCORES[2:]
"""In the score table; null where it was not computed, because its column group is not among the config's."""
OBSERVED = (
    "source_id", "source_sha256", "kind", "identity", "track", "frame", "pts", "width", "height", "landmarks", "yaw", "pitch", "roll", "expression",
    "expression_intensity", "declared", "representative", "sharpness", "noise", "clipped", "blockiness", "letterbox", "face_px", "skin_ita", "phash",
)  # fmt: skip
"""What is read of a representative, here and to mark who is held out."""
OF_GROUPS = {"occlusion": ("occlusion",), "surroundings": ("background", "clothing"), "fer": ("fer_scores",)}
"""Column group -> what is read of its columns, where the group is among the config's."""
SCORE_OF = {"fer_scores": "agreement"}
"""A group's column -> the score that is made of it, where that has another name."""
_OPTIONAL = frozenset(name for names in OF_GROUPS.values() for name in names)
_END = (
    "frame", "track", "pts", "yaw", "pitch", "roll", "expression", "expression_intensity", "skin_ita", "face_px", "width", "row", "part",
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """What is paired with itself: a track, or all photos of a declared person."""

    name: str
    scope: str
    """same_track or same_person."""
    rows: list[dict[str, Any]]
    """Representatives with the groups' columns."""
    left_out: int = 0
    """Of a track that was joined over pieces, or read again: representatives beyond those that a track may have, in no other group either."""


def group_people(
    rows: Iterable[dict[str, Any]], same_person: bool, published: Mapping[str, Collection[int]] = MappingProxyType({})
) -> Iterator[Person]:
    """Representatives as tracks, each once, then photos of one declared person from several sources.

    A person's groups come one after another, so that quotas can be counted person by person.

    Args:
        rows: The representatives, with the groups' columns.
        same_person: Whether photos of several sources are paired.
        published: Part -> rows of faces that a version which is extended has samples of: of a track these are paired in any case.
    """
    tracks: dict[str, dict[tuple[str, int], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = row["identity"] or f"{row['source_id']}/{row['track']}"
        tracks[name][(row["source_id"], row["track"])].append(row)
    for name in sorted(tracks):
        photos = [row for key in sorted(tracks[name]) for row in tracks[name][key] if row["kind"] == "image" and row["identity"]]
        if not same_person or len({row["source_id"] for row in photos}) < 2:
            photos = []
        for key in sorted(tracks[name]):
            rows = sorted(tracks[name][key], key=lambda row: row["frame"])
            kept = _at_most(rows, published)
            paired = {id(row) for row in (*kept, *photos)}
            yield Person(name, "same_track", kept, sum(id(row) not in paired for row in rows))
        if photos:
            yield Person(name, "same_person", photos)


def _at_most(rows: list[dict[str, Any]], published: Mapping[str, Collection[int]]) -> list[dict[str, Any]]:
    """A track that was joined over segments may have more representatives a bin than one that was not; the published ones stay."""
    bins: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    stay = {id(row) for row in rows if row["row"] in published.get(row["part"], ())}
    for row in sorted(rows, key=lambda row: (id(row) not in stay, -row["sharpness"], row["pts"])):
        bins[bin_of(row)].append(row)
    kept = stay.union(id(row) for group in bins.values() for row in group[:REPRESENTATIVES])
    return [row for row in rows if id(row) in kept]


def score_person(person: Person, margin: float) -> dict[str, Any] | None:
    """All ordered pairs of a person with their scores, as columns (arrays and lists of equal length); None where there is none.

    Args:
        person: Whom.
        margin: Side of a shared crop in units of the larger extent of both faces' landmarks.
    """
    rows = person.rows
    i, j = (index.reshape(-1) for index in np.meshgrid(np.arange(len(rows)), np.arange(len(rows)), indexing="ij"))
    sources = np.array([row["source_id"] for row in rows])
    keep = (i != j) & ((sources[i] == sources[j]) if person.scope == "same_track" else (sources[i] != sources[j]))
    i, j = i[keep], j[keep]
    if not len(i):
        return None

    def column(name: str, missing: float = 0.0) -> Array:
        values = [row.get(name) if name in _OPTIONAL else row[name] for row in rows]
        return np.array([missing if value is None else value for value in values], np.float64)

    points = np.array([row["landmarks"] for row in rows], np.float64).reshape(-1, 68, 2)
    frame = np.stack([column("width"), column("height")], axis=1)
    shared = person.scope == "same_track"
    crops = shared_crops(points, frame, i, j, margin) if shared else (eye_crops(points)[i], eye_crops(points)[j])
    pose = np.stack([column(axis) for axis in AXES], axis=1)
    expression = np.array([EXPRESSIONS.index(row["expression"]) for row in rows])
    declared = _read_declared(rows)
    change = pose[j] - pose[i]
    steps = np.round(change / POSE_STEP) * POSE_STEP
    strength = np.where((expression == 0) | declared["given"], 1.0, column("expression_intensity"))
    agreement = np.where(declared["given"], 1.0, _agreement(rows, expression))
    scores: dict[str, Array] = {
        "sharpness": np.minimum(column("sharpness")[i], column("sharpness")[j]),
        **{
            name: np.maximum(column(name, np.nan)[i], column(name, np.nan)[j])
            for name in ("noise", "clipped", "blockiness", "letterbox", "occlusion")
        },
        "upscale": 512.0 / np.minimum(crops[0][:, 2], crops[1][:, 2]),
        "padding": np.maximum(padding_of(crops[0], frame[i]), padding_of(crops[1], frame[j])),
        "tilt": np.maximum(np.abs(pose[i, 2]), np.abs(pose[j, 2])),
        "expression_strength": np.minimum(strength[i], strength[j]),
        "agreement": np.minimum(agreement[i], agreement[j]),
        "intensity_gap": np.where(expression[i] == expression[j], _intensity_gap(column("expression_intensity"), declared, i, j), 0.0),
        "pose_miss": np.abs(change - steps).max(axis=1),
        "declared_miss": _declared_miss(declared, pose, i, j),
        **{name: np.ones(len(i)) if shared else _likeness(rows, name)[i, j] for name in ("background", "clothing")},
    }
    changed = np.where(expression[i] != expression[j], expression[j], -1)
    return {
        "key": _keys(rows, i, j),
        "source_id": sources[i],
        "target_id": sources[j],
        "kind": [rows[0]["kind"]] * len(i),
        "person": [person.name] * len(i),
        "scope": [person.scope] * len(i),
        "edit_expression": changed.astype(np.int8),
        "edit_intensity": _intensities(rows, expression, declared)[j].astype(np.int8),
        **{f"step_{axis}": steps[:, number].astype(np.int16) for number, axis in enumerate(AXES)},
        "misread": ((declared["expression"] != expression) & declared["given"])[i]
        | ((declared["expression"] != expression) & declared["given"])[j],
        "held_out": column("held_out")[i].astype(bool) | column("held_out")[j].astype(bool),
        **{name: values.astype(np.float32) for name, values in scores.items()},
        "crop_source": list(np.round(crops[0], 2)),
        "crop_target": list(np.round(crops[1], 2)),
        "phash_source": [rows[n]["phash"] for n in i],
        "phash_target": [rows[n]["phash"] for n in j],
        **{f"{side}_{name}": [rows[n][name] for n in ends] for side, ends in (("from", i), ("to", j)) for name in _END},
    }


_END_TYPES = {
    "expression": pa.string(), "part": pa.string(), "frame": pa.int64(), "track": pa.int32(), "row": pa.int32(), "width": pa.int32(),
}  # fmt: skip
SCORE_SCHEMA = pa.schema(
    [
        ("key", pa.string()), ("source_id", pa.string()), ("target_id", pa.string()), ("kind", pa.string()), ("person", pa.string()),
        ("scope", pa.string()), ("edit_expression", pa.int8()), ("edit_intensity", pa.int8()),
        *((f"step_{axis}", pa.int16()) for axis in AXES), ("misread", pa.bool_()), ("held_out", pa.bool_()),
        *((name, pa.float32()) for name in STORED_SCORES), ("crop_source", pa.list_(pa.float64())), ("crop_target", pa.list_(pa.float64())),
        ("phash_source", pa.binary(32)), ("phash_target", pa.binary(32)),
        *(
            (f"{side}_{name}", _END_TYPES.get(name, pa.float64())) for side in ("from", "to") for name in _END
        ),
    ]
)  # fmt: skip
"""Columns of the scores table."""


def edit_of(row: dict[str, Any]) -> Edit | None:
    """The edit of a scored pair; None where none of ours leads from source to target."""
    expression = Expression(EXPRESSIONS[row["edit_expression"]]) if row["edit_expression"] >= 0 else None
    steps = {axis: int(row[f"step_{axis}"]) for axis in AXES}
    if (expression is None and not any(steps.values())) or max(abs(step) for step in steps.values()) > MAX_TURN:
        return None
    graded = expression not in (None, Expression.NEUTRAL)
    return Edit(expression=expression, intensity=Intensity(INTENSITIES[row["edit_intensity"]]) if graded else Intensity.PLAIN, **steps)


VERIFIABLE = np.array([True, *(is_verifiable(Expression(name)) for name in EXPRESSIONS[1:])])
"""By expression: whether the embedded models read it well enough."""


_STEP_BITS = 5
"""Of a number in `edit_texts`, an axis: two readings are up to 360 degrees apart, 12 steps to either side."""


def edit_texts(table: pa.Table) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    """The edit of each row as a number, and the number's text; pairs without an edit of ours have a text too."""
    number = np.asarray(table["edit_expression"]).astype(np.int64) + 1
    number = number * 4 + np.where(number > 1, np.asarray(table["edit_intensity"]), 1)
    for axis in AXES:
        number = number * 2**_STEP_BITS + (np.asarray(table[f"step_{axis}"]).astype(np.int64) // POSE_STEP + 2 ** (_STEP_BITS - 1))
    texts = {}
    for code in np.unique(number):
        steps = [((int(code) >> n * _STEP_BITS) % 2**_STEP_BITS - 2 ** (_STEP_BITS - 1)) * POSE_STEP for n in (2, 1, 0)]
        expression, intensity = divmod(int(code) >> 3 * _STEP_BITS, 4)
        parts = [] if expression == 0 else [EXPRESSIONS[expression - 1] + ("" if intensity == 1 else f" {INTENSITIES[intensity]}")]
        texts[int(code)] = ", ".join(parts + [f"{axis} {step:+d}" for axis, step in zip(AXES, steps, strict=True) if step])
    return number, texts


def _keys(rows: list[dict[str, Any]], i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> list[str]:
    """Keys of samples, from what identifies the two faces, whatever is known of other pieces of a long video."""
    ends = [json.dumps([row["source_id"], row["source_sha256"], row["frame"], row["own_track"]]) for row in rows]
    return ["p_" + sha256_bytes(f"[{ends[a]}, {ends[b]}]".encode())[:20] for a, b in zip(i, j, strict=True)]


def _agreement(rows: list[dict[str, Any]], expression: npt.NDArray[np.int64]) -> Array:
    """(N,) what the second network gives to the expression that was read on each face; NaN where it was not asked.

    It calls open mouths and raised brows fear as often as surprise, so for surprise both count; for fear only fear does.
    """
    given = np.array([row.get("fer_scores") or [np.nan] * len(EXPRESSIONS) for row in rows], np.float64)
    given[:, EXPRESSIONS.index("surprised")] += given[:, EXPRESSIONS.index("fearful")]
    return given[np.arange(len(rows)), expression]


def _likeness(rows: list[dict[str, Any]], name: str) -> Array:
    """(N, N) dot products of a column of unit vectors: how alike the surroundings of two photos are. NaN where one was not computed."""
    vectors = [row.get(name) for row in rows]
    width = max((len(vector) for vector in vectors if vector), default=1)
    table = np.array([vector or np.full(width, np.nan) for vector in vectors], np.float64)
    return table @ table.T


def _read_declared(rows: list[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """By face: whether its expression is `given`, which and how strongly, and whether that is `known`, as it was drawn so: of an edited photo it is what was
    asked, and only what is read says how far the editor went; whether its pose is `drawn` or that asked `of_photo`, and which."""
    known = [json.loads(row["declared"]) if row["declared"] else None for row in rows]
    given = [entry if entry and entry["expression"] else None for entry in known]
    of_photo = np.array([bool(entry and entry.get("of_photo")) for entry in known])
    return {
        "given": np.array([entry is not None for entry in given]),
        "known": np.array([entry is not None for entry in given]) & ~of_photo,
        "expression": np.array([EXPRESSIONS.index(entry["expression"]) if entry else -1 for entry in given]),
        "intensity": np.array([INTENSITIES.index(entry["intensity"]) if entry else 1 for entry in given]),
        "pose": np.array([[entry[axis] for axis in AXES] if entry else [0.0] * 3 for entry in known]),
        "of_photo": of_photo,
        "drawn": np.array([entry is not None for entry in known]) & ~of_photo,
    }


def _declared_miss(declared: dict[str, npt.NDArray[Any]], pose: Array, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> Array:
    """Degrees on the worst axis by which a pair misses the poses that were asked of its maker; 0 where none was.

    Two drawn pictures: the step between what was read, against the step between what was drawn. An edited photo: what was read on it, against what was
    read on the photo and the steps that were asked.
    """
    asked = np.round((declared["pose"][j] - declared["pose"][i]) / POSE_STEP) * POSE_STEP
    drawn = np.where(declared["drawn"][i] & declared["drawn"][j], np.abs(pose[j] - pose[i] - asked).max(axis=1), 0.0)
    own = np.where(declared["of_photo"], np.abs(pose - declared["pose"]).max(axis=1), 0.0)
    return np.maximum(drawn, np.maximum(own[i], own[j]))


def _intensity_gap(read: Array, declared: dict[str, npt.NDArray[Any]], i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> Array:
    """How far two intensities are apart; of two that are known 0 where they are the same one, else 1."""
    both = declared["known"][i] & declared["known"][j]
    return np.where(both, (declared["intensity"][i] != declared["intensity"][j]).astype(np.float64), np.abs(read[i] - read[j]))


def _intensities(
    rows: list[dict[str, Any]], expression: npt.NDArray[np.int64], declared: dict[str, npt.NDArray[Any]]
) -> npt.NDArray[np.int64]:
    read = np.array([row["expression_intensity"] for row in rows])
    grade = np.where(read < _MILD, 0, np.where(read < _STRONG, 1, 2))
    return np.where(expression == 0, 1, np.where(declared["known"], declared["intensity"], grade))


def crops_of(row: dict[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Source's and target's crop of a scored pair: left, top, side in image pixels."""
    return tuple(row["crop_source"]), tuple(row["crop_target"])


def crop_names(row: dict[str, Any], ends: tuple[dict[str, Any], dict[str, Any]], seeker: Seeker) -> list[str]:
    """File names of a pair's two crops, from the observations of its ends."""
    return [crop_name(end, crop, seeker) for end, crop in zip(ends, crops_of(row), strict=True)]
