"""Stage 2: the landmark predictor, taught to reason in four steps and to write the target landmarks. The loss is on the answer alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from infra.config import Config
from infra.errors import UserError
from lato.edits import mirror_instruction
from lato.landmarks import Landmarks, draw_landmarks, mirror_landmarks
from lato.pairs import FacePair
from lato.predictor import LandmarkPredictor, PredictorSettings, compact_reaches
from lato.reasoning import write_reasoning
from lato.tiny_tokenizer import MARKS, NUM_COORDINATES, coordinate_token
from lato.tiny_vlm import build_tiny_processor, build_tiny_vlm
from training.config import EngineConfig
from training.data import Dataset
from training.mixture import Mixture, Sample, sample_generator
from training.stage import Batch, StepLoss, device_of, source_names

_ADAPTED = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_BATCH = 8
"""Samples of a held-out batch."""
_SHOWN = (256, 256)
"""Pixels of a face in the stage's pictures."""
_NAMED = 5
"""Samples that are left out and named; of more only the number is said."""


class AdapterConfig(Config):
    """LoRA on the language model's Linears."""

    rank: int = Field(default=64, gt=0)
    """Rank of the updates."""
    alpha: int = Field(default=64, gt=0)
    """Their scale is alpha / rank."""


class PredictorConfig(Config):
    """The predictor and its training."""

    base: str | None = None
    """Folder of a pretrained Qwen2.5-VL or Qwen3-VL; None builds a small one from scratch."""
    adapter: AdapterConfig | None = None
    """Trains LoRA on the base; None trains all of it."""
    syntax: Literal["json", "compact"] = "json"
    """How coordinates are written; `compact` for a model from scratch."""
    image_size: int = Field(default=504, gt=0)
    """Side in pixels of the picture that the VLM sees."""
    mirror: bool = False
    """Shows every other sample in a mirror: picture, landmarks, pose, and left and right in the instruction."""
    hidden_size: int = Field(default=96, gt=0, multiple_of=32)
    """Width of a model from scratch, a multiple of 32 (a head's)."""
    num_layers: int = Field(default=3, gt=0)
    """Depth of a model from scratch."""
    max_new_tokens: int = Field(default=1600, gt=0)
    """Longest answer."""
    val_samples: int = Field(default=24, gt=0)
    """Samples of the held-out loss."""
    decoded_samples: int = Field(default=4, ge=0)
    """Held-out samples that are decoded freely at every evaluation, and drawn."""
    engine: EngineConfig = EngineConfig(lr=1e-5, global_batch=64, steps=2000)
    """Training."""


@dataclass(frozen=True)
class _Example:
    """A sample as the VLM is shown it."""

    picture: npt.NDArray[np.uint8]
    landmarks: Landmarks
    """(2, 68, 2) canvas px."""
    instruction: str
    reasoning: str


class PredictorStage:
    """See `training.stage.Stage`."""

    name = "predictor"

    def __init__(self, config: PredictorConfig, datasets: list[Dataset], mixture: Mixture) -> None:
        self._config, self._datasets = config, datasets
        self.floors: dict[str, tuple[float, str]] = {}
        self.sources = source_names(datasets)
        self._rows = [{row["key"]: row for row in dataset.rows} for dataset in datasets]
        self._processor = self._load_processor()
        # enough for the reasoning that `lato.reasoning` writes; an answer that has not begun by then never would
        settings = PredictorSettings(
            config.syntax, 512, config.image_size, config.max_new_tokens, max_reasoning=400 if config.syntax == "compact" else 1600
        )
        self._text = LandmarkPredictor(None, self._processor, settings)
        self.data, self.notes, held_out = _writable(config, datasets, mixture)
        held_out = held_out[:: max(1, len(held_out) // config.val_samples)][: config.val_samples]
        self._val = [dataset.read(row) for dataset, row in held_out]

    def build(self) -> nn.Module:
        """The VLM, with LoRA where it was asked for."""
        c = self._config
        if c.base is None:
            return build_tiny_vlm(c.hidden_size, c.num_layers, c.image_size, c.engine.seed)[0]
        from transformers import AutoModelForImageTextToText

        dtype = torch.bfloat16 if c.engine.precision == "bf16" else torch.float32
        model = AutoModelForImageTextToText.from_pretrained(c.base, dtype=dtype)
        torch.manual_seed(c.engine.seed)  # of what is not in the base: new tokens and LoRA
        if c.syntax == "compact" and len(self._processor.tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(self._processor.tokenizer))
        if c.adapter is None:
            return model
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=c.adapter.rank, lora_alpha=c.adapter.alpha, target_modules=_ADAPTED))

    def weights(self) -> None:
        """Nothing is left on the meta device."""
        return

    def read(self, samples: list[Sample]) -> Batch:
        """Pictures, tokens and labels, mirrored or not by each sample's own draw."""
        return self._encode([self._example(sample) for sample in samples])

    def length(self, sample: Sample) -> int:
        """Characters of the instruction: all else in a text is nearly as long for one sample as for another."""
        return len(self._rows[sample.source][sample.key]["instruction"])

    def loss(self, module: nn.Module, batch: Batch) -> StepLoss:
        """Cross-entropy of each sample's answer, a mean over its tokens."""
        inputs = dict(batch)
        labels = inputs.pop("labels")
        # answers end together: logits, which are as wide as the vocabulary, are only needed from the longest one's first token on
        longest = int((labels != -100).sum(1).max())
        output: Any = module(**inputs, logits_to_keep=longest + 1, use_cache=False)
        wanted = labels[:, -longest:]
        errors = F.cross_entropy(output.logits[:, :-1].float().transpose(1, 2), wanted, reduction="none", ignore_index=-100)
        per_sample = errors.sum(1) / (wanted != -100).sum(1)
        return StepLoss(per_sample, int(inputs["attention_mask"].sum()))

    def after_step(self, module: nn.Module, step: int, steps: int) -> dict[str, float]:
        """Nothing changes outside the optimizer."""
        return {}

    @torch.no_grad()
    def validate(self, module: nn.Module) -> dict[str, float]:
        """Held-out cross-entropy; of a few samples, how many answers parse when nothing constrains them, and their error against that of changing nothing."""
        device = device_of(module)
        losses = []
        for start in range(0, len(self._val), _BATCH):
            batch = self._encode([self._show(pair) for pair in self._val[start : start + _BATCH]])
            losses.append(self.loss(module, {name: tensor.to(device) for name, tensor in batch.items()}).per_sample)
        values = {"held_out": float(torch.cat(losses).mean())}
        if self._config.decoded_samples:
            predicted = self._decode(module)
            pairs = [pair for pair, points in zip(self._val, predicted) if points is not None]
            values["held_out/valid_answers"] = len(pairs) / len(predicted)
            if pairs:
                found = np.stack([points for points in predicted if points is not None])
                truth = np.stack([pair.landmarks for pair in pairs])
                values["held_out/landmark_px"] = float(np.abs(found - truth[:, 1]).mean())
                values["held_out/landmark_px_copy"] = float(np.abs(truth[:, 0] - truth[:, 1]).mean())
        return values

    @torch.no_grad()
    def pictures(self, module: nn.Module) -> dict[str, npt.NDArray[np.uint8]]:
        """A row a sample: the source with its landmarks, the target with its own, and the target with the predicted ones (none where the answer is invalid)."""
        rows = []
        for pair, points in zip(self._val, self._decode(module)):
            source, target = (
                cv2.resize(image, _SHOWN, interpolation=cv2.INTER_AREA) for image in (pair.source_image(), pair.target_image())
            )
            predicted = target if points is None else draw_landmarks(points, target)
            rows.append(
                np.concatenate([draw_landmarks(pair.landmarks[0], source), draw_landmarks(pair.landmarks[1], target), predicted], 1)
            )
        return {"landmarks": np.concatenate(rows)} if rows else {}

    def export(self, module: nn.Module, folder: Path) -> None:
        """A transformers folder with `predictor.json` beside; of LoRA also the adapter alone, in PEFT's layout, under `adapter/`."""
        model: Any = module
        if self._config.adapter is not None:
            model.save_pretrained(folder / "adapter")
            model = copy.deepcopy(model).merge_and_unload()  # a copy: training may go on with the module
        LandmarkPredictor(model, self._processor, self._text.settings).save_pretrained(folder)

    def _load_processor(self) -> Any:
        c = self._config
        if c.base is None:
            if c.adapter is not None:
                raise UserError("adapter: LoRA needs a pretrained model; set `base`, or leave `adapter` out to train a small one in full")
            _check_size(c.image_size, 28)
            return build_tiny_processor(c.image_size)
        from transformers import AutoProcessor

        if not Path(c.base).is_dir():
            raise UserError(f"base: {c.base} is no folder; give one of a pretrained Qwen2.5-VL or Qwen3-VL")
        processor = AutoProcessor.from_pretrained(c.base)
        _check_size(c.image_size, processor.image_processor.patch_size * processor.image_processor.merge_size)
        if c.syntax == "compact" and c.adapter is not None:
            raise UserError("syntax: `compact` adds tokens, which LoRA does not train; use `json`, or leave `adapter` out")
        if c.syntax == "compact":
            processor.tokenizer.add_tokens(
                [*MARKS, *(coordinate_token(value) for value in range(NUM_COORDINATES))]
            )  # those that are there stay
        return processor

    def _example(self, sample: Sample) -> _Example:
        pair = self._datasets[sample.source].read(self._rows[sample.source][sample.key])
        mirrored = self._config.mirror and bool(
            torch.rand((), generator=sample_generator(self._config.engine.seed, sample, "mirror")) < 0.5
        )
        return self._show(pair, mirrored)

    def _show(self, pair: FacePair, mirrored: bool = False) -> _Example:
        """A stored chain of thought is used as it is; it holds coordinates, so a mirrored sample gets the one that is written by rule."""
        state, edit, landmarks, picture = pair.meta.source, pair.meta.edit, pair.landmarks, pair.source_image()
        pose, instruction = (state.yaw, state.pitch, state.roll), pair.meta.instruction
        if mirrored:
            edit, landmarks, picture = edit.mirrored(), mirror_landmarks(landmarks), picture[:, ::-1]
            pose, instruction = (-state.yaw, state.pitch, -state.roll), mirror_instruction(instruction)
        stored = None if mirrored else pair.meta.reasoning
        reasoning = stored or write_reasoning(state.expression, pose, edit, landmarks[0], landmarks[1], self._config.syntax)
        return _Example(np.ascontiguousarray(picture), landmarks, instruction, reasoning)

    def _encode(self, examples: list[_Example]) -> dict[str, Tensor]:
        sources = np.stack([example.landmarks[0] for example in examples])
        answers = [self._text.write_answer(example.landmarks[0], example.landmarks[1], example.reasoning) for example in examples]
        return self._text.encode([example.picture for example in examples], sources, [example.instruction for example in examples], answers)

    def _decode(self, module: Any) -> list[Landmarks | None]:
        """Landmarks of the first few held-out samples, decoded freely; None where the answer does not parse."""
        examples = [self._show(pair) for pair in self._val[: self._config.decoded_samples]]
        if not examples:
            return []
        # no further than a true answer and a little more: what a model that has not learned to end says after that is thrown away
        longest = int((self._encode(examples)["labels"] != -100).sum(1).max()) + 16
        settings = replace(self._text.settings, max_new_tokens=min(longest, self._config.max_new_tokens))
        predictor = LandmarkPredictor(module, self._processor, settings)
        sources = np.stack([example.landmarks[0] for example in examples])
        training, together = module.training, dist.is_initialized() and dist.get_world_size() > 1
        module.eval()
        found = predictor.predict(
            [e.picture for e in examples], sources, [e.instruction for e in examples], constrained=False, all_ranks=together
        )
        module.train(training)
        return [prediction.landmarks for prediction in found]


def _check_size(given: int, unit: int) -> None:
    near = given // unit * unit
    if given % unit:
        sizes = " or ".join(str(size) for size in (near, near + unit) if size)
        raise UserError(f"image_size: this model sees multiples of {unit} pixels, given {given}; take {sizes}")


def _writable(
    config: PredictorConfig, datasets: list[Dataset], mixture: Mixture
) -> tuple[Mixture, list[str], list[tuple[Dataset, dict[str, Any]]]]:
    """The samples whose answer the syntax can write: of training, and (dataset, row) of the held-out ones; with a line on those left out, if any.

    Raises:
        UserError: A source has none in one of its splits.
    """
    left_out: list[set[str]] = []
    for dataset in datasets:
        rows = dataset.split("train") + dataset.split("val") if config.syntax == "compact" else []
        reached = compact_reaches(dataset.read_landmarks(rows)) if rows else np.zeros(0, bool)
        left_out.append({row["key"] for row, whole in zip(rows, reached, strict=True) if not whole})
        for split in ("train", "val"):
            if all(row["key"] in left_out[-1] for row in dataset.split(split)):
                raise UserError(f"{dataset.name}: in every sample of {split} a landmark moves by more than 255 px; use syntax=json")
    both = zip(datasets, left_out, strict=True)
    held_out = [(dataset, row) for dataset, out in both for row in dataset.split("val") if row["key"] not in out]
    names = sorted(key for out in left_out for key in out)
    if not names:
        return mixture, [], held_out
    first = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    note = f"{len(names)} samples are left out: a landmark moves by more than 255 px, which the compact syntax cannot write ({first})"
    return mixture.without(left_out), [note], held_out
