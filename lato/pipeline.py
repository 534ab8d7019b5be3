"""LaToPipeline: instruction -> geometry -> appearance, a diffusers pipeline whose folder edits faces by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from lato.codec import decode_latents, encode_images, from_tokens, spatial_factor, to_tokens
from lato.conditioning import encode_condition
from lato.faces import FaceReader
from lato.flow import euler_step, sampling_sigmas, shift_for
from lato.guidance import Guidance, guided_velocity
from lato.landmarks import CANVAS, Canvas, Landmarks, validate_landmarks
from lato.predictor import LandmarkPredictor, Prediction, PredictorSettings
from lato.text_encoder import TextEncoder, TextEncoderSettings, pad_states
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer

Picture = Image.Image | npt.NDArray[np.uint8]
StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
OutputType = Literal["pil", "np", "pt"]


@dataclass
class LaToPipelineOutput(BaseOutput):
    """What an edit gives, one entry a picture.

    Attributes:
        images: PIL pictures, uint8 (H, W, 3) arrays, or (3, H, W) tensors in 0..1; None where no landmarks could be predicted.
        landmarks: (68, 2) canvas px that each was drawn to; None where there are none.
        source_landmarks: (68, 2) canvas px of the source, given or read; None where unknown.
        reasoning: The predictor's text; empty where landmarks were given.
        problems: What the predictor's checks say, or why there is no picture.
    """

    images: list[Any]
    landmarks: list[Landmarks | None]
    source_landmarks: list[Landmarks | None]
    reasoning: list[str]
    problems: list[tuple[str, ...]]


class LaToPipeline(DiffusionPipeline):
    """Edits faces by instruction.

    Args:
        transformer: Draws.
        landmark_tokenizer: Landmarks -> tokens.
        vae: Image codec, an AutoencoderKL or a SpaceToDepthCodec.
        text_encoder: Qwen2.5-VL that reads instruction and source.
        processor: Its processor.
        predictor: Qwen-VL that predicts landmarks; None where landmarks are always given.
        predictor_processor: Its processor.
        image_size: Pictures are drawn at about its square in pixels, each at its own aspect ratio.
        text_settings: Of `TextEncoderSettings`.
        predictor_settings: Of `PredictorSettings`.
    """

    model_cpu_offload_seq = "predictor->text_encoder->landmark_tokenizer->transformer->vae"
    _optional_components = ["predictor", "predictor_processor"]

    def __init__(
        self,
        transformer: LaToTransformer,
        landmark_tokenizer: LandmarkTokenizer,
        vae: Any,
        text_encoder: Any,
        processor: Any,
        predictor: Any = None,
        predictor_processor: Any = None,
        image_size: int = 512,
        text_settings: dict[str, Any] | None = None,
        predictor_settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            landmark_tokenizer=landmark_tokenizer,
            vae=vae,
            text_encoder=text_encoder,
            processor=processor,
            predictor=predictor,
            predictor_processor=predictor_processor,
        )
        self.register_to_config(image_size=image_size, text_settings=text_settings, predictor_settings=predictor_settings)
        self.faces: FaceReader | None = None

    @classmethod
    def from_parts(
        cls,
        transformer: LaToTransformer,
        landmark_tokenizer: LandmarkTokenizer,
        vae: Any,
        text: TextEncoder,
        predictor: LandmarkPredictor | None = None,
        faces: FaceReader | None = None,
        image_size: int = 512,
    ) -> LaToPipeline:
        """A pipeline from a text encoder and a predictor that carry their processors and settings."""
        pipeline = cls(
            transformer.eval(),
            landmark_tokenizer.eval(),
            vae,
            text.model,
            text.processor,
            predictor and predictor.model,
            predictor and predictor.processor,
            image_size,
            asdict(text.settings),
            asdict(predictor.settings) if predictor else None,
        )
        pipeline.faces = faces
        return pipeline

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> LaToPipeline:
        """Loads a folder written by `save_pretrained`; options are those of diffusers. Nothing is downloaded.

        Raises:
            FileNotFoundError: It is no pipeline's folder.
            ValueError: A face model is not the one that was saved.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{folder}: no LaTo pipeline here (model_index.json is missing)")
        pipeline = super().from_pretrained(str(folder), local_files_only=True, **options)
        if (folder / "faces").is_dir():
            pipeline.faces = FaceReader.from_folder(folder / "faces")
        return pipeline

    @classmethod
    def from_released(cls, folder: str | Path, **sizes: Any) -> LaToPipeline:
        """Loads the folder of released files; see `lato.conversion.pipeline_from_released`."""
        from lato.conversion import pipeline_from_released

        return pipeline_from_released(Path(folder), **sizes)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes every component, and the face models under `faces/`, to a folder that edits by itself."""
        super().save_pretrained(str(save_directory), **options)
        if self.faces is not None:
            self.faces.save(Path(save_directory) / "faces")

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        instruction: str | Sequence[str],
        landmarks: npt.NDArray[np.floating] | None = None,
        source_landmarks: npt.NDArray[np.floating] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        guidance: Guidance | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> LaToPipelineOutput:
        """Edits pictures.

        Args:
            image: One RGB picture or several, of any sizes.
            instruction: As many texts.
            landmarks: (B, 68, 2) canvas px to draw to; NaN leaves a point to the model (null token). None predicts them.
            source_landmarks: (B, 68, 2) canvas px; None reads them off the pictures where they are needed.
            height: Of the result in pixels, a multiple of a token's side (16 with the released VAE); None for the source's aspect ratio at the pipeline's size.
            width: As `height`.
            num_inference_steps: Euler steps.
            guidance: How strongly conditions are followed; joint guidance at 4 by default.
            generator: Of the noise; a list of B makes a batch equal its pictures alone.
            output_type: `pil`, `np` or `pt`.
            callback_on_step_end: Called as (pipeline, step, sigma, {"tokens": (B, N, C)}) after every step; tokens that it returns replace these.

        Raises:
            ValueError: An argument does not fit; says which.
        """
        # 1. Check inputs
        images, instructions = _as_lists(image, instruction)
        sizes = [self._output_size(picture, height, width) for picture in images]
        if isinstance(generator, list) and len(generator) != len(images):
            raise ValueError(f"generator: expected one, or one for each of {len(images)} images, given {len(generator)}")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps: expected at least 1, given {num_inference_steps}")

        # 2. Geometry: given, or predicted from the instruction
        targets, sources = self._find_landmarks(images, instructions, landmarks, source_landmarks)

        # 3. Appearance, pictures of one size together
        drawn: list[Any] = [None] * len(images)
        drawable = self.transformer.config["conditioning"] == "none"
        usable = [number for number, target in enumerate(targets) if drawable or target.landmarks is not None]
        for size in dict.fromkeys(sizes[number] for number in usable):
            rows = [number for number in usable if sizes[number] == size]
            unknown = np.full((68, 2), np.nan, np.float32)
            pixels = self._draw(
                [images[row] for row in rows],
                [instructions[row] for row in rows],
                np.stack([unknown if (points := targets[row].landmarks) is None else points for row in rows]),
                size,
                num_inference_steps,
                guidance or Guidance(),
                [generator[row] for row in rows] if isinstance(generator, list) else generator,
                callback_on_step_end,
            )
            for row, picture in zip(rows, pixels, strict=True):
                drawn[row] = _to_output(picture, output_type)
        return LaToPipelineOutput(
            images=drawn,
            landmarks=[target.landmarks for target in targets],
            source_landmarks=[None if source is None or np.isnan(source).any() else source for source in sources],
            reasoning=[target.reasoning for target in targets],
            problems=[target.problems for target in targets],
        )

    def _output_size(self, picture: npt.NDArray[np.uint8], height: int | None, width: int | None) -> tuple[int, int]:
        """(height, width) in pixels: as asked, or the source's aspect ratio, area at most the pipeline's, sides multiples of a token's."""
        unit = 2 * spatial_factor(self.vae)
        if (height is None) != (width is None):
            raise ValueError(f"height, width: expected both or neither, given {height} and {width}")
        if height is not None and width is not None:
            if height % unit or width % unit or min(height, width) <= 0:
                raise ValueError(f"height, width: expected multiples of {unit}, given {height} x {width}")
            return height, width
        rows, columns = picture.shape[:2]
        scale = self.config["image_size"] / math.sqrt(rows * columns)
        return max(unit, int(rows * scale + 1e-6) // unit * unit), max(unit, int(columns * scale + 1e-6) // unit * unit)

    def _find_landmarks(
        self,
        images: list[npt.NDArray[np.uint8]],
        instructions: list[str],
        given: npt.NDArray[np.floating] | None,
        sources: npt.NDArray[np.floating] | None,
    ) -> tuple[list[Prediction], list[Landmarks | None]]:
        """What each picture is drawn to, and its source landmarks."""
        expected = (len(images), 68, 2)
        for name, points in (("landmarks", given), ("source_landmarks", sources)):
            if points is not None and points.shape != expected:
                raise ValueError(f"{name}: expected shape {expected}, given {points.shape}")
        if given is not None:
            validate_landmarks(np.where(np.isnan(given), CANVAS.width / 2, given))
            known = [None] * len(images) if sources is None else list(np.asarray(sources, np.float32))
            return [Prediction(np.asarray(row, np.float32), "") for row in given], known
        if self.transformer.config["conditioning"] == "none":
            return [Prediction(None, "")] * len(images), [None] * len(images)
        if self.predictor is None:
            raise ValueError("landmarks: this pipeline has no predictor, so landmarks must be given")
        if sources is None:
            if self.faces is None:
                raise ValueError(
                    "source_landmarks: needed to predict the target's, and this pipeline has no face models to read them; give them"
                )
            sources = np.stack([self._read_landmarks(image) for image in images])
        readable = [row for row in range(len(images)) if np.isfinite(sources[row]).all()]
        found = [Prediction(None, "", ("no face was found in the picture",))] * len(images)
        if readable:
            settings = PredictorSettings(**(self.config["predictor_settings"] or {}))
            predictor = LandmarkPredictor(self.predictor, self.predictor_processor, settings)
            predictions = predictor.predict([images[row] for row in readable], sources[readable], [instructions[row] for row in readable])
            for row, prediction in zip(readable, predictions, strict=True):
                found[row] = prediction
        return found, list(np.asarray(sources, np.float32))

    def _read_landmarks(self, image: npt.NDArray[np.uint8]) -> Landmarks:
        """(68, 2) canvas px of the largest face; NaN where there is none."""
        assert self.faces is not None
        reading = self.faces.read(image)
        if reading is None:
            return np.full((68, 2), np.nan, np.float32)
        return Canvas(image.shape[1], image.shape[0]).convert(reading.mesh.landmarks68, CANVAS)

    def _draw(
        self,
        images: list[npt.NDArray[np.uint8]],
        instructions: list[str],
        landmarks: npt.NDArray[np.floating],
        size: tuple[int, int],
        steps: int,
        guidance: Guidance,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: StepCallback | None,
    ) -> Tensor:
        """Pictures of one size -> (B, 3, H, W) in [-1, 1]."""
        batch, device = len(images), self._execution_device
        unit = 2 * spatial_factor(self.vae)
        grid = (size[0] // unit, size[1] // unit)

        # 4. Landmarks in the transformer's form; a missing one is a null token
        points = torch.from_numpy(np.asarray(landmarks, np.float32)).to(device)
        condition = encode_condition(self.transformer.config["conditioning"], points, grid, self.landmark_tokenizer, self.vae)

        # 5. Source tokens; text with the instruction, then without: the null text still sees the source
        resized = [resize(image, size) for image in images]
        source = to_tokens(encode_images(self.vae, to_tensor(resized).to(device)))
        settings = TextEncoderSettings(**(self.config["text_settings"] or {}))
        encoder = TextEncoder(self.text_encoder, self.processor, settings)
        states = [state for texts in (instructions, [""] * batch) for state in encoder.encode(resized, list(texts))]
        released = self.transformer.config["text_padding"] == "released"
        text, text_mask = pad_states(states, settings.max_length if released else None)

        # 6. Denoise
        tokens = randn_tensor(tuple(source.shape), generator=generator, device=device, dtype=torch.float32)
        sigmas = sampling_sigmas(steps, shift_for(grid[0] * grid[1])).to(device)
        with self.progress_bar(total=steps) as progress:
            for step in range(steps):

                def predict(keep_landmarks: Tensor, keep_text: Tensor, x: Tensor = tokens, sigma: Tensor = sigmas[step]) -> Tensor:
                    copies = len(keep_text) // batch
                    row = torch.arange(batch, device=device).repeat(copies) + torch.where(keep_text, 0, batch)
                    return self.transformer(
                        noise_tokens=x.repeat(copies, 1, 1),
                        source_tokens=source.repeat(copies, 1, 1),
                        grid=grid,
                        timestep=sigma.expand(batch * copies),
                        text_embeddings=text[row],
                        text_mask=text_mask[row],
                        **condition.arguments(keep_landmarks),
                    ).float()

                tokens = euler_step(tokens, guided_velocity(predict, batch, guidance, device), sigmas[step], sigmas[step + 1])
                if callback is not None:
                    tokens = (callback(self, step, sigmas[step], {"tokens": tokens}) or {}).get("tokens", tokens)
                progress.update()

        # 7. Decode
        pictures = decode_latents(self.vae, from_tokens(tokens, grid))
        self.maybe_free_model_hooks()
        return pictures


def _as_lists(image: Any, instruction: Any) -> tuple[list[npt.NDArray[np.uint8]], list[str]]:
    single = isinstance(image, Image.Image) or (isinstance(image, np.ndarray) and image.ndim == 3)
    images = [
        np.asarray(picture.convert("RGB")) if isinstance(picture, Image.Image) else np.asarray(picture)
        for picture in ([image] if single else image)
    ]
    instructions = [instruction] if isinstance(instruction, str) else list(instruction)
    if len(images) != len(instructions) or not images:
        raise ValueError(f"instruction: expected one for each of {len(images)} images, given {len(instructions)}")
    for number, picture in enumerate(images):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"image {number}: expected PIL or uint8 (H, W, 3), given {picture.dtype} {picture.shape}")
    return images, instructions


def resize(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """RGB uint8 (H, W, 3) -> the same at (height, width): areas averaged when shrinking, bicubic when growing."""
    if image.shape[:2] == size:
        return image
    method = Image.Resampling.BOX if image.shape[0] > size[0] else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), method))


def to_tensor(images: list[npt.NDArray[np.uint8]]) -> Tensor:
    """RGB uint8 pictures of one size -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_picture(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """(3, H, W) in [-1, 1], values clipped -> RGB uint8 (H, W, 3)."""
    values: npt.NDArray[np.uint8] = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return values


def _to_output(pixels: Tensor, kind: OutputType) -> Any:
    if kind == "pt":
        return (pixels.float().clamp(-1, 1) + 1) / 2
    picture = to_picture(pixels)
    return Image.fromarray(picture) if kind == "pil" else picture
