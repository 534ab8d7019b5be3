"""What `lato train encode` wrote, read sample by sample in any order, from any thread."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from infra.addresses import join
from infra.errors import UserError
from infra.storage import list_files, read_bytes, sha256_bytes
from training.ranges import RangeReader, list_sizes


@dataclass(frozen=True)
class EncodedCache:
    """States and latents of a dataset's samples."""

    folder: str
    text_dim: int
    settings: dict[str, Any]
    """`encoder` and `vae`: revisions (`vae` None without latents); `image_size`; `mirror`."""
    latent_shape: tuple[int, int, int]
    """(c, h, w) of one picture; zeros without latents."""
    files: list[str]
    _rows: dict[str, int] = field(repr=False)
    _columns: dict[str, Any] = field(repr=False)
    _reader: RangeReader = field(default_factory=RangeReader, repr=False, compare=False)

    @classmethod
    def open(cls, folder: str | Path, digest: str, encoder_revision: str | None = None) -> EncodedCache:
        """Opens what was encoded of a dataset.

        Args:
            folder: Where `lato train encode` wrote, on disk or an object store.
            digest: The dataset's.
            encoder_revision: What the encoder must be (`revision_of`); None takes any.

        Raises:
            UserError: It is not there, is of another dataset version or encoder, or files of it are missing or cut short.
        """
        folder = str(folder).rstrip("/")
        indexes = read_indexes(folder)
        if not indexes:
            raise UserError(f"{folder}: nothing is encoded here. Encode the dataset: lato train encode --out {folder}")
        index = next((index for index in indexes if index["dataset"] == digest), None)
        if index is None:
            there = ", ".join(f"{index['name']} ({index['dataset'][:12]})" for index in indexes)
            raise UserError(
                f"{folder}: encoded here is {there}, but the dataset is {digest[:12]}: another one, or a version that has changed since. "
                f"Encode it: lato train encode --out {folder}"
            )
        if encoder_revision is not None and index["settings"]["encoder"] != encoder_revision:
            raise UserError(
                f"{folder}: encoded with another text encoder ({index['settings']['encoder'][:12]}) than the one given ({encoder_revision[:12]}): "
                "its weights, settings or processor differ. Encode again into another folder, or give the encoder it was made with."
            )
        sizes = list_sizes(folder)
        wrong = [file["name"] for file in index["files"] if sizes.get(file["name"]) != file["bytes"]]
        if wrong:
            raise UserError(
                f"{folder}: {len(wrong)} of {len(index['files'])} files are missing or cut short (first: {wrong[0]}). Run lato train encode again."
            )
        data = read_bytes(join(folder, index["table"]))
        if sha256_bytes(data) != index["table_sha256"]:
            raise UserError(f"{folder}: {index['table']} is not the one of its index. Run lato train encode again.")
        table = pq.read_table(io.BytesIO(data))
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
        rows = {key: row for row, key in enumerate(table["key"].to_pylist())}
        names = [file["name"] for file in index["files"]]
        return cls(folder, index["text_dim"], index["settings"], tuple(index["latent_shape"]), names, rows, columns)

    @property
    def has_latents(self) -> bool:
        """Whether pictures were encoded too."""
        return self.settings["vae"] is not None

    @property
    def mirrored(self) -> bool:
        """Whether mirrored pictures were encoded too."""
        return bool(self.settings["mirror"])

    def text(self, key: str, with_instruction: bool, mirrored: bool = False) -> Tensor:
        """(L, D) float32 states of a sample with its instruction, or with the empty one."""
        row = self._row(key, mirrored)
        side, width = "mirror_" if mirrored else "", 2 * self.text_dim
        parts = [f"{side}prefix", f"{side}{'text' if with_instruction else 'null'}"]
        offsets = [int(self._columns[f"{part}_offset"][row]) for part in parts]
        lengths = [int(self._columns[f"{part}_tokens"][row]) * width for part in parts]
        start, end = min(offsets), max(offset + length for offset, length in zip(offsets, lengths, strict=True))
        data = self._read(row, start, end - start)  # the two lie side by side: one read
        tensors = [_floats(data[o - start : o - start + n]).view(-1, self.text_dim) for o, n in zip(offsets, lengths, strict=True)]
        return torch.cat(tensors)

    def text_length(self, key: str, with_instruction: bool, mirrored: bool = False) -> int:
        """L of `text`, without reading it."""
        row, side = self._row(key, mirrored), "mirror_" if mirrored else ""
        return sum(int(self._columns[f"{side}{part}_tokens"][row]) for part in ("prefix", "text" if with_instruction else "null"))

    def latents(self, key: str, mirrored: bool = False) -> tuple[Tensor, Tensor]:
        """Scaled latents (c, h, w) float32 of source and target, as `lato.codec.encode_images` gives them.

        Raises:
            ValueError: There are none here, or none of mirrored pictures.
        """
        if not self.has_latents:
            raise ValueError(f"{self.folder}: no latents here; encode with --vae")
        row = self._row(key, mirrored)
        count = 2 * int(np.prod(self.latent_shape))
        data = self._read(row, int(self._columns[f"{'mirror_' if mirrored else ''}latents_offset"][row]), 2 * count)
        source, target = _floats(data).view(2, *self.latent_shape)
        return source, target

    def _row(self, key: str, mirrored: bool) -> int:
        if mirrored and not self.mirrored:
            raise ValueError(f"{self.folder}: mirrored pictures are not encoded here; encode with mirror=true")
        return self._rows[key]

    def _read(self, row: int, offset: int, length: int) -> bytes:
        return self._reader.read(join(self.folder, self.files[int(self._columns["file"][row])]), offset, length)


def read_indexes(folder: str) -> list[dict[str, Any]]:
    """The indexes of all datasets that are encoded in a folder."""
    uris = list_files(folder, ".json")
    return [json.loads(read_bytes(uri)) for uri in uris if re.fullmatch(r"index-[0-9a-f]{16}\.json", uri.rsplit("/", 1)[-1])]


def _floats(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).float() if data else torch.zeros(0)
