"""Finds the mesh vertices that are the 68 landmarks: those that the face mesh network's points fall on, over many people at rest.

Run: `python -m tests.benchmarks.find_landmark_vertices FOLDER_WITH_MODELS`. Writes `data_pipeline/synthetic/landmark_vertices.json`.
"""

import json
import sys
from pathlib import Path

import numpy as np

from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, draw_person
from data_pipeline.synthetic.rasterizer import project, render
from lato.edits import Expression, Intensity
from lato.faces import FaceReader

PEOPLE = 40


def main() -> None:
    mesh, reader = load_head(), FaceReader.from_folder(Path(sys.argv[1]))
    front = np.flatnonzero((mesh.vertices[:, 2] > 0.1) & np.isin(np.arange(len(mesh.vertices)), mesh.faces[mesh.part == 0]))
    cost = np.zeros((68, len(front)))
    seen = 0
    for number in range(PEOPLE):
        image, vertices = render(mesh, draw_person(np.random.default_rng((78, number)), mesh), Expression.NEUTRAL, Intensity.PLAIN, Pose())
        found = reader.detector.detect(image)
        observation = reader.mesh.settle(image, found[0]) if found else None
        if observation is None:
            continue
        pixels = project(vertices[front], 512)
        cost += ((observation.landmarks68[:, None] - pixels[None]) ** 2).sum(-1)
        seen += 1
    # two vertices may lie on one line of sight: prefer the one nearer to the viewer
    cost = cost / seen - 2.0 * vertices[front][None, :, 2]
    chosen = front[np.argmin(cost, axis=1)]
    off = np.sqrt(np.maximum(0, cost.min(1) + 2.0 * vertices[chosen][:, 2]))
    print(f"{seen} people; root mean square distance in px of 512: median {np.median(off):.1f}, worst {off.max():.1f}")
    data = {
        "source": f"vertex nearest to each of the face mesh network's 68 points over {seen} synthetic people at rest (tests/benchmarks/find_landmark_vertices.py)",
        "base_mesh_vertices_in_head": len(mesh.vertices),
        "vertices": chosen.tolist(),
    }
    (Path(__file__).parents[2] / "data_pipeline/synthetic/landmark_vertices.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
