"""The instruction's embedding: last hidden states of a Qwen2.5-VL that sees the source picture and the instruction, as Step1X-Edit asks it.

The chat is: prefix, picture, instruction. The states of everything before the prefix's last token are dropped; their number is counted, not assumed. The
null text is the same picture with an empty instruction.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, DynamicCache

_QUOTED = re.compile(r'(?:"([^"]*)")|(?:(?<!\w)\'([^\']*)\'(?!\w))')


@dataclass(frozen=True)
class SharedStates:
    """States of one picture with several texts. What comes before the texts is the same for all: image first, and causal."""

    prefix: Tensor
    """(P, D): the prefix's last token and the picture."""
    suffixes: list[Tensor]
    """(S_i, D) of each text; P + S_i at most `max_length`."""

    def states(self, text: int) -> Tensor:
        """(L, D), what `TextEncoder.encode` gives for the picture and that text."""
        return torch.cat([self.prefix, self.suffixes[text]])


@dataclass(frozen=True)
class TextEncoderSettings:
    """How the VLM is asked; `text_encoder.json` in its folder."""

    prefix: str = "Describe how the person in the picture looks once the edit is made.\n"
    """Said before the picture; dropped from the states. Released weights expect the base model's own (`text_prefix.txt` in a released folder)."""
    min_pixels: int = 256 * 28 * 28
    """Fewest pixels that it sees."""
    max_pixels: int = 324 * 28 * 28
    """Most pixels that it sees; sides keep their ratio and are multiples of its patch grid."""
    max_length: int = 640
    """Most tokens that are kept."""


class TextEncoder:
    """(pictures, instructions) -> states."""

    def __init__(self, model: Any, processor: Any, settings: TextEncoderSettings) -> None:
        self.model, self.processor, self.settings = model, processor, settings

    @classmethod
    def from_pretrained(cls, folder: str | Path, **model_options: Any) -> TextEncoder:
        """Loads a Qwen2.5-VL folder; settings are the defaults where it has no `text_encoder.json`."""
        model = AutoModelForImageTextToText.from_pretrained(folder, **model_options)
        return cls(model.eval(), AutoProcessor.from_pretrained(folder), _read_settings(folder))

    @classmethod
    def without_weights(cls, folder: str | Path) -> TextEncoder:
        """One that knows lengths and widths and cannot encode: nothing but settings is read."""
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
        return cls(model, AutoProcessor.from_pretrained(folder), _read_settings(folder))

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
    def encode(self, images: list[npt.NDArray[np.uint8]], instructions: list[str]) -> list[Tensor]:
        """States of pictures with instructions, each of its own length (`pad_states` joins them).

        Args:
            images: RGB (H, W, 3) each.
            instructions: As many texts; empty for the null text.

        Returns:
            B tensors (L_i, D), L_i at most `max_length`.
        """
        rows, types, pixels, grids = [], [], [], []
        dropped = 0
        for image, instruction in zip(images, instructions, strict=True):
            inputs, dropped = self._ask(image, instruction)
            rows.append(inputs["input_ids"][0])
            types.append(inputs["mm_token_type_ids"][0])
            pixels.append(inputs["pixel_values"])
            grids.append(inputs["image_grid_thw"])
        ids, mask = self._pad(rows)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            # without these, transformers 5 silently places image tokens in one row (1-D positions)
            mm_token_type_ids=self._pad(types, 0)[0],
            pixel_values=torch.cat(pixels).to(self.model.device, self.model.dtype),
            image_grid_thw=torch.cat(grids).to(self.model.device),
            output_hidden_states=True,
            logits_to_keep=1,
        )
        states = output.hidden_states[-1]
        return [state[dropped : min(len(row), dropped + self.settings.max_length)] for state, row in zip(states, rows, strict=True)]

    @torch.no_grad()
    def encode_shared(self, images: list[npt.NDArray[np.uint8]], texts: list[list[str]]) -> list[SharedStates]:
        """States of each picture with several texts, at the cost of one pass over the picture and a short one for each text.

        Args:
            images: RGB (H, W, 3) each.
            texts: For each picture, as many texts; empty for the null text.

        Returns:
            One for each picture; joined, equal to what `encode` gives.
        """
        asked = [self._ask(image, own[0]) for image, own in zip(images, texts, strict=True)]
        first, dropped = [inputs for inputs, _ in asked], asked[0][1]
        ends = [self._picture_end(inputs) for inputs in first]
        device = self.model.device
        ids, mask = self._pad([inputs["input_ids"][0, :end] for inputs, end in zip(first, ends, strict=True)])
        types, _ = self._pad([inputs["mm_token_type_ids"][0, :end] for inputs, end in zip(first, ends, strict=True)], 0)
        grids = torch.cat([inputs["image_grid_thw"] for inputs in first]).to(device)
        positions, _ = self.model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=mask)
        cache = DynamicCache(config=self.model.config.text_config)
        shared = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            mm_token_type_ids=types,
            pixel_values=torch.cat([inputs["pixel_values"] for inputs in first]).to(device, self.model.dtype),
            image_grid_thw=grids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        # a text goes on behind the mark that ends the picture
        after = torch.stack([positions[:, row, end - 1].max() + 1 for row, end in enumerate(ends)])
        room = [max(0, self.settings.max_length - (end - dropped)) for end in ends]
        suffixes: list[list[Tensor]] = [[] for _ in images]
        for number in range(len(texts[0])):
            rows = [self._suffix(own[number]) for own in texts]
            ids, seen = self._pad(rows)
            states = self.model.model(
                input_ids=ids,
                attention_mask=torch.cat([mask, seen], dim=1),
                position_ids=(after[:, None] + torch.arange(ids.shape[1], device=device))[None].expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            cache.crop(-ids.shape[1])  # the next text follows the picture, not this text
            for row, state in enumerate(states):
                suffixes[row].append(state[: min(len(rows[row]), room[row])])
        return [
            SharedStates(state[dropped : min(end, dropped + self.settings.max_length)], own)
            for state, end, own in zip(shared, ends, suffixes, strict=True)
        ]

    def _pad(self, rows: list[Tensor], value: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows of tokens -> (B, L) on the model's device, and their mask (B, L) of 0 and 1."""
        padding = self.processor.tokenizer.pad_token_id if value is None else value
        lengths = torch.tensor([len(row) for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        mask = (torch.arange(padded.shape[1])[None] < lengths[:, None]).long()
        return padded.to(self.model.device), mask.to(self.model.device)

    def token_counts(self, image: npt.NDArray[np.uint8], text: str) -> tuple[int, int]:
        """States that `encode_shared` gives for the picture, and for the text; needs no weights."""
        inputs, dropped = self._ask(image, text)
        end = self._picture_end(inputs)
        prefix = min(end - dropped, self.settings.max_length)
        return prefix, min(len(inputs["input_ids"][0]) - end, self.settings.max_length - prefix)

    def _ask(self, image: npt.NDArray[np.uint8], instruction: str) -> tuple[dict[str, Tensor], int]:
        """Processor outputs of one question, and how many of its first tokens are dropped."""
        chat = self._chat(instruction)
        height, width = self.seen_size(image.shape[0], image.shape[1])
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        inputs = dict(self.processor(text=[chat], images=[picture], do_resize=False, return_tensors="pt"))
        if _QUOTED.search(instruction):
            row = torch.cat([inputs["input_ids"][0, : self._picture_end(inputs)], self._suffix(instruction)])[None]
            types = torch.zeros_like(row)
            types[:, : self._picture_end(inputs)] = inputs["mm_token_type_ids"][:, : self._picture_end(inputs)]
            inputs.update(input_ids=row, attention_mask=torch.ones_like(row), mm_token_type_ids=types)
        before = chat[: chat.index(self.settings.prefix) + len(self.settings.prefix)]
        # the release drops 217 tokens where its prefix has 218 in Qwen's vocabulary: the last one's state stays
        return inputs, len(self._ids(before)) - 1

    def _chat(self, instruction: str) -> str:
        content = [{"type": "text", "text": self.settings.prefix}, {"type": "image"}, {"type": "text", "text": instruction}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, add_vision_id=True
        )

    def _picture_end(self, inputs: dict[str, Tensor]) -> int:
        """Tokens up to and with the mark that ends the picture."""
        return int((inputs["input_ids"][0] == self.model.config.vision_end_token_id).nonzero()[-1]) + 1

    def _suffix(self, instruction: str) -> Tensor:
        """Tokens of what follows the picture; quoted words letter by letter, as the base model was trained to see them.

        (The release takes every apostrophe for a quote, so that "the man's" spells all that follows; only pairs count here.)
        """
        chat = self._chat(instruction)
        text = chat[chat.rindex("<|vision_end|>") + len("<|vision_end|>") :]
        if not _QUOTED.search(instruction):
            return torch.tensor(self._ids(text))
        ids: list[int] = []
        position = 0
        for match in _QUOTED.finditer(text):
            ids += self._ids(text[position : match.start()] + '"')
            for letter in match.group(1) or match.group(2) or "":
                ids += self._ids(letter)
            position = match.end() - 1
        return torch.tensor(ids + self._ids('"' + text[position + 1 :]))

    def _ids(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels at which a picture is shown: multiples of the merged patch, area within the limits, ratio kept as far as they allow."""
        vision = self.processor.image_processor
        unit = vision.patch_size * vision.merge_size
        area = min(max(height * width, self.settings.min_pixels), self.settings.max_pixels)
        scale = math.sqrt(area / (height * width))
        rounded = math.floor if height * width > self.settings.max_pixels else round
        return tuple(max(unit, rounded(side * scale / unit + 1e-6) * unit) for side in (height, width))  # type: ignore[return-value]


def _read_settings(folder: str | Path) -> TextEncoderSettings:
    file = Path(folder) / "text_encoder.json"
    return TextEncoderSettings(**json.loads(file.read_text())) if file.is_file() else TextEncoderSettings()


def pad_states(states: list[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """States (L_i, D) of single samples -> (B, L, D), zero where padded, and their mask (B, L) bool.

    Args:
        states: B tensors.
        length: L; None for the longest. `released` text padding takes the encoder's `max_length`: every slot attends there, so L must not depend on the batch.

    Raises:
        ValueError: A tensor is longer.
    """
    total = max(len(state) for state in states) if length is None else length
    if max(len(state) for state in states) > total:
        raise ValueError(f"text states: expected at most {total} tokens, given {max(len(state) for state in states)}")
    padded = torch.zeros(len(states), total, states[0].shape[1], dtype=states[0].dtype, device=states[0].device)
    mask = torch.zeros(len(states), total, dtype=torch.bool, device=states[0].device)
    for row, state in enumerate(states):
        padded[row, : len(state)] = state
        mask[row, : len(state)] = True
    return padded, mask
