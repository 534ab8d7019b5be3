"""`lato edit`: one face, one instruction, one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lato.landmarks import Landmarks


def edit(
    image: Annotated[str, typer.Argument(help="A picture with a face.")],
    instruction: Annotated[str, typer.Argument(help='What to change, for example "turn the head 30 degrees to the left".')],
    pipeline: Annotated[str, typer.Option(help="Folder of a trained pipeline.")] = "work/quickstart/pipeline",
    out: Annotated[str, typer.Option(help="The picture that is written; source, landmarks and text go beside it.")] = "edited.png",
    landmarks: Annotated[
        str | None, typer.Option(help="JSON with 68 [x, y] on the 512 canvas, to draw to these and predict nothing.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Euler steps.")] = 28,
    guidance: Annotated[float, typer.Option(help="How strongly instruction and landmarks are followed.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
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
        UserError: The picture, the pipeline or the landmarks cannot be used, or no landmarks could be predicted.
    """
    import cv2
    import numpy as np
    import torch

    from infra.errors import UserError
    from infra.jobs.common import perception_models
    from lato.faces import FaceReader
    from lato.guidance import Guidance
    from lato.landmarks import draw_landmarks, validate_landmarks
    from lato.pairs import decode_image
    from lato.pipeline import LaToPipeline

    if not Path(image).is_file():
        raise UserError(f"{image}: there is no such file")
    try:
        loaded = LaToPipeline.from_pretrained(pipeline)
        picture = decode_image(Path(image).read_bytes(), image)
        given = None if landmarks is None else validate_landmarks(np.array(json.loads(Path(landmarks).read_text()), np.float32))[None]
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
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
    target = output.landmarks[0]
    if target is None:
        raise UserError(f"the predictor gave no usable landmarks ({'; '.join(output.problems[0])}). Say it otherwise, or give --landmarks.")
    edited = cv2.resize(output.images[0], (512, 512), interpolation=cv2.INTER_CUBIC)
    strip = np.hstack([draw_landmarks(points, face), draw_landmarks(target), draw_landmarks(target, edited)])
    beside, text = out.with_name(out.stem + "_landmarks.png"), out.with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, content in ((out, edited), (beside, strip)):
        cv2.imwrite(str(path), cv2.cvtColor(content, cv2.COLOR_RGB2BGR))
    said = {
        "instruction": instruction,
        "landmarks": np.round(target, 2).tolist(),
        "reasoning": output.reasoning[0],
        "problems": output.problems[0],
    }
    text.write_text(json.dumps(said, indent=1))
    return [out, beside, text]


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
