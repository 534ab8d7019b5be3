"""`lato edit`: one face, one instruction, one picture."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lato.landmarks import Landmarks

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""What the name of an edited picture may end in."""


def edit(
    image: Annotated[str, typer.Argument(help="A picture with a face.")],
    instruction: Annotated[str, typer.Argument(help='What to change, for example "turn the head 30 degrees to the left".')],
    pipeline: Annotated[str, typer.Option(help="Folder of a trained pipeline.")] = "work/quickstart/pipeline",
    out: Annotated[str, typer.Option(help="The picture that is written; source, landmarks and text go beside it.")] = "edited.png",
    landmarks: Annotated[
        str | None,  # help drops a [x, y], as markup
        typer.Option(help="JSON: 68 pairs of x, y on the 512 canvas, or what an edit wrote. To draw to these and predict nothing."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps.")] = 28,
    guidance: Annotated[float, typer.Option(min=0, help="How strongly instruction and landmarks are followed.")] = 2.0,
    # torch fails beyond 64 bits
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the noise.")] = 0,
) -> None:
    """Edits a face by instruction."""
    from infra.console import say

    written = edit_file(image, instruction, pipeline, Path(out), landmarks, steps, guidance, seed)
    for path in written:
        say(str(path))


def edit_file(
    image: str, instruction: str, pipeline: str, out: Path, landmarks: str | None, steps: int, guidance: float, seed: int
) -> list[Path]:
    """Edits one picture; returns what was written.

    Raises:
        UserError: The picture, the pipeline or the landmarks cannot be used, no landmarks could be predicted, or the files cannot be written.
    """
    import cv2
    import numpy as np
    import torch

    from infra.errors import UserError
    from infra.jobs.common import perception_models
    from lato.faces import FaceReader
    from lato.guidance import Guidance
    from lato.landmarks import draw_landmarks
    from lato.pairs import decode_image
    from lato.pipeline import LaToPipeline

    if not Path(image).is_file():
        raise UserError(f"{image}: there is no such file")
    names = _names_beside(out)
    given = None if landmarks is None else _read_landmarks(landmarks)[None]
    try:
        loaded = LaToPipeline.from_pretrained(pipeline)
        picture = decode_image(Path(image).read_bytes(), image)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    if given is not None and loaded.transformer.config["conditioning"] == "none":
        raise UserError(
            f"--landmarks {landmarks}: the pipeline {pipeline} was trained without landmarks and draws to none. Leave them out."
        )
    loaded.set_progress_bar_config(leave=False)
    reading = (loaded.faces or FaceReader.from_folder(perception_models())).read(picture)
    if reading is None:
        raise UserError(f"{image}: no face was found in it. Give a picture with one clear face.")
    face, points = _crop_face(picture, reading.mesh.landmarks68)
    output = loaded(
        face,
        instruction,
        given,
        points[None],
        num_inference_steps=steps,
        guidance=Guidance("joint", guidance),
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    if output.images[0] is None:
        raise UserError(f"the predictor gave no usable landmarks ({'; '.join(output.problems[0])}). Say it otherwise, or give --landmarks.")
    edited = cv2.resize(output.images[0], (512, 512), interpolation=cv2.INTER_CUBIC)
    target = output.landmarks[0]
    drawn = [edited] if target is None else [draw_landmarks(target), draw_landmarks(target, edited)]
    strip = np.hstack([draw_landmarks(points, face), *drawn])
    said = {
        "instruction": instruction,
        "landmarks": None if target is None else np.round(target, 2).tolist(),
        "reasoning": output.reasoning[0],
        "problems": output.problems[0],
    }
    pictures = [
        cv2.imencode(name.suffix, cv2.cvtColor(content, cv2.COLOR_RGB2BGR))[1].tobytes() for name, content in zip(names, (edited, strip))
    ]
    for name, data in zip(names, [*pictures, json.dumps(said, indent=1).encode()], strict=True):
        _write(name, data)
    return names


def _names_beside(out: Path) -> list[Path]:
    """The picture, the strip and the text that an edit writes: asked before it, as it may take long.

    Raises:
        UserError: The picture's name says no format, or one of the three cannot be written there.
    """
    from infra.errors import UserError

    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out}: expected the name of a picture, which ends in one of {', '.join(SUFFIXES)}")
    names = [out, out.with_name(out.stem + "_landmarks.png"), out.with_suffix(".json")]
    for name in names:
        if os.path.isdir(name):  # unlike Path's, it raises nothing where one may not look
            raise UserError(f"--out {out}: cannot write {name}, which is a folder. Give another name.")
    there = next(folder for folder in out.absolute().parents if os.path.lexists(folder))  # what is below it is made
    if not os.path.isdir(there):
        raise UserError(f"--out {out}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: cannot write to {there}. Choose a folder that you may write to.")
    return names


def _write(name: Path, data: bytes) -> None:
    """Writes a file; what stands in the way of it is a UserError."""
    from infra.errors import UserError
    from infra.storage import commit

    try:
        commit(str(name), data)
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror}") from error


def _read_landmarks(file: str) -> Landmarks:
    """Landmarks `(68, 2)` of a JSON file: a list of them, or the object that an edit writes beside its picture.

    Raises:
        UserError: It cannot be read, or holds something else.
    """
    import numpy as np

    from infra.errors import UserError
    from lato.landmarks import NUM_LANDMARKS, validate_landmarks

    expected = f'--landmarks {file}: expected JSON, a list of {NUM_LANDMARKS} [x, y], or an object with such a list under "landmarks"'
    try:
        content = json.loads(Path(file).read_bytes())
        points = np.array(content["landmarks"] if isinstance(content, dict) else content, np.float64)
    except OSError as error:
        raise UserError(f"--landmarks {file}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:  # whatever JSON may hold
        raise UserError(expected) from error
    if points.shape != (NUM_LANDMARKS, 2):  # a batch of one, which is valid elsewhere, is not to be drawn to here
        raise UserError(f"{expected}; given shape {points.shape}")
    try:
        return validate_landmarks(points, f"--landmarks {file}")
    except ValueError as error:
        raise UserError(str(error)) from error


def _crop_face(picture: npt.NDArray[np.uint8], points: Landmarks) -> tuple[npt.NDArray[np.uint8], Landmarks]:
    """The face as training saw faces: cut as a build cuts the crop of a pair, with its landmarks on the canvas.

    Args:
        picture: RGB `(H, W, 3)`.
        points: `(68, 2)` in its pixels.

    Returns:
        RGB `(512, 512, 3)`, and `(68, 2)` in its pixels.
    """
    import numpy as np

    from data_pipeline.crops import shared_crops
    from data_pipeline.render import crop_landmarks, cut
    from data_pipeline.rules import PairingConfig
    from lato.pairs import decode_image

    height, width = picture.shape[:2]
    only = np.array([0])  # a pair of the face with itself
    crops, _ = shared_crops(points[None].astype(np.float64), np.array([[width, height]], np.float64), only, only, PairingConfig().margin)
    left, top, side = crops[0].tolist()
    crop = (left, top, side)
    return decode_image(cut(picture, crop), "crop"), crop_landmarks({"landmarks": points}, crop)
