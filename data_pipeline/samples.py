"""From accepted pairs to samples: the crops they need, and what is packed of each."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.divide import Division
from data_pipeline.pack import Planned
from data_pipeline.pair_columns import EDIT, Ends, Pairs
from data_pipeline.pairing import SCORES, crop_names, crops_of, edit_of
from data_pipeline.render import Crop, crop_landmarks
from data_pipeline.rewrite import Rewriter, Wanted
from data_pipeline.seek import Seeker
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.storage import read_bytes
from lato.edits import Edit, Expression, Instruction
from lato.pairs import FacePair, FaceState, PairMeta, Provenance


def name_crops(pairs: Pairs, seeker: Seeker) -> list[list[str]]:
    """File names of each pair's two crops."""
    known: dict[str, str] = {}  # pairs share crops, so they share names
    return [[known.setdefault(name, name) for name in crop_names(*pairs.read(n), seeker)] for n in range(len(pairs))]


def crops_to_render(pairs: Pairs, names: Sequence[Sequence[str]]) -> list[Crop]:
    """The crops of accepted pairs, each once a source: of two with equal content, one may be gone by now."""
    crops, known = {}, dict[str, str]()
    for n, names_of in enumerate(names):
        row, ends = pairs.read(n)
        for name, end, crop in zip(names_of, ends, crops_of(row), strict=True):
            source, content = (known.setdefault(end[what], end[what]) for what in ("source_id", "source_sha256"))
            if (name, source) not in crops:
                crops[name, source] = Crop(source, content, name, end["image_uri"], end["pts"], crop)
    return list(crops.values())


@dataclass(frozen=True)
class _Samples:
    """What samples are read from when they are packed."""

    pairs: Pairs
    names: Sequence[Sequence[str]]
    division: Division
    items: Mapping[str, WorkItem]
    models: Mapping[str, dict[str, str]]
    work: str

    def read(self, number: int, instruction: Instruction) -> tuple[dict[str, Any], FacePair]:
        """Manifest columns of a sample, and the pair."""
        row, ends = self.pairs.read(number)
        meta = self._meta(row, ends, instruction)
        jpgs = [read_bytes(join(self.work, "renders", name)) for name in self.names[number]]
        landmarks = np.stack([crop_landmarks(end, crop) for end, crop in zip(ends, crops_of(row), strict=True)])
        pair = FacePair(row["key"], jpgs[0], jpgs[1], landmarks, meta)
        return _columns(meta, self.items[row["source_id"]], self.items[row["target_id"]]), pair

    def _meta(self, row: dict[str, Any], ends: Ends, instruction: Instruction) -> PairMeta:
        item, target = self.items[row["source_id"]], self.items[row["target_id"]]
        edit, crops = _edit(row), crops_of(row)
        other: dict[str, Any] = {}
        if target != item:
            other = {"target_id": target.source_id, "target_sha256": ends[1]["source_sha256"]}
            other |= {"target_licence": target.licence, "target_consent": target.consent, "target_url": target.url}
        return PairMeta(
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
            split=self.division.split_of[row["source_id"]],
            provenance=Provenance(
                source_id=item.source_id,
                source_sha256=ends[0]["source_sha256"],
                kind=item.kind,
                identity=row["person"],
                licence=item.licence,
                consent=item.consent,
                url=item.url,
                scope=row["scope"],
                models=self.models[item.source_id],
                **other,
            ),
        )


def plan_samples(
    pairs: Pairs,
    names: Sequence[Sequence[str]],
    kept: Sequence[int],
    division: Division,
    items: Mapping[str, WorkItem],
    models: Mapping[str, dict[str, str]],
    rewriter: Rewriter,
    work: str,
) -> list[Planned]:
    """What is packed of each accepted pair.

    Args:
        pairs: Accepted pairs.
        names: Of each pair's crops.
        kept: Numbers of the pairs that become samples: their crops are there.
        division: The splits.
        items: All sources.
        models: Source id -> what had a part in its pairs, with sha256.
        rewriter: Writes the instructions.
        work: The build's folder.
    """
    edits: dict[tuple[int, ...], Edit] = {}  # there are few
    wanted = []
    for n in kept:
        row = pairs.rows.read(n, ("key", "source_id", *EDIT))
        what = tuple(row[name] for name in EDIT)
        edit = edits[what] if what in edits else edits.setdefault(what, _edit(row))
        wanted.append(Wanted(edit, row["key"], division.split_of[row["source_id"]], join(work, "renders", names[n][0])))
    written = rewriter.write(wanted)
    read = _Samples(pairs, names, division, items, models, work).read
    return [Planned(one.key, one.split, functools.partial(read, n, written[one.key])) for n, one in zip(kept, wanted, strict=True)]


def _edit(row: dict[str, Any]) -> Edit:
    edit = edit_of(row)
    assert edit is not None, "an accepted candidate has an edit"
    return edit


def _columns(meta: PairMeta, item: WorkItem, target: WorkItem) -> dict[str, Any]:
    """Of the manifest."""
    edit = meta.edit
    return {
        "kind": item.kind,
        "source_id": item.source_id,
        "identity": meta.provenance.identity,
        "instruction": meta.instruction,
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
