"""Landmarks for the proofs: synthetic people (exact) and real clips (read by the mesh network); no picture is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.decode import sample_frames
from data_pipeline.synthetic.anny_people import landmark_vertices
from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, actions_for, draw_person, pose_vertices
from data_pipeline.synthetic.rasterizer import project
from infra import assets
from lato.edits import Expression, Intensity
from lato.faces.detect import FaceDetector
from lato.faces.mesh import FaceMesh
from lato.faces.reader import MODEL_FILES
from lato.landmarks import Landmarks

TRAIN_CLIPS = {"franck": 2.0}
"""Clip -> frames a second that are read."""
HELD_OUT_CLIPS = {"carphone": 6.0, "single_face": 6.0}


def synthetic_landmarks(people: range, faces: int) -> Landmarks:
    """(P * faces, 68, 2) canvas px: each person with drawn expressions and poses."""
    mesh = load_head()
    found = []
    for number in people:
        rng = np.random.default_rng((17, number))
        person = draw_person(rng, mesh)
        for _ in range(faces):
            expression, intensity = list(Expression)[rng.integers(0, 7)], list(Intensity)[rng.integers(0, 3)]
            pose = Pose(float(rng.uniform(-40, 40)), float(rng.uniform(-30, 15)), float(rng.uniform(-35, 35)))
            found.append(project(pose_vertices(mesh, person, actions_for(expression, intensity), pose)[landmark_vertices()], 512))
    return np.stack(found).astype(np.float32)


def clip_landmarks(clips: dict[str, float]) -> Landmarks:
    """(N, 68, 2) canvas px of the faces in some clips, each on a square of its own as the builder cuts it."""
    from infra.jobs.common import perception_models

    folder, found = perception_models(), []
    detector, mesh = FaceDetector.from_file(folder / MODEL_FILES["detector"]), FaceMesh.from_file(folder / MODEL_FILES["mesh"])
    for name, fps in clips.items():
        for frame in sample_frames(str(assets.path(name)), fps):
            for detection in detector.detect(frame.image)[:1]:
                observation = mesh.observe(frame.image, detection)
                if observation is not None:
                    found.append(place_on_canvas(observation.landmarks68))
    return np.stack(found)


def place_on_canvas(points: npt.NDArray[np.floating]) -> Landmarks:
    """Landmarks (68, 2) in any picture's pixels -> canvas px of a square of 1.8 times their extent, with room for hair."""
    low, high = points.min(0), points.max(0)
    extent = float((high - low).max())
    centre = (low + high) / 2 - [0, 0.12 * extent]
    return ((points - centre) * (512 / (1.8 * extent)) + 256).astype(np.float32)


def read_landmarks(folder: Path, people: int) -> dict[str, Landmarks]:
    """Training and held-out landmarks; held-out people, synthetic or real, are in no training sample. Kept in `folder` for the next call."""
    makers = {
        f"train_synthetic-{people}": lambda: synthetic_landmarks(range(people), 6),
        "held_out_synthetic": lambda: synthetic_landmarks(range(100000, 100300), 4),
        "train_clips": lambda: clip_landmarks(TRAIN_CLIPS),
        "held_out_clips": lambda: clip_landmarks(HELD_OUT_CLIPS),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        if not (folder / f"{name}.npy").is_file():
            np.save(folder / "made.npy", make())
            (folder / "made.npy").replace(folder / f"{name}.npy")
    return {name.split("-")[0]: np.load(folder / f"{name}.npy", allow_pickle=False) for name in makers}
