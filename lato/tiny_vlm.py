"""A small Qwen2.5-VL from scratch, for machines without the pretrained one: same classes, same special-token names, a vocabulary of our own templates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

NUM_COORDINATES = 512
MAX_TEXT_TOKENS = 1500
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_MARKS = ("<think>", "</think>", "<answer>", "</answer>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% if add_vision_id %}Picture 1: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def coordinate_token(value: int) -> str:
    """The added token of a number in 0..511."""
    return f"<c{value:03d}>"


def build_tiny_vlm(
    texts: Iterable[str], hidden_size: int = 96, num_layers: int = 3, image_size: int = 112, seed: int = 0
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Builds an untrained small model and its processor.

    Args:
        texts: What the byte-pair vocabulary is trained on.
        hidden_size: Width of the language model; a multiple of 32.
        num_layers: Its depth.
        image_size: Side in pixels of the square it sees; a multiple of 28.
        seed: Of the initial weights.

    Returns:
        Model and processor, both ready for `save_pretrained`.
    """
    processor = _build_processor(texts, image_size)
    tokenizer = processor.tokenizer
    token = tokenizer.convert_tokens_to_ids
    heads = hidden_size // 32
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": hidden_size * 3,
            "num_hidden_layers": num_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    _smooth_coordinates(model, tokenizer)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model, processor


def _build_processor(texts: Iterable[str], image_size: int) -> Qwen2_5_VLProcessor:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=MAX_TEXT_TOKENS, initial_alphabet=alphabet, special_tokens=list(_SPECIAL), show_progress=False)
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL[1:]),
        padding_side="left",
    )
    tokenizer.add_tokens(list(_MARKS))
    tokenizer.add_tokens([coordinate_token(value) for value in range(NUM_COORDINATES)])
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    side = image_size * image_size
    pixels = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": side, "longest_edge": side}}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


@torch.no_grad()
def _smooth_coordinates(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Starts the coordinate tokens on a smooth curve: neighbouring numbers should look alike from the first step on."""
    weight = model.get_input_embeddings().weight
    dim = weight.shape[1]
    values = torch.arange(NUM_COORDINATES, dtype=torch.float32)[:, None]
    frequencies = torch.exp(torch.linspace(math.log(2 * math.pi / 1024), math.log(2 * math.pi / 8), dim // 2))
    curve = torch.cat([torch.sin(values * frequencies), torch.cos(values * frequencies)], dim=1)
    ids = tokenizer.convert_tokens_to_ids([coordinate_token(value) for value in range(NUM_COORDINATES)])
    weight[torch.tensor(ids)] = curve * 0.05


def template_texts() -> list[str]:
    """Texts for the vocabulary: every instruction template, filled."""
    from lato.instruction_templates import TEMPLATES

    texts = []
    for kind, sides in TEMPLATES.items():
        for template in itertools.chain(*sides.values()):
            if kind == "expression":
                for adjective, noun in (
                    ("very happy", "strong happiness"),
                    ("slightly sad", "mild sadness"),
                    ("a little angry", "slight anger"),
                ):
                    texts.append(template.format(adjective=adjective, noun=noun))
                for adjective, noun in (
                    ("surprised", "surprise"),
                    ("strongly fearful", "intense fear"),
                    ("disgusted", "disgust"),
                    ("neutral", "calm"),
                ):
                    texts.append(template.format(adjective=adjective, noun=noun))
            else:
                texts += [template.format(degrees=30, direction=d) for d in ("left", "right", "up", "down")]
    return texts
