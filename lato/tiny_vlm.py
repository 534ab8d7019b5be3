"""A small Qwen2.5-VL from scratch, for machines without the pretrained one: same classes, same special-token names, a vocabulary of our own templates."""

from __future__ import annotations

import math

import torch
from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from lato.tiny_tokenizer import FILE, NUM_COORDINATES, SPECIAL, coordinate_token

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% if add_vision_id %}Picture 1: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_vlm(
    hidden_size: int = 96, num_layers: int = 3, image_size: int = 112, seed: int = 0
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Builds an untrained small model and its processor.

    Args:
        hidden_size: Width of the language model; a multiple of 32.
        num_layers: Its depth.
        image_size: Side in pixels of the square it sees; a multiple of 28.
        seed: Of the initial weights.

    Returns:
        Model and processor, both ready for `save_pretrained`.
    """
    processor = build_tiny_processor(image_size)
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


def build_tiny_processor(image_size: int = 112) -> Qwen2_5_VLProcessor:
    """Its processor: the committed tokenizer, and pictures of `image_size` pixels a side."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(FILE)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
    )
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
