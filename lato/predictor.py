"""The landmark predictor: a VLM that reasons in four fixed steps and then writes 68 target landmarks.

Two coordinate syntaxes. `json`: the release's (groups of [x, y] pairs), for pretrained VLMs. `compact`: one added token a number; each is the
displacement from the source landmark plus 256, so that a small model trained from scratch need not first learn to copy 136 numbers.
Decoding is constrained by a grammar: the answer always parses; what it says is then checked, and a failed check is a stated problem, never a guess.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from lato.landmarks import CANVAS, GROUPS, NUM_LANDMARKS, Landmarks, interocular_distance, validate_landmarks
from lato.tiny_tokenizer import NUM_COORDINATES, coordinate_token

_JSON_GROUPS = {"JAW/BROWS": range(0, 27), "NOSE": range(27, 36), "EYES": range(36, 48), "MOUTH": range(48, 68)}
_ZERO = NUM_COORDINATES // 2
_MARGIN = 64.0
"""Canvas px by which a landmark may leave the picture: a jaw often does."""


@dataclass(frozen=True)
class PredictorSettings:
    """What a predictor was trained with; `predictor.json` in its folder."""

    syntax: Literal["json", "compact"] = "json"
    canvas: int = 512
    """Side of the canvas that coordinates are written in. The released prompt and all stored samples: 512."""
    image_size: int = 504
    """Side in pixels of the square that the VLM sees: a multiple of its patch grid (28 for Qwen2.5-VL, which cannot see 512)."""
    max_new_tokens: int = 1600
    template: str = ""
    """The released predictor's own prompt, with `{instruction}`, `{norm_landmarks_json}` and `<image>`; empty for ours."""
    max_reasoning: int = 400
    """Characters of reasoning that the grammar lets through."""


@dataclass(frozen=True)
class Prediction:
    """What the predictor says of one face."""

    landmarks: Landmarks | None
    """(68, 2) canvas px; None where the answer cannot be used."""
    reasoning: str
    problems: tuple[str, ...] = ()
    """Why not, or what looks odd."""


class LandmarkPredictor:
    """Predicts target landmarks from a picture, its landmarks and an instruction."""

    def __init__(self, model: Any, processor: Any, settings: PredictorSettings) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self._grammar: Any = None
        self._lock = threading.Lock()  # a fast tokenizer panics when two threads pad at once: training reads ahead while it validates

    @classmethod
    def from_pretrained(cls, folder: str | Path, **model_options: Any) -> LandmarkPredictor:
        """Loads a folder written by `save_pretrained`.

        Raises:
            FileNotFoundError: It is no predictor's folder.
        """
        settings_file = Path(folder) / "predictor.json"
        if not settings_file.is_file():
            raise FileNotFoundError(f"{folder}: no landmark predictor here (predictor.json is missing)")
        model = AutoModelForImageTextToText.from_pretrained(folder, **model_options)
        return cls(model.eval(), AutoProcessor.from_pretrained(folder), PredictorSettings(**json.loads(settings_file.read_text())))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model, processor and settings."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (Path(folder) / "predictor.json").write_text(json.dumps(asdict(self.settings), indent=1))

    def encode(
        self,
        images: list[npt.NDArray[np.uint8]],
        landmarks: npt.NDArray[np.floating],
        instructions: list[str],
        answers: list[str] | None = None,
    ) -> dict[str, Tensor]:
        """Model inputs for prompts, with answers appended and labelled for training.

        Args:
            images: RGB (H, W, 3) each.
            landmarks: (B, 68, 2) canvas px of the sources.
            instructions: B texts.
            answers: B texts of `write_answer`, or None to predict.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` (B, L), `pixel_values`, `image_grid_thw`; with answers also `labels` (B, L), -100 on all
            but the answer. Padded on the left, so that every answer ends at L.
        """
        prompts = [self._prompt(instruction, points) for instruction, points in zip(instructions, landmarks, strict=True)]
        texts = prompts if answers is None else [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        side = (self.settings.image_size, self.settings.image_size)
        pictures = [Image.fromarray(image).resize(side, Image.Resampling.BICUBIC) for image in images]
        with self._lock:
            inputs = dict(self.processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt"))
            lengths = [len(self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers or ()]
        if answers is not None:
            inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
            for row, length in enumerate(lengths):
                inputs["labels"][row, -length:] = inputs["input_ids"][row, -length:]
        return inputs

    def write_answer(self, source: Landmarks, target: Landmarks, reasoning: str) -> str:
        """The assistant's text for a training sample."""
        end = self.processor.tokenizer.eos_token
        return f"<think>{reasoning}</think><answer>{self._write(source, target)}</answer>{end}"

    @torch.no_grad()
    def predict(
        self,
        images: list[npt.NDArray[np.uint8]],
        landmarks: npt.NDArray[np.floating],
        instructions: list[str],
        constrained: bool = True,
        all_ranks: bool = False,
    ) -> list[Prediction]:
        """Predicts target landmarks, greedily, in one batch.

        Args:
            images: RGB (H, W, 3) each.
            landmarks: (B, 68, 2) canvas px of the sources.
            instructions: B texts.
            constrained: Whether the grammar decides what may come next. Without it an answer may not parse: that is how well a model has learned its form.
            all_ranks: Whether every rank of a process group is in this call. With sharded weights a forward pass is a collective: ranks go on until all are done.
        """
        validate_landmarks(landmarks)
        inputs = {name: tensor.to(self.model.device) for name, tensor in self.encode(images, landmarks, instructions).items()}
        tokens = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.settings.max_new_tokens,
            logits_processor=[self._logits_processor()] if constrained else [],
            synced_gpus=all_ranks,
        )
        with self._lock:
            texts = self.processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
        return [self.read_answer(text, np.asarray(points)) for text, points in zip(texts, landmarks, strict=True)]

    def read_answer(self, text: str, source: Landmarks) -> Prediction:
        """Parses an answer and checks its geometry against the source landmarks (68, 2)."""
        thought = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
        reasoning = re.sub(r"<c(\d{3})>", lambda token: f" {int(token.group(1)) - _ZERO:+d}", thought.group(1).strip()) if thought else ""
        answer = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
        if answer is None:
            return Prediction(None, reasoning, ("the answer is cut short",))
        try:
            landmarks = self._read(answer.group(1), source)
        except ValueError as error:
            return Prediction(None, reasoning, (str(error),))
        return Prediction(landmarks, reasoning, check_geometry(source, landmarks))

    def _prompt(self, instruction: str, landmarks: npt.NDArray[np.floating]) -> str:
        placed = self._write_absolute(np.asarray(landmarks))
        if self.settings.template:
            text = self.settings.template.replace("{instruction}", instruction).replace("{norm_landmarks_json}", placed)
            before, _, after = text.partition("<image>")
            content = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": after}]
            return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
        text = f"Landmarks: {placed}\nEdit: {instruction}"  # the instruction last, next to the reasoning that starts from it
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)

    def _write_absolute(self, landmarks: npt.NDArray[np.floating]) -> str:
        numbers = np.clip(np.rint(landmarks), 0, self.settings.canvas - 1).astype(int)
        if self.settings.syntax == "compact":
            return "".join(coordinate_token(int(value)) for value in numbers.reshape(-1))
        return json.dumps({name: numbers[list(group)].tolist() for name, group in _JSON_GROUPS.items()}, separators=(",", ":"))

    def _write(self, source: Landmarks, target: Landmarks) -> str:
        if self.settings.syntax == "json":
            return self._write_absolute(target)
        moved = _moved(source, target)
        if not compact_reaches(np.stack([source, target])):
            raise ValueError(f"a landmark moves by {np.abs(moved).max()} px; compact coordinates reach {_ZERO - 1}")
        return "".join(coordinate_token(int(value) + _ZERO) for value in moved.reshape(-1))

    def _read(self, text: str, source: Landmarks) -> Landmarks:
        if self.settings.syntax == "compact":
            numbers = [int(number) for number in re.findall(r"<c(\d{3})>", text)]
            if len(numbers) != 2 * NUM_LANDMARKS:
                raise ValueError(f"expected {2 * NUM_LANDMARKS} coordinates, given {len(numbers)}")
            moved = np.array(numbers, np.float32).reshape(NUM_LANDMARKS, 2) - _ZERO
            return (np.rint(source) + moved).astype(np.float32)
        try:
            groups = json.loads(text.strip().removeprefix("```json").removesuffix("```"))  # the release fences it
            points = np.concatenate([np.array(groups[name], np.float32).reshape(len(group), 2) for name, group in _JSON_GROUPS.items()])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected four groups of 27, 9, 12 and 20 points: {error}") from error
        if points.min() < 0 or points.max() >= self.settings.canvas:
            raise ValueError(f"a coordinate lies outside 0..{self.settings.canvas - 1}")
        return points

    def _logits_processor(self) -> Any:
        import xgrammar

        if self._grammar is None:
            config = getattr(self.model.config, "text_config", self.model.config)
            info = xgrammar.TokenizerInfo.from_huggingface(self.processor.tokenizer, vocab_size=config.vocab_size)
            if (
                self.settings.syntax == "compact"
            ):  # marks and numbers are one token each, never spelled letter by letter: the answer's length is bounded
                added = {token.encode() for token in self.processor.tokenizer.get_added_vocab()}
                pieces = [b"" if b"<" in piece and piece not in added else piece for piece in info.decoded_vocab]
                info = xgrammar.TokenizerInfo(pieces, vocab_size=info.vocab_size, stop_token_ids=info.stop_token_ids)
            self._grammar = xgrammar.GrammarCompiler(info).compile_grammar(self._grammar_text())
        return xgrammar.contrib.hf.LogitsProcessor(self._grammar)

    def _grammar_text(self) -> str:
        root = f'root ::= "<think>" ([^<] | coordinate){{0,{self.settings.max_reasoning}}} "</think><answer>" answer "</answer>"\n'
        root += 'coordinate ::= "<c" ([0-4] [0-9] [0-9] | "50" [0-9] | "51" [01]) ">"\n'
        if self.settings.syntax == "compact":
            return root + f"answer ::= coordinate{{{2 * NUM_LANDMARKS}}}\n"
        groups = [f'"\\"{name}\\":[" pair ("," pair){{{len(group) - 1}}} "]"' for name, group in _JSON_GROUPS.items()]
        number = 'number ::= [0-9] | [1-9] [0-9] | [1-4] [0-9] [0-9] | "50" [0-9] | "51" [01]\n'
        return root + 'answer ::= "{" ' + ' "," '.join(groups) + ' "}"\npair ::= "[" number "," number "]"\n' + number


def compact_reaches(landmarks: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Whether the compact syntax can write the way from source to target landmarks (..., 2, 68, 2): (...), the same for a pair and its mirror image."""
    return np.asarray((np.abs(_moved(landmarks[..., 0, :, :], landmarks[..., 1, :, :])) < _ZERO).all((-2, -1)))


def _moved(source: npt.NDArray[np.floating], target: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Whole canvas px from source to target; what the compact syntax writes."""
    return np.rint(np.asarray(target) - np.rint(source)).astype(np.int64)


def check_geometry(source: Landmarks, target: Landmarks) -> tuple[str, ...]:
    """What is implausible about target landmarks (68, 2), given the source's: facial parts out of order, or rigid distances that do not fit."""
    problems = []
    outside = int(((target < -_MARGIN) | (target > CANVAS.width + _MARGIN)).any(axis=1).sum())
    if outside:
        problems.append(f"{outside} landmarks lie far outside the picture")
    centre = {name: target[list(group)].mean(0) for name, group in GROUPS.items()}
    eyes = (centre["right_eye"] + centre["left_eye"]) / 2
    down = centre["outer_lip"] - eyes
    if float(down @ (centre["nose_tip"] - eyes)) <= 0 or float(np.linalg.norm(down)) < 1:
        problems.append("the nose does not lie between eyes and mouth")
    ratio = float(interocular_distance(target) / max(float(interocular_distance(source)), 1e-6))
    if not 0.4 < ratio < 1.8:
        problems.append(f"the eyes are {ratio:.2f} times as far apart as before")
    return tuple(problems)
