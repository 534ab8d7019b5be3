"""LaToPipeline: instruction -> geometry -> appearance, as a self-contained folder of diffusers and transformers components."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from lato.codec import SpaceToDepthCodec, decode_latents, encode_images, from_tokens, spatial_factor, to_tokens
from lato.flow import euler_step, sampling_sigmas, shift_for
from lato.guidance import Guidance, guided_velocity
from lato.landmarks import CANVAS, Landmarks, validate_landmarks
from lato.predictor import LandmarkPredictor
from lato.text_encoder import TextEncoder, pad_states
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer

_CODECS = {"SpaceToDepthCodec": SpaceToDepthCodec, "AutoencoderKL": AutoencoderKL}
StepCallback = Callable[[int, int, Tensor], None]


@dataclass
class LaToPipelineOutput(BaseOutput):
    """What an edit gives.

    Attributes:
        images: RGB uint8 (H, W, 3), as many as sources.
        landmarks: (68, 2) canvas px that each was drawn to; None where none could be predicted, and then the image is the source.
        reasoning: The predictor's text; empty where landmarks were given.
        problems: What the predictor's checks say.
    """

    images: list[npt.NDArray[np.uint8]]
    landmarks: list[Landmarks | None]
    reasoning: list[str]
    problems: list[tuple[str, ...]]


class LaToPipeline:
    """Edits faces by instruction."""

    def __init__(
        self,
        transformer: LaToTransformer,
        tokenizer: LandmarkTokenizer,
        text_encoder: TextEncoder,
        codec: Any,
        predictor: LandmarkPredictor | None,
        image_size: int = 512,
    ) -> None:
        self.transformer, self.tokenizer, self.text_encoder = transformer.eval(), tokenizer.eval(), text_encoder
        self.codec, self.predictor, self.image_size = codec, predictor, image_size

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LaToPipeline:
        """Loads a folder written by `save_pretrained`.

        Raises:
            FileNotFoundError: It is no pipeline's folder.
        """
        folder = Path(folder)
        index = folder / "model_index.json"
        if not index.is_file():
            raise FileNotFoundError(f"{folder}: no LaTo pipeline here (model_index.json is missing)")
        settings = json.loads(index.read_text())
        codec = _CODECS[settings["codec"]].from_pretrained(folder / "vae")
        return cls(
            LaToTransformer.from_pretrained(folder / "transformer"),
            LandmarkTokenizer.from_pretrained(folder / "landmark_tokenizer"),
            TextEncoder.from_pretrained(folder / "text_encoder"),
            codec,
            LandmarkPredictor.from_pretrained(folder / "predictor") if settings["predictor"] else None,
            settings["image_size"],
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes every component below a folder that edits by itself."""
        folder = Path(folder)
        self.transformer.save_pretrained(folder / "transformer")
        self.tokenizer.save_pretrained(folder / "landmark_tokenizer")
        self.text_encoder.save_pretrained(folder / "text_encoder")
        self.codec.save_pretrained(folder / "vae")
        if self.predictor:
            self.predictor.save_pretrained(folder / "predictor")
        index = {
            "_class_name": "LaToPipeline",
            "codec": type(self.codec).__name__,
            "predictor": self.predictor is not None,
            "image_size": self.image_size,
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=1))

    @torch.no_grad()
    def __call__(
        self,
        images: list[npt.NDArray[np.uint8]],
        instructions: list[str],
        landmarks: npt.NDArray[np.floating] | None = None,
        source_landmarks: npt.NDArray[np.floating] | None = None,
        num_inference_steps: int = 28,
        guidance: Guidance | None = None,
        seed: int = 0,
        callback: StepCallback | None = None,
    ) -> LaToPipelineOutput:
        """Edits pictures.

        Args:
            images: RGB uint8 (H, W, 3) each; squares.
            instructions: As many texts.
            landmarks: (B, 68, 2) canvas px to draw to; rows of NaN are left to the model (null tokens). None predicts all of them.
            source_landmarks: (B, 68, 2) canvas px, needed to predict.
            num_inference_steps: Euler steps.
            guidance: How strongly conditions are followed; joint guidance at 4 by default.
            seed: Of the noise; picture i of a batch gets `seed + i`, so a batch equals its pictures alone.
            callback: Called after every step with (step, steps, tokens).

        Raises:
            ValueError: An argument does not fit; says which.
        """
        # 1. Check inputs
        if len(images) != len(instructions) or not images:
            raise ValueError(f"instructions: expected one for each of {len(images)} images, given {len(instructions)}")
        for number, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(f"images[{number}]: expected uint8 (H, W, 3), given {image.dtype} {image.shape}")

        # 2. Geometry: given, or predicted from the instruction
        targets, reasoning, problems = self._find_landmarks(images, instructions, landmarks, source_landmarks)
        usable = [number for number, target in enumerate(targets) if target is not None]
        results = [cv2.resize(image, (self.image_size, self.image_size), interpolation=cv2.INTER_AREA) for image in images]
        if usable:
            points = np.stack([targets[number] for number in usable])  # type: ignore[misc]
            drawn = self._draw(
                [images[i] for i in usable],
                [instructions[i] for i in usable],
                points,
                num_inference_steps,
                guidance or Guidance(),
                seed,
                usable,
                callback,
            )
            for number, image in zip(usable, drawn, strict=True):
                results[number] = image
        return LaToPipelineOutput(images=results, landmarks=targets, reasoning=reasoning, problems=problems)  # type: ignore[arg-type]

    def _find_landmarks(
        self,
        images: list[npt.NDArray[np.uint8]],
        instructions: list[str],
        given: npt.NDArray[np.floating] | None,
        sources: npt.NDArray[np.floating] | None,
    ) -> tuple[list[Landmarks | None], list[str], list[tuple[str, ...]]]:
        if given is not None:
            expected = (len(images), 68, 2)
            if given.shape != expected:
                raise ValueError(f"landmarks: expected shape {expected}, given {given.shape}")
            known = np.where(np.isnan(given), CANVAS.width / 2, given)
            validate_landmarks(known)
            return [np.asarray(row, np.float32) for row in given], [""] * len(images), [()] * len(images)
        if self.predictor is None:
            raise ValueError("landmarks: this pipeline has no predictor, so landmarks must be given")
        if sources is None:
            raise ValueError("source_landmarks: needed to predict the target's; give them, or give landmarks")
        predictions = self.predictor.predict(images, sources, instructions)
        return [p.landmarks for p in predictions], [p.reasoning for p in predictions], [p.problems for p in predictions]

    def _draw(
        self,
        images: list[npt.NDArray[np.uint8]],
        instructions: list[str],
        landmarks: npt.NDArray[np.floating],
        steps: int,
        guidance: Guidance,
        seed: int,
        numbers: list[int],
        callback: StepCallback | None,
    ) -> list[npt.NDArray[np.uint8]]:
        batch, device = len(images), self.transformer.device
        # 3. Landmark tokens; a missing landmark is a null token
        points = torch.from_numpy(np.asarray(landmarks, np.float32)).to(device)
        known = torch.isfinite(points).all(-1)
        points = torch.where(known[..., None], points, torch.full_like(points, CANVAS.width / 2))
        _, latents = self.tokenizer.encode(points)

        # 4. Text, with the instruction and without
        texts, masks = zip(*(self.text_encoder.encode(images, list(words)) for words in (instructions, [""] * batch)), strict=True)
        states = [state[mask] for text, masked in zip(texts, masks, strict=True) for state, mask in zip(text, masked, strict=True)]
        text, text_mask = pad_states(states)  # (2B, L, D): with, then without

        # 5. Source tokens and noise
        source, grid = self.encode_source(images)
        noise = torch.stack([torch.randn(source.shape[1:], generator=torch.Generator().manual_seed(seed + number)) for number in numbers])
        tokens = noise.to(device)

        # 6. Denoise
        sigmas = sampling_sigmas(steps, shift_for(grid[0] * grid[1])).to(device)
        for step in range(steps):

            def predict(keep_landmarks: Tensor, keep_text: Tensor, x: Tensor = tokens, sigma: Tensor = sigmas[step]) -> Tensor:
                copies = len(keep_text) // batch
                row = torch.arange(batch, device=device).repeat(copies) + torch.where(keep_text, 0, batch)
                return self.transformer(
                    noise_tokens=x.repeat(copies, 1, 1),
                    source_tokens=source.repeat(copies, 1, 1),
                    grid=grid,
                    landmark_latents=latents.repeat(copies, 1, 1),
                    landmarks=points.repeat(copies, 1, 1),
                    landmark_mask=known.repeat(copies, 1) & keep_landmarks[:, None],
                    timestep=sigma.expand(batch * copies),
                    text_embeddings=text[row],
                    text_mask=text_mask[row],
                )

            tokens = euler_step(tokens, guided_velocity(predict, batch, guidance, device), sigmas[step], sigmas[step + 1])
            if callback:
                callback(step + 1, steps, tokens)

        # 7. Decode
        return to_pictures(decode_latents(self.codec, from_tokens(tokens, grid)))

    def encode_source(self, images: list[npt.NDArray[np.uint8]]) -> tuple[Tensor, tuple[int, int]]:
        """Pictures -> source tokens (B, N, C) at the pipeline's size, and their grid."""
        latents = encode_images(self.codec, to_tensor(images, self.image_size).to(self.transformer.device))
        side = self.image_size // (2 * spatial_factor(self.codec))
        return to_tokens(latents), (side, side)


def to_tensor(images: list[npt.NDArray[np.uint8]], size: int) -> Tensor:
    """RGB uint8 pictures -> (B, 3, size, size) in [-1, 1]."""
    resized = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX if image.shape[0] > size else Image.Resampling.BICUBIC))
        for image in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensor: Tensor) -> list[npt.NDArray[np.uint8]]:
    """The inverse of `to_tensor`, values clipped."""
    values = ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return list(values)
