"""What decides on a pair, beside its scores: thresholds, quotas, the names of the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.identities import Vector, nobody
from infra.config import Config
from lato.faces.identity import RECOGNIZER, SAME_PERSON_THRESHOLD


class PairingConfig(Config):
    """What makes a pair. Scores are stored; changing a number here decodes nothing again."""

    pose_tolerance: float = 10.0
    """Degrees by which a pose change may miss a multiple of 30, and a generated picture the pose that was asked of its maker, on each axis."""
    max_intensity_gap: float = Field(default=0.2, ge=0)
    """How far the intensities of one expression may be apart on two faces between which only the pose is said to change."""
    min_similarity: float = Field(default=SAME_PERSON_THRESHOLD[RECOGNIZER], ge=-1, le=1)
    """Cosine of the two identity vectors (the threshold of the embedded recognizer, SFace; where it is not given, that of the build's own: 0.50 for
    buffalo_l). Not applied to synthetic people: a recognizer trained on photos takes different ones for the same person and, under strong
    expressions, one for two; their identity is declared."""
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
    max_occlusion: float = 0.15
    """Distance of two independent readings of the part of the face on which they differ most, in interocular distances."""
    max_writing: float = 0.001
    """Share of the face chip that is the core of a line of text; 65 pixels."""
    near_duplicate_bits: int = 10
    """Of 256: a pair whose source and target are both this near to those of an accepted pair of the same edit, of the same person or
    of another source that the split ties to its own, is its near-duplicate. Below 0 none is, and no source is compared with others by how faces move
    (`copies`)."""
    max_upscale: float = 1.5
    """How much a crop may be enlarged to 512 px."""
    max_padding: float = 0.02
    """Share of the crop that may lie outside the frame."""
    max_tilt: float = 45.0
    """Degrees of roll; a face read as tilted further is a misreading at a cut more often than not."""
    min_expression: float = 0.45
    """How strongly an expression must show on a face of which nothing is declared; weaker readings are wrong too often."""
    min_agreement: float = Field(default=0.4, ge=0, le=1)
    """What the second expression network (fer) must give to the expression that was read on a face of which nothing is declared, at rest too."""
    min_background: float = 0.8
    """Likeness of the colours behind two photos of one person (`same_person`); within a track it is not asked."""
    min_clothing: float = 0.75
    """Likeness of the colours of their clothes, likewise."""
    margin: float = Field(default=2.1, ge=1)
    """Side of the crop in units of the larger extent of both faces' landmarks."""
    per_cell: int = Field(default=2, ge=1)
    """Pairs of one person kept for one edit; who is not declared is told by faces (`split`)."""
    per_identity: int = Field(default=12, ge=1)
    """Pairs of one person in all, likewise; both directions of a pair count once."""
    per_source: int = Field(default=60, ge=1)
    """Pairs of one source in all, likewise."""
    cell_quota: int | None = Field(default=None, ge=1)
    """Pairs of the whole dataset kept of one cell: one change of expression (from which to which) with one pose step; both directions are one cell and
    count once. The best of what all other quotas and near-duplicates leave. None: no limit, as no number suits datasets of every size."""
    same_person: bool = False
    """Also pair pictures of one declared person that are not of one track (photo sets); stored as scope same_person. An expression is read on a photo
    where the second network (fer) sees it too, and sees others of the person at rest; else a photo is its own rest, and only poses change."""


SETTINGS = "settings.json"
"""In a version's folder: the thresholds that it was judged by; those of the work folder may be of a later build."""

LIMITS: dict[str, tuple[str, str, int]] = {
    "expression unclear": ("expression_strength", "min_expression", 1),
    "expression not confirmed": ("agreement", "min_agreement", 1),
    "identity": ("similarity", "min_similarity", 1),
    "blurred": ("sharpness", "min_sharpness", 1),
    "noisy": ("noise", "max_noise", -1),
    "badly exposed": ("clipped", "max_clipped", -1),
    "blocky": ("blockiness", "max_blockiness", -1),
    "letterboxed": ("letterbox", "max_letterbox", -1),
    "occluded": ("occlusion", "max_occlusion", -1),
    "writing": ("writing", "max_writing", -1),
    "too small": ("upscale", "max_upscale", -1),
    "cut off": ("padding", "max_padding", -1),
    "tilted": ("tilt", "max_tilt", -1),
    "other background": ("background", "min_background", 1),
    "other clothes": ("clothing", "min_clothing", 1),
}
"""Verdict -> its score, the threshold's name in `PairingConfig`, and 1 where the score must reach it, -1 where it must stay under."""


def passes(scores: npt.ArrayLike, limit: float, sign: int) -> npt.NDArray[np.bool_]:
    """Whether scores reach a limit (`sign` 1), or stay under it (-1), as they are stored: in float32, in which a score can be equal to it. NaN, what was
    not computed, refuses nothing."""
    return ~(np.asarray(scores, np.float32) * sign < np.float32(limit) * sign)


ASKED = ("identity", "writing")
"""Those whose score is asked for last, of what passes all else and finds room in its quotas."""

VERIFIERS: dict[str, tuple[str, str, int]] = {
    "expression verifier": ("expression_strength", "min_expression", -1),
    "pose discriminator": ("declared_miss", "pose_tolerance", -1),
}
"""Likewise, of the verdicts on what a maker declared. The first is no threshold on its score: what was read weakly comes nearest to being accepted."""
EDITS: dict[str, tuple[str, str, int]] = {
    "pose step": ("pose_miss", "pose_tolerance", -1),
    "like intensity": ("intensity_gap", "max_intensity_gap", -1),
}
"""Likewise, of what an edit asks: who misses one has the verdict "no edit of ours"."""
READ_FROM = {
    "occlusion": ("occluded",),
    "writing": ("writing",),
    "surroundings": ("other background", "other clothes"),
    "fer": ("expression not confirmed",),
}
"""Column group -> the filters that read it; without it they refuse nothing."""
FIRST = ("accepted", "expression verifier", "pose discriminator", "no edit of ours", "expression not verifiable")
VERDICTS = (
    *FIRST,
    *LIMITS,
    "held out",
    "labelled bad",
    "split conflict",
    "bridge",
    "near-duplicate",
    "quota",
    "cell quota",
    "render failed",
)
"""All; the table of candidates stores their names."""
CODE = {name: code for code, name in enumerate(VERDICTS)}
ACCEPTED = 0
PASSED = ("accepted", "quota", "cell quota", "near-duplicate")
"""Verdicts of pairs that no filter refused; those over a quota, of a copy, and near-duplicates within a person were not asked for identity, those over a
cell's and near-duplicates of a pair of another source were."""


@dataclass
class Usage:
    """What a version that is extended has used of the quotas."""

    person: Counter[str] = field(default_factory=Counter)
    source: Counter[str] = field(default_factory=Counter)
    cell: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By person and edit."""
    dataset: Counter[int] = field(default_factory=Counter)
    """By cell (`cells`), over all people."""

    def has_room(
        self, person: str, sources: Collection[str], cells: Collection[tuple[str, str]], config: PairingConfig, counted: bool = False
    ) -> bool:
        """Whether the quotas have room for a pair and its reverse; where one is `counted` already, only the edit of the other takes any."""
        room = self.person[person] < config.per_identity and all(self.source[name] < config.per_source for name in sources)
        return (counted or room) and all(self.cell[cell] < config.per_cell for cell in cells)

    def count(self, person: str, sources: Collection[str], cells: Collection[tuple[str, str]], counted: bool = False) -> None:
        """Counts a pair and its reverse, likewise."""
        if not counted:
            self.person[person] += 1
            self.source.update(sources)
        self.cell.update(cells)

    def copy(self) -> Usage:
        """One to count on with."""
        return Usage(Counter(self.person), Counter(self.source), Counter(self.cell), self.dataset)


@dataclass(frozen=True)
class Rules:
    """All that decides beside the scores."""

    config: PairingConfig
    labels: dict[str, bool] = field(default_factory=dict)
    """Key -> good or bad, by a person's eye: beats the filters."""
    labelled_edits: Mapping[str, str] = field(default_factory=dict)
    """Key -> the edit that a person saw, of those labelled: "good" holds for no other. An earlier LaTo did not keep it."""
    frozen: frozenset[str] = frozenset()
    """Keys of an extended version's samples: accepted as they are, beyond quotas; no pair that was called bad is among them."""
    usage: Usage = field(default_factory=Usage)
    bars: Callable[[Vector], bool] = nobody
    """Whether a real face's vector is that of somebody who is held out."""
    trained: frozenset[str] = frozenset()
    """Those in train: of them none stays that is held out."""
    taken_out: Mapping[str, str] = field(default_factory=dict)
    """Key -> verdict, of samples that an extension took out: they do not come back, whatever a label says."""
    distinct: frozenset[str] = frozenset()
    """Keys of pairs that a person said are no near-duplicates: they come before others and are none; all else decides on them as on any."""
    copies: frozenset[str] = frozenset()
    """Sources that show what another shows: what no filter refuses of theirs is a near-duplicate."""
