"""From accepted pairs to samples: the crops they need, and what is packed of each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from data_pipeline.divide import Division
from data_pipeline.observations import read_part
from data_pipeline.pack import Planned
from data_pipeline.pairing import SCORES, crop_names, crops_of, edit_of
from data_pipeline.render import Crop, crop_landmarks
from data_pipeline.rewrite import Rewriter, Wanted
from data_pipeline.seek import Seeker
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.storage import read_bytes
from lato.edits import Expression, Instruction
from lato.pairs import FacePair, FaceState, PairMeta, Provenance

Ends = tuple[dict[str, Any], dict[str, Any]]
OBSERVED = (
    "source_id",
    "source_sha256",
    "image_uri",
    "frame",
    "pts",
    "landmarks",
    "yaw",
    "pitch",
    "roll",
)
"""What is read of a pair's two ends."""


def read_ends(rows: list[dict[str, Any]], work: str) -> dict[str, Ends]:
    """Key -> the observations of source and target, each part opened once."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        for side in ("from", "to"):
            wanted[row[f"{side}_part"]].add(row[f"{side}_row"])
    seen: dict[tuple[str, int], dict[str, Any]] = {}
    for part, numbers in wanted.items():
        ordered = sorted(numbers)
        table = read_part(work, part).select(list(OBSERVED)).take(ordered)
        seen.update({(part, number): face for number, face in zip(ordered, table.to_pylist(), strict=True)})
    return {row["key"]: (seen[row["from_part"], row["from_row"]], seen[row["to_part"], row["to_row"]]) for row in rows}


def crops_to_render(rows: list[dict[str, Any]], work: str, seeker: Seeker) -> list[Crop]:
    """The crops of accepted pairs, each once a source: of two with equal content, one may be gone by now."""
    ends = read_ends(rows, work)
    crops = {}
    for row in rows:
        for name, end, crop in zip(crop_names(row, ends[row["key"]], seeker), ends[row["key"]], crops_of(row), strict=True):
            crops[name, end["source_id"]] = Crop(end["source_id"], end["source_sha256"], name, end["image_uri"], end["pts"], crop)
    return list(crops.values())


def plan_samples(
    rows: list[dict[str, Any]],
    division: Division,
    items: dict[str, WorkItem],
    models: dict[str, dict[str, str]],
    rewriter: Rewriter,
    work: str,
    seeker: Seeker,
) -> tuple[list[Planned], dict[str, list[str]]]:
    """What is packed of each accepted pair, and the names of its crops by key."""
    ends = read_ends(rows, work)
    rendered = {row["key"]: crop_names(row, ends[row["key"]], seeker) for row in rows}
    wanted = [
        Wanted(edit, row["key"], division.split_of[row["source_id"]], join(work, "renders", rendered[row["key"]][0]))
        for row in rows
        if (edit := edit_of(row))
    ]
    written = rewriter.write(wanted)
    planned = []
    for row in rows:
        item, target = items[row["source_id"]], items[row["target_id"]]
        names = rendered[row["key"]]
        planned.append(_plan(row, ends[row["key"]], division, item, target, models[item.source_id], written[row["key"]], names, work))
    return planned, rendered


def _plan(
    row: dict[str, Any],
    ends: Ends,
    division: Division,
    item: WorkItem,
    target: WorkItem,
    models: dict[str, str],
    instruction: Instruction,
    names: list[str],
    work: str,
) -> Planned:
    edit, split, crops = edit_of(row), division.split_of[row["source_id"]], crops_of(row)
    assert edit is not None, "an accepted candidate has an edit"
    other: dict[str, Any] = {}
    if target != item:
        other = {"target_id": target.source_id, "target_sha256": ends[1]["source_sha256"]}
        other |= {"target_licence": target.licence, "target_consent": target.consent, "target_url": target.url}
    meta = PairMeta(
        instruction=instruction.text,
        template=instruction.template,
        template_seed=row["key"],
        rewriting=instruction.rewriting,
        edit=edit,
        source=_state(ends[0], row, "from"),
        target=_state(ends[1], row, "to"),
        identity_similarity=round(row["similarity"], 6),
        quality={name: round(float(row[name]), 4) for name in SCORES if row[name] is not None},
        crop=crops[0],
        target_crop=crops[1] if crops[1] != crops[0] else None,
        split=split,
        provenance=Provenance(
            source_id=item.source_id,
            source_sha256=ends[0]["source_sha256"],
            kind=item.kind,
            identity=row["person"],
            licence=item.licence,
            consent=item.consent,
            url=item.url,
            scope=row["scope"],
            models=models,
            **other,
        ),
    )

    def load() -> FacePair:
        jpgs = [read_bytes(join(work, "renders", name)) for name in names]
        landmarks = np.stack([crop_landmarks(end, crop) for end, crop in zip(ends, crops, strict=True)])
        return FacePair(row["key"], jpgs[0], jpgs[1], landmarks, meta)

    columns = {
        "kind": item.kind,
        "source_id": item.source_id,
        "identity": row["person"],
        "instruction": instruction.text,
        "edit_kind": edit.kind,
        "expression": edit.expression.value if edit.expression else None,
        "intensity": edit.intensity.value,
        "yaw": edit.yaw,
        "pitch": edit.pitch,
        "roll": edit.roll,
        "identity_similarity": meta.identity_similarity,
        "licence": item.licence,
        "consent": item.consent,
        "url": item.url,
        "target_id": target.source_id,
        "target_licence": target.licence,
        "target_consent": target.consent,
        "target_url": target.url,
    }
    return Planned(row["key"], split, columns, load)


def _state(end: dict[str, Any], row: dict[str, Any], side: str) -> FaceState:
    """Of one end of a scored pair, whose expression is as it was paired: that of its part may be read against less (`joins`)."""
    return FaceState(
        yaw=round(end["yaw"], 3),
        pitch=round(end["pitch"], 3),
        roll=round(end["roll"], 3),
        expression=Expression(row[f"{side}_expression"]),
        expression_intensity=round(row[f"{side}_expression_intensity"], 3),
        frame=end["frame"],
        pts=end["pts"],
    )
