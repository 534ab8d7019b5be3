"""Stage 3: the DiT with landmark tokens, by flow matching on cached text states; from scratch, from a base, or as a LoRA on a base."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.errors import UserError
from lato.codec import SpaceToDepthCodec, decode_latents, encode_images, from_tokens, spatial_factor, to_tokens
from lato.conditioning import encode_condition
from lato.conversion import transformer_to_released
from lato.flow import apply_shift, sample_sigmas, shift_for
from lato.landmarks import draw_landmarks, mirror_landmarks
from lato.lora import add_adapter, lora_to_released
from lato.pipeline import resize, to_picture, to_tensor
from lato.text_encoder import TextEncoderSettings, pad_states
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer
from training.data import Dataset
from training.encode_worker import load_codec
from training.encoded import EncodedCache
from training.mixture import Mixture, Sample, sample_generator
from training.stage import Batch, StepLoss, device_of, source_names, to_device
from training.stages.base_weights import BaseWeights
from training.stages.dit_config import DitConfig, forms_of, new_transformer, null_start
from training.stages.flow import draw_tokens, velocity_error
from training.stages.latents import check_latents
from training.stages.views import disturb, face_window

SIGMAS = tuple(k / 10 for k in range(1, 10))
"""Times at which the held-out loss is taken, before the shift."""
_CHUNK = 16
"""Held-out samples in one forward pass."""


class DitStage:
    """See `training.stage.Stage`.

    Args:
        config: Of the stage.
        datasets: The sources.
        mixture: Of their train splits.
        tokenizer: Folder of the LandmarkTokenizer.
        encoded: Folder of the datasets' text states, and latents where they were encoded; on disk or an object store.

    Raises:
        UserError: Something does not fit: says what and what to do.
    """

    name = "dit"

    def __init__(self, config: DitConfig, datasets: list[Dataset], mixture: Mixture, tokenizer: Path, encoded: str | Path) -> None:
        self._config, self._datasets, self.data = config, datasets, mixture
        self.sources = source_names(datasets)
        self.notes: list[str] = []
        self.floors: dict[str, tuple[float, str]] = {}
        self._weights: BaseWeights | None = None
        self._caches = [EncodedCache.open(encoded, dataset.digest) for dataset in datasets]
        self._tokenizer = LandmarkTokenizer.from_pretrained(tokenizer).eval()
        self._codec = load_codec(config.codec) if config.codec else SpaceToDepthCodec(config.codec_factor)
        self._latents = all(cache.has_latents for cache in self._caches)
        self._seed = config.engine.seed
        self._forms = forms_of(config)
        held_out = [
            Sample(number, row["key"], 0) for number, dataset in enumerate(datasets) for row in dataset.rows if row["split"] == "val"
        ]
        if not held_out:
            raise UserError("no dataset has samples in its split 'val'; change the shares under `split` and build again")
        self._held_out = held_out[:: max(1, len(held_out) // config.val_samples)][: config.val_samples]
        self._check()

    def build(self) -> nn.Module:
        """The transformer; null tokens that were never trained start at the codebook's mean. With a LoRA all but the adapter is frozen."""
        torch.manual_seed(self._seed)
        c, codebook = self._config, self._tokenizer.vq.codebook
        if c.base is None:
            return new_transformer(c, self._channels, self._caches[0].text_dim, codebook)
        with torch.device("meta"):  # 12 billion parameters are filled one by one: see `weights`
            transformer = LaToTransformer.from_config(LaToTransformer.load_config(c.base))
            if c.adapter == "lora":
                add_adapter(transformer, c.lora_rank, c.lora_alpha)
        self._weights = BaseWeights(c.base, transformer, null_start(codebook, transformer.config["landmark_std"]), self._seed)
        return transformer

    def weights(self) -> BaseWeights | None:
        """The base's, and the adapter's first ones; None from scratch."""
        return self._weights

    def read(self, samples: list[Sample]) -> Batch:
        """Pictures of one size, landmarks, text states, and the draws of times, noise and dropped conditions."""
        size = self._size(samples[0].step)
        batch = self._collate([self._view(sample, size, training=True) for sample in samples], size)
        generators = [sample_generator(self._seed, sample, "flow") for sample in samples]
        normal = torch.stack([torch.randn((), generator=generator) for generator in generators])
        noise = torch.stack([torch.randn(batch["target"].shape[1:], generator=generator) for generator in generators])
        return batch | {"sigma": sample_sigmas(normal, self._shift(size)), "noise": noise}

    def length(self, sample: Sample) -> int:
        """Length of the text that the sample is trained with."""
        if self._forms["text_padding"] == "released":
            return 0
        return self._caches[sample.source].text_length(sample.key, self._kept(sample)[1], mirrored=self._mirrored(sample))

    def loss(self, module: nn.Module, batch: Batch) -> StepLoss:
        """Mean squared error of the velocity of the noise tokens."""
        error, tokens = velocity_error(module, batch)
        return StepLoss(error, tokens)

    def after_step(self, module: nn.Module, step: int, steps: int) -> dict[str, float]:
        """Nothing changes outside the optimizer."""
        return {}

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Held-out loss at nine fixed times with fixed noise; draws nothing from the global generator."""
        size = self._config.sizes[0]
        sums = dict.fromkeys(SIGMAS, 0.0)
        device = device_of(module)
        for batch, _, noise in self._fixed(self._held_out, size):
            for sigma in SIGMAS:
                times = apply_shift(torch.full((len(noise),), sigma), self._shift(size))
                sums[sigma] += float(velocity_error(module, to_device(batch | {"noise": noise, "sigma": times}, device))[0].sum())
        values = {f"held_out/sigma_{sigma:.1f}": total / len(self._held_out) for sigma, total in sums.items()}
        return {"held_out": float(np.mean(list(values.values()))), **values}

    def pictures(self, module: nn.Module) -> dict[str, npt.NDArray[np.uint8]]:
        """Rows of held-out samples: source, the landmarks to draw to, the edit, the target."""
        size, rows, device = self._config.sizes[0], [], device_of(module)
        for batch, null, noise in self._fixed(self._held_out[: self._config.picture_samples], size):
            given = [to_device(part, device) for part in (batch, null)]
            drawn = draw_tokens(
                module, given[0], noise.to(device), self._config.picture_steps, self._shift(size), given[1], self._config.picture_guidance
            )
            source, edit, target = (self._to_pictures(tokens, batch["grid"]) for tokens in (batch["source"], drawn, batch["target"]))
            for number, landmarks in enumerate(batch["condition"].landmarks):
                shown = draw_landmarks(landmarks.cpu().numpy(), source[number] // 2)
                rows.append(np.concatenate([source[number], shown, edit[number], target[number]], axis=1))
        return {"edits": np.concatenate(rows)}

    def export(self, module: Any, folder: Path) -> None:
        """`save_pretrained` folder or PEFT adapter, the codec beside it, and the same in the released layout under `released/`."""
        released = folder / "released/LaTo" / ("lora" if self._config.adapter == "lora" else "lato") / "lato.safetensors"
        released.parent.mkdir(parents=True, exist_ok=True)
        if self._config.adapter == "lora":
            module.save_lora_adapter(folder)
            state = lora_to_released(module)
        else:
            module.save_pretrained(folder)
            state = transformer_to_released(module)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, released, {"format": "pt"})
        self._codec.save_pretrained(folder / "vae")

    def _check(self) -> None:
        """Raises UserError where config, base, tokenizer and cache do not fit each other."""
        cache, unit = self._caches[0], 2 * spatial_factor(self._codec)
        for height, width in self._config.sizes:
            if height % unit or width % unit or not height or not width:
                raise UserError(f"sizes: expected multiples of {unit} px (a token's side), given {height} x {width}")
        if self._config.mirror and not all(cache.mirrored for cache in self._caches):
            raise UserError(
                "mirror: the text states are of pictures as they are only. Encode with mirrored states too, or set mirror=false"
            )
        if any(other.text_dim != cache.text_dim for other in self._caches):
            raise UserError("the datasets' text states differ in width; encode all with one text encoder")
        self._channels = 4 * encode_images(self._codec, torch.zeros(1, 3, unit, unit)).shape[1]
        if self._latents:
            shape = cache.latent_shape
            height, width = self._config.sizes[0]
            expected = (self._channels // 4, 2 * height // unit, 2 * width // unit)
            if len(self._config.sizes) > 1 or shape != expected:
                raise UserError(
                    f"sizes: the encoded latents are {shape}, these sizes need {expected}; encode at the one size that is trained, without "
                    "latents for several, or name the codec that made them (codec)"
                )
            check_latents(self._config, self._codec, self._datasets, self._caches)
        expected_base = {"in_channels": self._channels, "text_dim": cache.text_dim, "landmark_dim": self._tokenizer.vq.codebook.shape[1]}
        for name, value in expected_base.items():
            if self._config.base is not None and self._forms[name] != value:
                raise UserError(
                    f"{self._config.base}: {name} is {self._forms[name]}, but codec, text states and tokenizer given need {value}"
                )

    def _size(self, step: int) -> tuple[int, int]:
        sizes = self._config.sizes
        return sizes[int(np.random.default_rng((self._seed, step)).integers(len(sizes)))]

    def _shift(self, size: tuple[int, int]) -> float:
        grid = self._grid(size)
        return shift_for(grid[0] * grid[1])

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        unit = 2 * spatial_factor(self._codec)
        return size[0] // unit, size[1] // unit

    def _mirrored(self, sample: Sample) -> bool:
        return self._config.mirror and float(torch.rand((), generator=sample_generator(self._seed, sample, "mirror"))) < 0.5

    def _kept(self, sample: Sample) -> tuple[bool, bool]:
        """Whether landmarks and text are kept: one draw."""
        c, chance = self._config, float(torch.rand((), generator=sample_generator(self._seed, sample, "condition")))
        first, second = c.drop_landmarks, c.drop_landmarks + c.drop_text
        both = second <= chance < second + c.drop_both
        return not (chance < first or both), not (first <= chance < second or both)

    def _text(self, sample: Sample, with_instruction: bool, mirrored: bool) -> Tensor:
        return self._caches[sample.source].text(sample.key, with_instruction, mirrored=mirrored)

    def _view(self, sample: Sample, size: tuple[int, int], training: bool) -> dict[str, Any]:
        """One sample as the model sees it; as it is where it is not for training."""
        cache = self._caches[sample.source]
        dataset = self._datasets[sample.source]
        pair = dataset.read(dataset.row(sample.key))
        mirrored = training and self._mirrored(sample)
        both = mirror_landmarks(pair.landmarks) if mirrored else pair.landmarks
        window = face_window(both, size)
        target = window.place(both[1])
        points = torch.from_numpy(target)
        keep_landmarks = keep_text = True
        if training:
            generator = sample_generator(self._seed, sample, "landmarks")
            points = disturb(target, self._config.jitter, self._config.masking, generator)
            keep_landmarks, keep_text = self._kept(sample)
        if self._latents:
            tokens = torch.cat([to_tokens(latents[None].float()) for latents in cache.latents(sample.key, mirrored=mirrored)])
        else:
            images = [image[:, ::-1] if mirrored else image for image in (pair.source_image(), pair.target_image())]
            pixels = to_tensor([resize(np.ascontiguousarray(window.cut(image)), size) for image in images])
            with torch.no_grad():
                tokens = to_tokens(encode_images(self._codec, pixels))
        return {
            "source": tokens[0],
            "target": tokens[1],
            "points": points,
            "keep_landmarks": keep_landmarks,
            "text": self._text(sample, keep_text, mirrored),
        }

    def _collate(self, views: list[dict[str, Any]], size: tuple[int, int]) -> Batch:
        grid = self._grid(size)
        text, mask = self._pad([view["text"] for view in views])
        points = torch.stack([view["points"] for view in views])
        return {
            "grid": grid,
            "source": torch.stack([view["source"] for view in views]),
            "target": torch.stack([view["target"] for view in views]),
            "condition": encode_condition(self._forms["conditioning"], points, grid, self._tokenizer, self._codec),
            "keep_landmarks": torch.tensor([view["keep_landmarks"] for view in views]),
            "text": text,
            "text_mask": mask,
        }

    def _pad(self, states: list[Tensor]) -> tuple[Tensor, Tensor]:
        released = self._forms["text_padding"] == "released"  # every slot attends there, so the length must not depend on the batch
        return pad_states(states, TextEncoderSettings().max_length if released else None)

    def _fixed(self, samples: list[Sample], size: tuple[int, int]) -> Iterator[tuple[Batch, Batch, Tensor]]:
        """Samples as they are, in chunks: the batch, the same without conditions, and fixed noise."""
        generator = torch.Generator().manual_seed(1234)
        for start in range(0, len(samples), _CHUNK):
            part = samples[start : start + _CHUNK]
            views = [self._view(sample, size, training=False) for sample in part]
            batch = self._collate(views, size)
            null, mask = self._pad([self._text(sample, False, False) for sample in part])
            nothing = torch.zeros(len(part), dtype=torch.bool)
            without = batch | {"keep_landmarks": nothing, "text": null, "text_mask": mask}
            yield batch, without, torch.randn(batch["target"].shape, generator=generator)

    @torch.no_grad()
    def _to_pictures(self, tokens: Tensor, grid: tuple[int, int]) -> list[npt.NDArray[np.uint8]]:
        return [to_picture(pixels) for pixels in decode_latents(self._codec, from_tokens(tokens.float().cpu(), grid))]
