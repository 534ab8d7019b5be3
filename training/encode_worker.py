"""What a worker of `training.encode` does, and how the files it writes are laid out.

A file is plain safetensors, all bf16. Of a sample there are `<key>.null` `<key>.prefix` `<key>.text` (tokens, D) and, with a codec, `<key>.latents`
(2, c, h, w), and the same of the mirrored picture as `<key>.mirror_...`. safetensors lays tensors of one type out by name, so that the
prefix touches both of its suffixes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor

from infra.addresses import join
from infra.errors import UserError
from infra.storage import commit, sha256_file
from lato.codec import SpaceToDepthCodec, encode_images, spatial_factor
from lato.edits import mirror_instruction
from lato.pairs import FacePair
from lato.pipeline import resize, to_tensor
from lato.text_encoder import TextEncoder
from training.data import Dataset
from training.ranges import RangeReader

if TYPE_CHECKING:
    from training.encode import EncodeConfig

_LOOKED_AT = 8
"""Samples from which the size of all is told."""


class EncodeWorker:
    """Holds the models and writes one file a job."""

    def __init__(self, uri: str, digest: str, encoder: str, vae: str | None, folder: str, config: EncodeConfig) -> None:
        self._dataset = Dataset.open(uri, digest)
        device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
        self._encoder = TextEncoder.from_pretrained(encoder)
        self._encoder.model.to(device)
        self._vae = load_codec(vae).to(device).eval() if vae else None
        self._folder, self._config = folder, config
        self._checked: set[str] = set()

    def run(self, bundle: dict[str, Any]) -> None:
        """Encodes a bundle of `keys` and commits it under its `name`.

        Raises:
            UserError: The shard is not the one of the index.
        """
        rows = [self._dataset.row(key) for key in bundle["keys"]]
        self._check(rows[0]["shard"])
        tensors: dict[str, Tensor] = {}
        for start in range(0, len(rows), self._config.batch):
            pairs = [self._dataset.read(row) for row in rows[start : start + self._config.batch]]
            pictures = [(pair.source_image(), pair.target_image()) for pair in pairs]
            self._encode(pairs, pictures, [pair.meta.instruction for pair in pairs], "", tensors)
            if self._config.mirror:
                mirrored = [tuple(np.ascontiguousarray(picture[:, ::-1]) for picture in both) for both in pictures]
                self._encode(pairs, mirrored, [mirror_instruction(pair.meta.instruction) for pair in pairs], "mirror_", tensors)
        commit(join(self._folder, bundle["name"]), save(tensors))

    @torch.no_grad()
    def _encode(
        self,
        pairs: list[FacePair],
        pictures: Sequence[tuple[npt.NDArray[np.uint8], ...]],
        instructions: list[str],
        side: str,
        tensors: dict[str, Tensor],
    ) -> None:
        states = self._encoder.encode_shared([source for source, _ in pictures], [[text, ""] for text in instructions])
        for pair, own in zip(pairs, states, strict=True):
            for part, tensor in (("prefix", own.prefix), ("text", own.suffixes[0]), ("null", own.suffixes[1])):
                tensors[f"{pair.key}.{side}{part}"] = _stored(tensor)
        if self._vae is not None:
            size = (self._config.image_size, self._config.image_size)
            images = to_tensor([resize(picture, size) for both in pictures for picture in both]).to(self._vae.device)
            for pair, latents in zip(pairs, encode_images(self._vae, images).unflatten(0, (-1, 2)), strict=True):
                tensors[f"{pair.key}.{side}latents"] = _stored(latents)

    def _check(self, shard: str) -> None:
        if shard in self._checked:
            return
        if sha256_file(join(self._dataset.shards, shard)) != self._dataset.files[shard].sha256:
            raise UserError(f"{join(self._dataset.shards, shard)}: its sha256 differs from index.json; it was changed. Copy it again.")
        self._checked.add(shard)


def load_codec(folder: str | Path) -> Any:
    """The image codec in a diffusers folder: an AutoencoderKL or a SpaceToDepthCodec.

    Raises:
        UserError: It is neither.
    """
    from diffusers import AutoencoderKL

    file = Path(folder) / "config.json"
    name = json.loads(file.read_text()).get("_class_name") if file.is_file() else None
    if name not in ("AutoencoderKL", "SpaceToDepthCodec"):
        raise UserError(f"{folder}: expected the folder of an AutoencoderKL or a SpaceToDepthCodec (config.json), found {name}")
    return (AutoencoderKL if name == "AutoencoderKL" else SpaceToDepthCodec).from_pretrained(folder)


def size_of_sample(dataset: Dataset, encoder: str | Path, vae: str | Path | None, config: EncodeConfig) -> dict[str, Any]:
    """`text_dim`, `latent_shape` (c, h, w), and `bytes` of a sample, the mean of a few: texts differ in length."""
    looking = TextEncoder.without_weights(encoder)
    chosen = dataset.rows[:: max(1, len(dataset.rows) // _LOOKED_AT)][:_LOOKED_AT]
    tokens = []
    for row in chosen:
        pair = dataset.read(row)
        prefix, text = looking.token_counts(pair.source_image(), pair.meta.instruction)
        tokens.append(prefix + text + looking.token_counts(pair.source_image(), "")[1])
    shape = _latent_shape(load_codec(vae), config.image_size) if vae else (0, 0, 0)
    size = 2 * (np.mean(tokens) * looking.dim + 2 * np.prod(shape)) * (2 if config.mirror else 1)
    return {"text_dim": looking.dim, "latent_shape": shape, "bytes": float(size)}


def read_layout(uris: list[str]) -> list[dict[str, dict[str, int]]]:
    """Of each file, by key: `<member>_offset` in bytes of the file, and `<member>_tokens` of states."""
    reader = RangeReader()
    layouts = []
    for uri, count in zip(uris, (struct.unpack("<Q", data)[0] for data in reader.read_many([(uri, 0, 8) for uri in uris])), strict=True):
        places: dict[str, dict[str, int]] = {}
        for name, entry in json.loads(reader.read(uri, 8, count)).items():
            key, _, member = name.partition(".")
            own = places.setdefault(key, {})
            own[f"{member}_offset"] = 8 + count + entry["data_offsets"][0]
            if not member.endswith("latents"):
                own[f"{member}_tokens"] = entry["shape"][0]
        layouts.append(places)
    return layouts


def _latent_shape(codec: Any, size: int) -> tuple[int, int, int]:
    factor = spatial_factor(codec)
    if size % (2 * factor):
        raise UserError(f"image_size: expected a multiple of {2 * factor} (a token is 2 x 2 places of the codec), given {size}")
    channels = codec.config["latent_channels"] if "latent_channels" in codec.config else 3 * factor**2
    return int(channels), size // factor, size // factor


def _stored(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).cpu().contiguous()
