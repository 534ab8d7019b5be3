"""Whether encoded latents are of the image codec that a training is given, which decodes its pictures and is exported beside its model."""

from __future__ import annotations

from typing import Any

import torch

from infra.errors import UserError
from lato.codec import encode_images
from lato.pipeline import resize, to_tensor
from training.data import Dataset
from training.encode import revision_of
from training.encoded import EncodedCache
from training.stages.dit_config import DitConfig

_NEAR = 0.02
"""Largest mean difference of latents of one picture and one lossless codec, in pixels of [-1, 1]: bf16 takes 0.002 of it, another JPEG library a grey level."""


def check_latents(config: DitConfig, codec: Any, datasets: list[Dataset], caches: list[EncodedCache]) -> None:
    """Raises UserError where latents are of another codec: of one in a folder its revision tells, of the lossless one the first sample's pictures.

    Args:
        config: Names the codec's folder, or none.
        codec: It.
        datasets: The sources.
        caches: Of each, with latents of the shape that the codec gives at the size that is trained.
    """
    own = revision_of(config.codec) if config.codec is not None else None
    for dataset, cache in zip(datasets, caches, strict=True):
        if own is not None and cache.settings["vae"] != own:
            raise UserError(
                f"codec: the latents in {cache.folder} were made with another image codec ({cache.settings['vae'][:12]}) than the one in "
                f"{config.codec} ({own[:12]}): weights or settings differ. Give the one that made them (codec=FOLDER), or encode again into "
                f"another folder with --vae {config.codec}"
            )
        if own is None and _distance(config, codec, dataset, cache) > _NEAR:
            raise UserError(
                f"codec: the latents in {cache.folder} are not of the lossless codec (codec_factor={config.codec_factor}), though of its shape. "
                "Give the folder of the codec that made them (codec=FOLDER), or encode again into another folder without --vae"
            )


@torch.no_grad()
def _distance(config: DitConfig, codec: Any, dataset: Dataset, cache: EncodedCache) -> float:
    """Mean difference of the stored latents of the dataset's first sample from those that the codec makes of its pictures."""
    pair = dataset.read(dataset.rows[0])
    pictures = to_tensor([resize(picture, config.sizes[0]) for picture in (pair.source_image(), pair.target_image())])
    return float((torch.stack(cache.latents(pair.key)) - encode_images(codec, pictures)).abs().mean())
