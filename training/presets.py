"""Sizes to start from: `tiny` on a CPU in minutes, `base` on one GPU, `full` at the paper's sizes on many. A file and `key=value` come on top.

Data are not part of a preset: one serves every dataset. `base` and `full` start from pretrained models, whose folders are the user's to give.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from training.config import EngineConfig
from training.stages.dit_config import DitConfig
from training.stages.predictor import PredictorConfig
from training.stages.tokenizer import TokenizerConfig

StageName = Literal["tokenizer", "predictor", "dit"]
PresetName = Literal["tiny", "base", "full"]
STAGES: tuple[StageName, ...] = get_args(StageName)
NAMES: tuple[PresetName, ...] = get_args(PresetName)

VLM = "models/Qwen2.5-VL-3B-Instruct"
"""Where `base` and `full` look for the predictor's base."""
TRANSFORMER = "models/transformer"
"""Where they look for the DiT's: a LaToTransformer folder, made of released files by `lato.conversion`."""
CODEC = "models/vae"
"""Where they look for the image codec."""

TOKENIZER: dict[str, TokenizerConfig] = {
    "tiny": TokenizerConfig(
        widths=(32, 64),
        code_dim=32,
        num_codes=256,
        engine=EngineConfig(steps=240, global_batch=32, lr=3e-3, eval_every=80, checkpoint_every=120),
    ),
    "base": TokenizerConfig(
        num_codes=1024,
        engine=EngineConfig(
            steps=20_000,
            global_batch=256,
            lr=1e-4,
            warmup=500,
            weight_decay=1e-4,
            eval_every=500,
            checkpoint_every=2000,
            zero_stage=0,
            workers=1,
        ),
    ),
    "full": TokenizerConfig(
        engine=EngineConfig(
            steps=300_000,
            global_batch=256,
            lr=1e-4,
            warmup=500,
            weight_decay=1e-4,
            eval_every=2000,
            checkpoint_every=5000,
            zero_stage=1,
            workers=8,
        ),
    ),
}

PREDICTOR: dict[str, PredictorConfig] = {
    "tiny": PredictorConfig(
        syntax="compact",
        image_size=56,
        max_new_tokens=600,
        engine=EngineConfig(steps=520, global_batch=4, lr=4e-3, eval_every=130, checkpoint_every=130),
    ),
    "base": PredictorConfig(
        base=VLM,
        engine=EngineConfig(
            steps=3000, global_batch=16, accumulation=16, lr=1e-5, warmup=100, decay_from=0.0, zero_stage=2, offload="optimizer",
            precision="bf16", checkpoint_activations=True, eval_every=250, checkpoint_every=500, workers=1,
        ),
    ),
    "full": PredictorConfig(
        base=VLM,
        engine=EngineConfig(
            steps=5000, global_batch=64, accumulation=4, lr=1e-5, warmup=100, decay_from=0.0, zero_stage=2,
            precision="bf16", checkpoint_activations=True, eval_every=250, checkpoint_every=500, workers=16,
        ),
    ),
}  # fmt: skip

DIT: dict[str, DitConfig] = {
    "tiny": DitConfig(
        sizes=[(32, 32)], engine=EngineConfig(steps=640, global_batch=16, lr=2e-3, eval_every=160, checkpoint_every=160)
    ),
    "base": DitConfig(
        base=TRANSFORMER, codec=CODEC, adapter="lora", sizes=[(512, 512)],
        engine=EngineConfig(
            steps=10_000, global_batch=16, accumulation=16, lr=1e-4, warmup=500, decay_from=1.0, ema=0.9999, zero_stage=2,
            precision="bf16", checkpoint_activations=True, eval_every=500, picture_every=500, checkpoint_every=500, workers=1,
        ),
    ),
    "full": DitConfig(
        base=TRANSFORMER, codec=CODEC, adapter="lora", sizes=[(512, 512)],
        engine=EngineConfig(
            steps=20_000, global_batch=64, lr=1e-4, warmup=500, decay_from=1.0, ema=0.9999, zero_stage=3,
            precision="bf16", checkpoint_activations=True, eval_every=500, picture_every=500, checkpoint_every=500, workers=64,
        ),
    ),
}  # fmt: skip

_ALL: dict[str, dict[str, Any]] = {"tokenizer": TOKENIZER, "predictor": PREDICTOR, "dit": DIT}


def preset(stage: StageName, name: PresetName) -> TokenizerConfig | PredictorConfig | DitConfig:
    """A stage's settings at one of the three sizes."""
    return _ALL[stage][name]
