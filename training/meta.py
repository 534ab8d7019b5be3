"""What a stage's step takes, measured on the meta device: tensors have shapes and no values, so a model of any size is looked at in megabytes.

Every operator's outputs are seen as they are made and let go (`_Live`), which counts unique storages: views are free, what autograd keeps is counted for as
long as it is kept, and the recomputation of checkpointed blocks is counted where it happens. FLOPs are counted as a run counts them (`training.flops`).
"""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lato.landmarks import NUM_LANDMARKS
from training.flops import FlopCount
from training.presets import StageName
from training.stages.dit_config import DitConfig
from training.stages.predictor import PredictorConfig
from training.stages.tokenizer import TokenizerConfig

PREDICTOR_TOKENS = {"json": (800, 850), "compact": (210, 340)}
"""Tokens of a predictor's prompt without its picture, and of its answer, in each syntax. `json`: 136 numbers, each digit and mark a token in Qwen's vocabulary,
and some words (an estimate: no pretrained vocabulary comes offline). `compact`: the tiny vocabulary's longest samples (tests/training/test_plan.py)."""
TEXT_TOKENS = {"released": 640, "masked": 400}
"""Text states of a DiT's sample: padded to 640 for released weights; else the picture's tokens (at most 324) and the instruction."""
TINY_TEXT_TOKENS = 40
"""The same for the tiny text encoder, which sees 56 px."""


@dataclass(frozen=True)
class StageModel:
    """A stage's model on the meta device, and how a step uses it."""

    module: nn.Module
    loss: Callable[[int], Tensor]
    """The loss of a micro-batch of B samples."""
    tokens: int
    """Tokens of a sample."""
    cached_bytes: int
    """Of a sample in the encoded cache; 0 where the stage reads none."""
    notes: tuple[str, ...] = ()
    """What was assumed."""

    def set_checkpointing(self, on: bool) -> bool:
        """Switches activation checkpointing; returns whether the model has it."""
        if not getattr(self.module, "_supports_gradient_checkpointing", getattr(self.module, "supports_gradient_checkpointing", False)):
            return False
        verb = "enable" if on else "disable"
        for name in (f"{verb}_gradient_checkpointing", f"gradient_checkpointing_{verb}"):  # diffusers', transformers'
            if hasattr(self.module, name):
                getattr(self.module, name)()
                break
        self.module.train()
        return True


@dataclass(frozen=True)
class StepCost:
    """One forward and backward pass of a micro-batch."""

    saved: int
    """Bytes that the forward pass leaves for the backward pass."""
    peak: int
    """Most bytes alive at once beside weights, buffers and what was kept of gradients."""
    flops: int
    """Model FLOPs (`training.flops`)."""
    recomputed: int
    """Those that checkpointing computes a second time, beside them."""


def build(stage: StageName, config: Any) -> StageModel:
    """A stage's model on the meta device, in the precision of its training, with the parameters that it trains marked."""
    builders: dict[str, Callable[[Any], StageModel]] = {"tokenizer": _tokenizer, "predictor": _predictor, "dit": _dit}
    made = builders[stage](config)
    if config.engine.precision == "bf16":
        for tensor in (*made.module.parameters(), *made.module.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(torch.bfloat16)
    return made


def measure(model: StageModel, micro_batch: int, checkpointing: bool = False, keep_gradients: bool = False) -> StepCost:
    """Runs a forward and a backward pass on the meta device.

    Args:
        model: Of `build`.
        micro_batch: Samples.
        checkpointing: Whether blocks are computed anew in the backward pass; nothing changes where the model has none.
        keep_gradients: To the end, as without ZeRO; else each is let go as soon as it is whole.
    """
    model.set_checkpointing(checkpointing)
    handles = []
    if not keep_gradients:
        handles = [p.register_post_accumulate_grad_hook(_let_go) for p in model.module.parameters() if p.requires_grad]
    live = _Live([*model.module.parameters(), *model.module.buffers()])
    with _fused_attention(), live:
        loss = model.loss(micro_batch)
        saved = live.now
        live.backward = True
        torch.autograd.backward(loss)
    for handle in handles:
        handle.remove()
    model.module.zero_grad()
    return StepCost(saved, live.peak, live.model, live.recomputed)


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


class _Live(FlopCount):
    """Counts the bytes of all storages that operators made and that are still alive, and FLOPs."""

    def __init__(self, standing: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in standing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._gone(key, size))  # type: ignore[misc]
                    self.now += size
                    self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device attention would be taken apart and its L x L matrix be counted; GPUs and CPUs run fused kernels, which keep none.

    A patch and not a TorchFunctionMode, because those are not active where the backward pass recomputes checkpointed blocks.
    """
    plain = F.scaled_dot_product_attention

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if attn_mask is not None:
            attn_mask = torch.empty((), dtype=query.dtype, device=query.device).expand(*query.shape[:-1], key.shape[-2])
        if enable_gqa and key.shape[1] != query.shape[1]:
            key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
        flat = query.ndim == 3
        if flat:
            query, key, value = (tensor[:, None] for tensor in (query, key, value))
        out = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True, dropout_p, is_causal)[0]
        return out[:, 0] if flat else out

    F.scaled_dot_product_attention = fused  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _tokenizer(config: TokenizerConfig) -> StageModel:
    from lato.tokenizer import LandmarkTokenizer

    with torch.device("meta"):
        module = LandmarkTokenizer(widths=config.widths, code_dim=config.code_dim, num_codes=config.num_codes)

    def loss(batch: int) -> Tensor:
        output: Any = module(torch.empty(2 * batch, NUM_LANDMARKS, 2, device="meta"))
        return (output.reconstruction_loss + config.beta * output.commit_loss).mean()

    return StageModel(module, loss, 2 * NUM_LANDMARKS, 0)


def _dit(config: DitConfig) -> StageModel:
    """A DiT of the config's sizes, or its base's; the longest text and the largest picture that it may see."""
    from lato.lora import add_adapter
    from lato.transformer import LaToTransformer
    from training.stages.dit_config import new_transformer

    small, notes = config.base is None, []
    text_dim = code_dim = config.hidden_size if small else 0
    with torch.device("meta"):
        if config.base is None:
            channels = 64 if config.codec else 12 * config.codec_factor**2
            module = new_transformer(config, channels, text_dim, _Codes(code_dim))  # type: ignore[arg-type]
            notes.append(f"text states and codes of {text_dim} channels, as wide as the model")
        elif (Path(config.base) / "config.json").is_file():
            options = json.loads((Path(config.base) / "config.json").read_text())
            module = LaToTransformer(**{name: value for name, value in options.items() if not name.startswith("_")})
        else:
            module = LaToTransformer()
            notes.append(f"{config.base} is not here: the released sizes are taken for it")
        if config.adapter == "lora":
            add_adapter(module, config.lora_rank, config.lora_alpha)
    forms = module.config
    height, width = max(config.sizes, key=lambda size: size[0] * size[1])
    side = 16 if config.codec or not small else 2 * config.codec_factor
    grid = (height // side, width // side)
    count, channels = grid[0] * grid[1], forms["in_channels"]
    length = TINY_TEXT_TOKENS if small else TEXT_TOKENS[forms["text_padding"]]
    notes.append(f"{length} text tokens a sample; pictures of {height} x {width}, the largest in `sizes`")

    def loss(batch: int) -> Tensor:
        def some(*shape: int) -> Tensor:
            return torch.empty(batch, *shape, device="meta")

        given: dict[str, Any] = {"landmark_latents": None, "landmarks": None}
        if forms["conditioning"] in ("tokens", "control"):
            given = {
                "landmark_latents": some(NUM_LANDMARKS, forms["landmark_dim"]),
                "landmarks": some(NUM_LANDMARKS, 2),
                "landmark_mask": some(NUM_LANDMARKS).bool(),
            }
        elif forms["conditioning"] != "none":
            drawn = count if forms["conditioning"] == "rendered" else count // 4
            given |= {"condition_tokens": some(drawn, channels), "condition_ids": some(drawn, 3)}
        velocity = module(
            noise_tokens=some(count, channels),
            source_tokens=some(count, channels),
            grid=grid,
            timestep=some(),
            text_embeddings=some(length, forms["text_dim"]),
            text_mask=some(length).bool(),
            **given,
        )
        return velocity.float().square().mean()

    extra = {"tokens": NUM_LANDMARKS, "control": NUM_LANDMARKS, "rendered": count, "compressed": count // 4}.get(forms["conditioning"], 0)
    # a prefix and two suffixes; the suffix is some 40 tokens
    states = (length if small else TEXT_TOKENS["masked"]) + 40
    latents = 2 * count * channels if config.codec or not small else 0
    cached = 2 * (states * forms["text_dim"] + latents) * (2 if config.mirror else 1)
    return StageModel(module, loss, 2 * count + length + extra, cached, tuple(notes))


class _Codes:
    """In a codebook's place, where only its shape is known."""

    def __init__(self, dim: int) -> None:
        self.shape = (1, dim)

    def std(self) -> float:
        return 1.0

    def mean(self, _: int) -> Tensor:
        return torch.zeros(self.shape[1], device="meta")


def _predictor(config: PredictorConfig) -> StageModel:
    """The language model of the config's base, or the tiny one; the longest prompt and answer of its syntax, and the picture."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    notes = []
    if config.base is None:
        from lato.tiny_vlm import build_tiny_vlm

        settings = build_tiny_vlm(config.hidden_size, config.num_layers, config.image_size, 0)[0].config
    elif (Path(config.base) / "config.json").is_file():
        settings = AutoConfig.from_pretrained(config.base)
    else:
        settings = _qwen_3b()
        notes.append(f"{config.base} is not here: the sizes of Qwen2.5-VL-3B are taken for it")
    with torch.device("meta"):
        module: Any = AutoModelForImageTextToText.from_config(settings)
        if config.adapter:
            from peft import LoraConfig, inject_adapter_in_model

            from training.stages.predictor import _ADAPTED

            module.requires_grad_(False)
            inject_adapter_in_model(LoraConfig(r=config.adapter.rank, lora_alpha=config.adapter.alpha, target_modules=_ADAPTED), module)
    vision = settings.vision_config
    patches = (config.image_size // vision.patch_size) ** 2
    seen = patches // vision.spatial_merge_size**2
    asked, answer = PREDICTOR_TOKENS[config.syntax]
    length = seen + asked + answer
    notes.append(f"{length} tokens a sample: {seen} of the picture, {asked} of the prompt, {answer} of the answer")
    width = settings.text_config.hidden_size

    def loss(batch: int) -> Tensor:
        dtype = next(module.parameters()).dtype
        seen_states = _look(module.model.visual, batch * patches, dtype)
        words = module.get_input_embeddings()(torch.empty(batch, length - seen, dtype=torch.long, device="meta"))
        states = torch.cat([words, seen_states.reshape(batch, seen, width)], dim=1)
        places = torch.empty(3, batch, length, dtype=torch.long, device="meta")
        logits = module(inputs_embeds=states, position_ids=places, use_cache=False, logits_to_keep=answer + 1).logits
        labels = torch.empty(batch, answer, dtype=torch.long, device="meta")
        return F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels)

    return StageModel(module, loss, length, 0, tuple(notes))


def _look(visual: Any, patches: int, dtype: torch.dtype) -> Tensor:
    """The vision tower's passes over some patches, as if of one picture (what depends on the grid's values cannot run on the meta device)."""
    head = visual.config.hidden_size // visual.config.num_heads
    states = visual.patch_embed(torch.empty(patches, visual.patch_embed.proj.weight[0].numel(), dtype=dtype, device="meta"))
    places = (torch.empty(patches, head, device="meta"), torch.empty(patches, head, device="meta"))
    ends = torch.tensor([0, patches], dtype=torch.int32)
    for block in visual.blocks:
        states = block(states, cu_seqlens=ends, position_embeddings=places)
    return visual.merger(states)


def _qwen_3b() -> Any:
    """The published settings of Qwen2.5-VL-3B-Instruct (config.json of the model card)."""
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        tie_word_embeddings=True,
    )
