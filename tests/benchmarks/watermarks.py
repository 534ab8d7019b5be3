"""How well the writing filter sees watermarks: drawn across the face, below the chin and over the brows, opaque and at 40 %, slanted and upright, and how often
it refuses clean faces.

`python -m tests.benchmarks.watermarks` (about three minutes): the catalogue's clips and photos and a hundred drawn people.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from data_pipeline.chips import cut_chip
from data_pipeline.rules import PairingConfig
from data_pipeline.synthetic.anny_people import AnnyConfig, draw_set
from infra import assets
from infra.console import table
from lato.faces.reader import FaceReader
from lato.faces.writing import TextDetector

CLIPS = {"single_face": 6, "face_noface": 8, "noface_face": 8, "carphone": 15, "franck": 100}
"""Every so many frames."""
PHOTOS = ("biden", "obama", "obama2", "obama3", "t1")
PLACES = {"across the face": 0.5, "below the chin": 1.25, "over the brows": -0.05}
"""The baseline, in heights of the landmarks below their top."""
ANGLES = {"slanted": 30.0, "steep": 60.0, "upright": 90.0}
"""Degrees by which one across the face is turned."""
TEXT = "SAMPLE WATERMARK"
ELSEWHERE = 10_000
"""Pixels by which landmarks are moved so that no face is where the network sees text."""
Picture = npt.NDArray[np.uint8]


def pictures() -> Iterator[tuple[str, Picture]]:
    """Whose, and RGB `(H, W, 3)`."""
    for name, step in CLIPS.items():
        capture = cv2.VideoCapture(str(assets.path(name)))
        number = 0
        while capture.grab():
            if number % step == 0:
                yield "clips", cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB).astype(np.uint8)
            number += 1
    for name in PHOTOS:
        yield "photos", cv2.cvtColor(cv2.imread(str(assets.path(name))), cv2.COLOR_BGR2RGB).astype(np.uint8)
    for number in range(100):
        for jpg in draw_set(AnnyConfig(people=100, images=2), number)[0]:
            yield "drawn", cv2.cvtColor(cv2.imdecode(np.frombuffer(jpg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.uint8)


def mark(image: Picture, landmarks: npt.NDArray[np.floating], place: float, opacity: float, shade: int, angle: float = 0.0) -> Picture:
    """A picture with a watermark 1.6 times as wide as the face at landmarks `(68, 2)`, turned by so many degrees about its middle."""
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    scale = 1.6 * float(high[0] - low[0]) / cv2.getTextSize(TEXT, cv2.FONT_HERSHEY_SIMPLEX, 1, 2)[0][0]
    thick = max(1, round(2 * scale))
    width = cv2.getTextSize(TEXT, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)[0][0]
    corner = int((low[0] + high[0] - width) / 2), int(low[1] + place * (high[1] - low[1]))
    ink = cv2.putText(np.zeros(image.shape[:2], np.uint8), TEXT, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    if angle:
        turn = cv2.getRotationMatrix2D((corner[0] + width / 2, float(corner[1])), angle, 1.0)
        ink = cv2.warpAffine(ink, turn, ink.shape[::-1])
    cover = ink[:, :, None] * (opacity / 255)
    return (image * (1 - cover) + shade * cover).round().astype(np.uint8)


def main() -> None:
    """Prints the share of faces that the filter refuses, by what was drawn."""
    limit = PairingConfig().max_writing

    def share(image: Picture, points: npt.NDArray[np.floating]) -> float:
        chip = cut_chip(image, points)
        return detector.share(chip.image(), chip.place(points))

    reader, detector = FaceReader.from_folder(assets.path("yunet").parent), TextDetector.from_file(assets.path("text_detector"))
    read = [(kind, image, found.mesh.landmarks68) for kind, image in pictures() if (found := reader.read(image))]
    rows = []
    for kind in ("clips", "photos", "drawn"):
        shares = [share(image, points) for whose, image, points in read if whose == kind]
        rows.append([f"nothing, {kind}", str(len(shares)), f"{np.mean(np.array(shares) > limit):.1%}"])
    drawn = [(cut_chip(image, points), points) for whose, image, points in read if whose == "drawn"]
    shares = [detector.share(chip.image(), chip.place(points) + ELSEWHERE) for chip, points in drawn]
    rows.append(["nothing, drawn, were a tall blob on a face text too", str(len(shares)), f"{np.mean(np.array(shares) > limit):.1%}"])
    real = [(image, points) for kind, image, points in read if kind != "drawn"]
    for name, place in PLACES.items():
        for opacity in (1.0, 0.4):
            for shade, called in ((255, "white"), (0, "black")):
                shares = [share(mark(image, points, place, opacity, shade), points) for image, points in real]
                rows.append([f"{called}, {opacity:.0%}, {name}", str(len(shares)), f"{np.mean(np.array(shares) > limit):.1%}"])
    for name, angle in ANGLES.items():
        for shade, called in ((255, "white"), (0, "black")):
            shares = [share(mark(image, points, PLACES["across the face"], 1.0, shade, angle), points) for image, points in real]
            rows.append([f"{called}, 100%, across the face, {name}", str(len(shares)), f"{np.mean(np.array(shares) > limit):.1%}"])
    table(f"Refused as writing (limit {limit:g})", ["drawn", "faces", "refused"], rows)


if __name__ == "__main__":
    main()
