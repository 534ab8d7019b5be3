"""The byte-pair tokenizer of models from scratch: Qwen's special-token names, 512 coordinate tokens, words of our own templates; at most 2,048 tokens.

It lies in `tiny_tokenizer.json`. `python -m lato.tiny_tokenizer` writes that file anew, to the same bytes as long as the templates are the same.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

FILE = Path(__file__).with_name("tiny_tokenizer.json")
MAX_TOKENS = 2048
NUM_COORDINATES = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
MARKS = ("<think>", "</think>", "<answer>", "</answer>")


def coordinate_token(value: int) -> str:
    """The added token of a number in 0..511."""
    return f"<c{value:03d}>"


def train_tokenizer() -> Tokenizer:
    """Trains it on the instruction templates and on chains of thought over drawn quantities."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_TOKENS - len(MARKS) - NUM_COORDINATES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    core.train_from_iterator(_template_texts() + _reasoning_texts(), trainer)
    core.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    core.add_tokens([AddedToken(coordinate_token(value), normalized=False) for value in range(NUM_COORDINATES)])
    return core


def _template_texts() -> list[str]:
    """Every instruction template with every filling."""
    from lato.edits import Edit, Expression, Intensity, instruction_for

    edits = [Edit.model_validate({axis: degrees}) for axis in ("yaw", "pitch", "roll") for degrees in (-90, -60, -30, 30, 60, 90)]
    for expression, intensity in itertools.product(Expression, Intensity):
        if expression is not Expression.NEUTRAL or intensity is Intensity.PLAIN:
            edits.append(Edit(expression=expression, intensity=intensity))
    return [instruction_for(edit, f"{number}", split).text for edit in edits for split in ("train", "test") for number in range(60)]


def _reasoning_texts() -> list[str]:
    from lato.edits import Edit, Expression, Intensity
    from lato.reasoning import write_reasoning

    rng = np.random.default_rng(0)
    texts = ["Landmarks: \nEdit: ", "assistant\n", "user\n", "Picture 1: "]
    for number in range(200):
        expression = list(Expression)[number % 7]
        degrees = [int(value) * 30 for value in rng.integers(-2, 3, 3)]
        intensity = Intensity.PLAIN if expression is Expression.NEUTRAL else list(Intensity)[int(rng.integers(0, 3))]
        edit = Edit(expression=expression, intensity=intensity, yaw=degrees[0], pitch=degrees[1], roll=degrees[2])
        source = rng.uniform(100, 400, (68, 2)).astype(np.float32)
        target = source + rng.normal(0, 20, 2).astype(np.float32)
        pose = tuple(float(value) for value in rng.uniform(-40, 40, 3))
        state = list(Expression)[int(rng.integers(0, 7))]
        texts += [write_reasoning(state, pose, edit, source, target, syntax) for syntax in ("json", "compact")]  # type: ignore[arg-type]
    return texts


if __name__ == "__main__":
    train_tokenizer().save(str(FILE), pretty=False)
    print(f"{FILE}: {Tokenizer.from_file(str(FILE)).get_vocab_size()} tokens, {FILE.stat().st_size} bytes")
