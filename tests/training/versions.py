"""Small published versions for tests: the real packer, pictures of noise."""

import cv2
import numpy as np

from data_pipeline.pack import PackConfig, Planned, pack
from lato.edits import Edit, Expression, instruction_for
from lato.pairs import FacePair, FaceState, PairMeta, Provenance

EDITS = (Edit(expression=Expression.HAPPY), Edit(yaw=30), Edit(yaw=-30, expression=Expression.SAD), Edit(roll=30), Edit(pitch=-30))


def make_pair(number, split, side=64, name="k", far=()):
    """A pair of noise that is a function of its number; smooth, so that a JPEG keeps its size small. In those of `far` a landmark moves by 256 px."""
    rng = np.random.default_rng(number)
    key = f"{name}{number:04d}"
    small = side // 8
    pictures = [
        cv2.resize(rng.integers(0, 255, (small, small, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC) for _ in range(2)
    ]
    jpegs = [cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for picture in pictures]
    state = FaceState(yaw=0, pitch=0, roll=0, expression=Expression.NEUTRAL, expression_intensity=0, frame=0, pts=0)
    edit = EDITS[number % len(EDITS)]
    text = instruction_for(edit, key, split)
    origin = {"source_id": f"s{number}", "source_sha256": "0" * 64, "kind": "synthetic", "identity": f"p{number}", "licence": "test"}
    meta = PairMeta(
        instruction=text.text, template=text.template, edit=edit, source=state, target=state, identity_similarity=None, quality={},
        crop=(0, 0, 512), split=split, provenance=Provenance(**origin, scope="same_person", models={}),
    )  # fmt: skip
    landmarks = rng.uniform(120, 380, (1, 68, 2)) + rng.normal(0, 15, (2, 68, 2))
    if number in far:
        landmarks[:, 8, 0] = (400, 144)
    return FacePair(key, *jpegs, landmarks.astype(np.float32), meta)


def publish(folder, counts, per_shard=8, first=0, side=64, name="k", far=()):
    """Packs a version: `counts` samples by split, numbered from `first`; returns its digest."""
    planned, number = [], first
    for split, count in counts.items():
        for _ in range(count):
            columns = {
                "source_id": f"s{number}",
                "identity": f"p{number}",
                "licence": "test",
                "kind": "synthetic",
                "edit_kind": "expression",
            }
            columns["instruction"] = make_pair(number, split, side, name).meta.instruction
            read = lambda columns=columns, number=number, split=split: (columns, make_pair(number, split, side, name, far))  # noqa: E731
            planned.append(Planned(f"{name}{number:04d}", split, read))
            number += 1
    return pack(planned, PackConfig(samples_per_shard=per_shard), str(folder), str(folder).rsplit("/", 1)[-1], "test")
