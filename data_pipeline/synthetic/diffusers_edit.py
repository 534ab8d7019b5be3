"""Photos edited by any image-edit pipeline of diffusers, by name: FLUX.1-Kontext, InstructPix2Pix, Qwen-Image-Edit ..."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from data_pipeline.image_set import Declared
from infra.config import Config
from infra.errors import UserError
from infra.place import NO_ACTORS, RuntimeEnv
from lato.edits import Edit, Expression, Intensity, instruction_for
from lato.faces import FaceReader
from lato.faces.detect import Box
from lato.faces.mesh import MeshObservation

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]
_POSES = (Edit(yaw=30), Edit(yaw=-30), Edit(pitch=-30))
_KNOWN = (*(Edit(expression=expression, intensity=intensity) for expression in list(Expression)[1:] for intensity in Intensity), *_POSES)
_STEP = 16
"""Sides of what is drawn are at least multiples of so many pixels."""
_ASPECT = 0.03
"""Share by which width over height of a picture may differ from what its pipeline was given: some round sides anew, to 32 pixels of a thousand."""


class DiffusersConfig(Config):
    """Which pipeline, and how many edits of each photo."""

    pipeline: str = "black-forest-labs/FLUX.1-Kontext-dev"
    """Name on the hub, or a local folder. Its licence is the user's to check: what it makes carries the photo's."""
    licence: str = "unknown"
    """Licence of its weights; goes into the version's index and card."""
    edits: int = Field(default=4, ge=1, le=len(_KNOWN))
    """Pictures of each photo, drawn from six expressions, each at three intensities, and three poses."""
    steps: int = Field(default=28, ge=1)
    """Of the sampler."""
    size: int = Field(default=1024, ge=32)
    """Pixels of the longer side of what is edited and, where the pipeline can be told, of what it draws; both sides are rounded to what it can draw.
    FLUX.1-Kontext and Qwen-Image-Edit were trained at about 1024, InstructPix2Pix at 512."""
    options: dict[str, bool | int | float | str] = {}
    """Further arguments of the pipeline's call, passed on as they are written: guidance_scale, max_sequence_length, negative_prompt ... One that is
    passed anyway, such as width, takes its place."""
    seed: int = 0
    """Another seed, other edits."""
    workers: int = Field(default=1, ge=0)
    """Ray actors; 0 works in this process."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of each."""
    runtime_env: RuntimeEnv = {}
    """Ray's environment of these workers: a pipeline may want another torch or diffusers. Empty is the driver's."""

    @model_validator(mode="after")
    def _environments_have_actors(self) -> DiffusersConfig:
        if not self.workers and self.runtime_env:
            raise ValueError(NO_ACTORS)
        return self


class WrongShapeError(ValueError):
    """A pipeline drew a picture of another shape than the photo's."""


class DiffusersEditor:
    """Runs the pipeline."""

    def __init__(self, config: DiffusersConfig, reader: FaceReader) -> None:
        import torch
        from diffusers import DiffusionPipeline

        self._config, self._reader = config, reader
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        try:
            self._pipeline: Any = DiffusionPipeline.from_pretrained(config.pipeline, torch_dtype=dtype).to(self._device)
        except (OSError, ValueError) as error:
            raise UserError(f"synthetic.diffusers.pipeline: cannot load {config.pipeline}: {error}") from error
        self._pipeline.set_progress_bar_config(disable=True)

    def edit(self, photo: npt.NDArray[np.uint8], seed: int, box: Box | None) -> list[tuple[bytes, Declared | None]]:
        """Edits of one photo; empty where no face is found in it. Whether they show what was asked is for verifier and discriminator to say.

        Raises:
            WrongShapeError: What is drawn of it has another shape, so that no place in it is a place of the photo.
        """
        import torch
        from PIL import Image

        face = self._reader.read(photo, box)
        if face is None:
            return []
        given = Image.fromarray(_fit(photo, self._config.size, self._step()))
        pictures: list[tuple[bytes, Declared | None]] = []
        for number, edit in enumerate(choose_edits(seed, self._config.edits)):
            made = self._pipeline(
                image=given,
                prompt=instruction_for(edit, f"{seed}_{number}", "train").text,
                num_inference_steps=self._config.steps,
                generator=torch.Generator(self._device).manual_seed(seed + number),
                **self._arguments(given),
            ).images[0]
            _check_shape(given, made)
            # back to the photo's own size, so that the two share a frame
            image = np.asarray(made.convert("RGB").resize((photo.shape[1], photo.shape[0]), Image.Resampling.LANCZOS))
            jpg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _JPEG)[1].tobytes()
            pictures.append((jpg, declare(face.mesh, edit)))
        return pictures

    def _step(self) -> int:
        """Pixels of which both sides must be a multiple: some pipelines pack latents two by two."""
        return max(_STEP, 2 * getattr(self._pipeline, "vae_scale_factor", 1))

    def _arguments(self, given: Picture) -> dict[str, Any]:
        """The options, and what has a picture drawn of the size of the one given, as far as the call knows it.

        FLUX.1-Kontext draws a square unless it is told, brings width and height to an area of its own, and what it is given to the nearest of its own shapes.
        """
        options = self._config.options
        wanted: dict[str, Any] = {"width": given.width, "height": given.height, "_auto_resize": False} | options
        wanted = {"max_area": wanted["width"] * wanted["height"]} | wanted
        known = inspect.signature(self._pipeline.__call__).parameters
        return {name: value for name, value in wanted.items() if name in known or name in options}


def _check_shape(given: Picture, made: Picture) -> None:
    (width, height), (width_made, height_made) = given.size, made.size
    if abs(math.log(width_made * height / (height_made * width))) > _ASPECT:
        raise WrongShapeError(
            f"given {width} x {height} pixels, the pipeline drew {width_made} x {height_made}, and stretched it would show another face"
        )


def declare(photo: MeshObservation, edit: Edit) -> Declared:
    """What an edited photo should show: the expression that was asked, at the photo's pose and the steps that were asked. Landmarks are the photo's."""
    pose = {axis: getattr(photo, axis) + getattr(edit, axis) for axis in ("yaw", "pitch", "roll")}
    points = [(round(float(x), 2), round(float(y), 2)) for x, y in photo.landmarks68]
    return Declared(expression=edit.expression, intensity=edit.intensity, landmarks=points, of_photo=True, **pose)


def choose_edits(seed: int, count: int) -> list[Edit]:
    """`count` different edits of a photo, by its seed."""
    order = np.random.default_rng(seed).permutation(len(_KNOWN))
    return [_KNOWN[int(number)] for number in order[:count]]


def _fit(photo: npt.NDArray[np.uint8], size: int, step: int) -> npt.NDArray[np.uint8]:
    """An RGB photo `(H, W, 3)` with its longer side at about `size` pixels, both sides a multiple of `step`."""
    scale = size / max(photo.shape[:2])
    width, height = (max(step, round(side * scale / step) * step) for side in (photo.shape[1], photo.shape[0]))
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
