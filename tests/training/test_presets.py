"""Presets: what a file and overrides change, and that each is what the design says."""

import pytest

from infra.config import load_config
from infra.errors import UserError
from infra.jobs.demo import QuickstartConfig
from training import presets


@pytest.mark.parametrize("stage", presets.STAGES)
@pytest.mark.parametrize("name", presets.NAMES)
def test_every_preset_is_a_run_that_can_start(stage, name):
    engine = presets.preset(stage, name).engine
    assert engine.global_batch % (engine.workers * engine.accumulation) == 0
    assert engine.offload == "none" or engine.zero_stage > 0
    assert name != "base" or engine.workers == 1


def test_the_papers_sizes_and_the_recipe():
    dit, tokenizer = presets.preset("dit", "full"), presets.preset("tokenizer", "full")
    engine = dit.engine
    assert (dit.adapter, dit.lora_rank, dit.lora_alpha, dit.sizes) == ("lora", 64, 64, [(512, 512)])
    assert (engine.global_batch, engine.precision, engine.zero_stage, engine.ema) == (64, "bf16", 3, 0.9999)
    assert (engine.lr, engine.warmup, engine.decay_from, engine.clip, engine.checkpoint_activations) == (1e-4, 500, 1.0, 1.0, True)
    assert (tokenizer.num_codes, tokenizer.code_dim, tokenizer.beta, tokenizer.engine.precision) == (8192, 3072, 0.25, "fp32")


def test_the_demo_is_tiny():
    config = QuickstartConfig()
    for stage in presets.STAGES:
        assert getattr(config, stage) == presets.preset(stage, "tiny")


def test_preset_then_file_then_overrides(tmp_path):
    start = presets.preset("dit", "full")
    file = tmp_path / "mine.yaml"
    file.write_text("lora_rank: 16\nengine:\n  steps: 7\n  lr: 0.5\nsizes: [[256, 256]]\n")
    config = load_config(type(start), file, ["engine.lr=0.25"], preset=start)
    assert (config.lora_rank, config.engine.steps, config.engine.lr, config.sizes) == (16, 7, 0.25, [(256, 256)])
    unchanged = {"lora_rank", "sizes", "engine"}
    assert config.model_dump(exclude=unchanged) == start.model_dump(exclude=unchanged)
    assert config.engine.ema == 0.9999
    with pytest.raises(UserError, match="2 mistakes"):
        load_config(type(start), file, ["engine.stepz=1", "lora_rank=-2"], preset=start)


def test_a_section_that_a_preset_leaves_out_can_be_set_by_one_key():
    start = presets.preset("predictor", "base")
    assert start.adapter is None
    assert load_config(type(start), None, ["adapter.rank=8"], preset=start).adapter.rank == 8
