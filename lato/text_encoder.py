"""The instruction's embedding: last hidden states of a Qwen2.5-VL that sees the source picture and the instruction.

A prefix tells the VLM its task; its tokens are dropped from the states, their number computed from the prefix itself. The null text is the same picture
with an empty instruction.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor


@dataclass(frozen=True)
class TextEncoderSettings:
    """How the VLM is asked; `text_encoder.json` in its folder."""

    prefix: str = "Describe how the person in the picture looks once the edit is made.\n"
    """Said before the picture; dropped from the states."""
    image_size: int = 504
    """Side in pixels of the square that it sees; a multiple of its patch grid."""
    max_length: int = 640
    """Most tokens that are kept."""


class TextEncoder:
    """(pictures, instructions) -> states."""

    def __init__(self, model: Any, processor: Any, settings: TextEncoderSettings) -> None:
        self.model, self.processor, self.settings = model, processor, settings

    @classmethod
    def from_pretrained(cls, folder: str | Path, **model_options: Any) -> TextEncoder:
        """Loads a Qwen2.5-VL folder; settings are the defaults where it has no `text_encoder.json`."""
        file = Path(folder) / "text_encoder.json"
        settings = TextEncoderSettings(**json.loads(file.read_text())) if file.is_file() else TextEncoderSettings()
        model = AutoModelForImageTextToText.from_pretrained(folder, **model_options)
        return cls(model.eval(), AutoProcessor.from_pretrained(folder), settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model, processor and settings."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (Path(folder) / "text_encoder.json").write_text(json.dumps(asdict(self.settings), indent=1))

    @property
    def dim(self) -> int:
        """Width of the states."""
        return int(self.model.config.text_config.hidden_size)

    @torch.no_grad()
    def encode(self, images: list[npt.NDArray[np.uint8]], instructions: list[str]) -> tuple[Tensor, Tensor]:
        """States of pictures with instructions.

        Args:
            images: RGB (H, W, 3) each.
            instructions: As many texts; empty for the null text.

        Returns:
            (B, L, D) states, zero where padded on the right, and the mask (B, L) bool.
        """
        prefix = f"<|im_start|>user\n{self.settings.prefix}"
        texts = [f"{prefix}<|vision_start|><|image_pad|><|vision_end|>{instruction}<|im_end|>" for instruction in instructions]
        side = (self.settings.image_size, self.settings.image_size)
        pictures = [Image.fromarray(image).resize(side, Image.Resampling.BICUBIC) for image in images]
        # the processor also gives mm_token_type_ids; without them transformers 5 silently uses 1-D positions
        inputs = {
            name: tensor.to(self.model.device)
            for name, tensor in self.processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt").items()
        }
        states = self.model.model(**inputs, output_hidden_states=False, return_dict=True).last_hidden_state
        dropped = len(self.processor.tokenizer(prefix, add_special_tokens=False)["input_ids"])
        kept = slice(dropped, dropped + self.settings.max_length)
        mask = inputs["attention_mask"][:, kept].bool()
        return states[:, kept] * mask[..., None], mask


def pad_states(states: list[Tensor]) -> tuple[Tensor, Tensor]:
    """States (L_i, D) of single samples -> (B, L, D) and their mask (B, L) bool."""
    padded = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    lengths = torch.tensor([len(state) for state in states])
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).to(padded.device)
