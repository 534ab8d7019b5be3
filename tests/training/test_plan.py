"""Plans: what is measured on the meta device against what really happens, the memory model against sums done by hand, and the nearest plan that fits."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from training import meta, presets
from training.config import EngineConfig
from training.gpus import GPUS, gpu_of
from training.meter import Meter
from training.plan import GB, Plan, Sizes, memory_of
from training.zero import zero_config

SIZES = Sizes(total=1000, trained=400, buffers=50, largest=100)


def small_dit(**engine):
    """A DiT of 32 px and two blocks at width 96, in training from scratch."""
    start = presets.preset("dit", "tiny")
    blocks = {"num_double_blocks": 1, "num_single_blocks": 1}
    return start.model_copy(update={**blocks, "engine": start.engine.model_copy(update={"global_batch": 8, **engine})})


def test_sums_by_hand_at_every_zero_stage():
    """Four ranks, bf16: of 1,000 parameters 400 are trained."""
    memories = [memory_of(SIZES, EngineConfig(zero_stage=zero, precision="bf16", ema=0.99), 4, 0.0, bucket=0) for zero in (0, 1, 2, 3)]
    assert [memory.weights for memory in memories] == [2000, 2000, 2000, 500]
    assert [memory.optimizer for memory in memories] == [4800, 1200, 1200, 1200]
    assert [memory.average for memory in memories] == [1600, 400, 400, 400]
    assert {memory.buffers for memory in memories} == {50}
    accumulating = [
        memory_of(SIZES, EngineConfig(zero_stage=zero, precision="bf16", accumulation=2), 4, 0.0, bucket=0) for zero in (0, 1, 2, 3)
    ]
    assert [memory.waiting for memory in accumulating] == [800, 800, 200, 0]
    assert [memory.standing for memory in accumulating] == [0, 0, 0, 200]


def test_zero_3_holds_gradients_and_their_buffer_all_the_time_and_weights_twice_as_they_come():
    held = memory_of(SIZES, EngineConfig(zero_stage=3, precision="bf16"), 4, 0.0)
    assert held.standing == 2 * 400 / 4 + 2 * 400
    assert held.gathered == 2 * 2 * 1000
    often = memory_of(SIZES, EngineConfig(zero_stage=3, precision="bf16"), 4, 0.0, bucket=100)
    assert (often.standing, often.gathered) == (2 * 400 / 4 + 2 * 100, 2 * 2 * 1000 + 2 * 100)


def test_without_zero_weights_in_fp32_are_the_masters():
    plain = memory_of(SIZES, EngineConfig(zero_stage=0), 1, 0.0)
    assert (plain.weights, plain.optimizer, plain.gradients) == (4000, 3200, 1600)
    assert memory_of(SIZES, EngineConfig(zero_stage=1), 1, 0.0).optimizer == 4800


def test_the_buffer_of_gradients_is_the_one_that_deepspeed_is_told_of():
    for trained, bucket in ((400, 400), (10**9, 500_000_000)):
        sizes = Sizes(total=10**9, trained=trained, buffers=0, largest=100)
        told = zero_config(EngineConfig(zero_stage=2), 4, trained)["zero_optimization"]["reduce_bucket_size"]
        assert told == bucket
        assert memory_of(sizes, EngineConfig(zero_stage=2), 4, 0.0).gathered == 4 * bucket


def test_offload_moves_state_to_the_host():
    here = memory_of(SIZES, EngineConfig(zero_stage=3, precision="bf16"), 2, 0.0)
    moved = memory_of(SIZES, EngineConfig(zero_stage=3, precision="bf16", offload="all"), 2, 0.0)
    assert (moved.weights, moved.optimizer) == (0, 0)
    assert moved.host == here.weights + here.optimizer + 800
    assert moved.peak < here.peak


def test_what_is_kept_for_the_backward_pass_is_what_autograd_keeps():
    """The meta measurement against autograd's own saved tensors of a real forward pass on the CPU."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Linear(128, 32), torch.nn.LayerNorm(32))
    own = {parameter.untyped_storage().data_ptr() for parameter in layers.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    data = torch.randn(64, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = layers(data).square().sum()
    with FlopCounterMode(display=False) as flops:
        layers(data).square().sum().backward()
    model = meta.StageModel(layers.to("meta"), lambda batch: layers(torch.empty(batch, 32, device="meta")).square().sum(), 1, 0)
    cost = meta.measure(model, 64)
    assert abs(cost.saved - sum(size for size, _ in kept.values())) <= loss.element_size()  # the loss itself is alive too
    assert cost.flops == flops.get_total_flops()
    assert cost.peak >= cost.saved
    assert meta.measure(model, 128).saved == pytest.approx(2 * cost.saved, rel=1e-3)


def test_checkpointing_keeps_less_and_computes_more():
    model = meta.build("dit", presets.preset("dit", "tiny"))
    plain, again = meta.measure(model, 2), meta.measure(model, 2, checkpointing=True)
    assert again.saved < 0.2 * plain.saved
    assert again.peak < 0.6 * plain.peak
    assert again.flops == plain.flops
    assert plain.recomputed == 0
    assert 1 / 5 < again.recomputed / plain.flops < 1 / 3
    assert not meta.build("tokenizer", presets.preset("tokenizer", "tiny")).set_checkpointing(True)


def test_a_run_and_its_plan_count_the_same_flops():
    """A LoRA, so that most weights have no gradient, with and without checkpointing; without attention, whose CPU kernel torch does not count."""
    torch.manual_seed(0)
    frozen, trained = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    frozen.requires_grad_(False)

    def forward(batch, device, checkpointing):
        data = torch.zeros(batch, 64, device=device, requires_grad=True)
        inner = lambda x: frozen(torch.relu(trained(x)))  # noqa: E731
        return (checkpoint(inner, data, use_reentrant=checkpointing == "old") if checkpointing else inner(data)).sum()

    for checkpointing in (None, "new", "old"):
        meter = Meter()
        for _ in range(2):  # the second is no longer counted
            with meter.count_arithmetic():
                loss = forward(8, "cpu", checkpointing)
            with meter.count_arithmetic(backward=True):
                loss.backward()
        assert meter._flops_per_batch == 8 * 2 * 64 * 64 * (2 + 2 + 1)  # forward, the data's gradients, one weight's
    parts = torch.nn.ModuleList([frozen, trained]).to("meta")
    cost = meta.measure(meta.StageModel(parts, lambda batch: forward(batch, "meta", None), 1, 0), 8)
    assert cost.flops == 8 * 2 * 64 * 64 * 5


def test_fused_attention_is_only_lent():
    before = torch.nn.functional.scaled_dot_product_attention
    meta.measure(meta.build("dit", small_dit()), 1)
    assert torch.nn.functional.scaled_dot_product_attention is before


def test_parameters_of_the_full_sizes():
    """Released DiT with its connector: 12,437,240,641 and 208,896 of null tokens; LoRA r64 on 304 Linears."""
    model = meta.build("dit", presets.preset("dit", "full"))
    lora = sum(p.numel() for name, p in model.module.named_parameters() if ".lora_" in name)
    assert sum(p.numel() for p in model.module.parameters()) - lora == 12_437_240_641 + 68 * 3072
    assert sum(p.numel() for p in model.module.parameters() if p.requires_grad) == lora + 3072 * 3072 + 3072 + 68 * 3072
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.module.parameters())
    tokenizer = meta.build("tokenizer", presets.preset("tokenizer", "full"))
    assert sum(p.numel() for p in tokenizer.module.parameters()) == 19_193_346
    assert sum(p.numel() for p in meta.build("predictor", presets.preset("predictor", "full")).module.parameters()) == 3_754_622_976


def test_the_nearest_plan_is_the_cheapest_that_fits(monkeypatch):
    plan = Plan("dit", small_dit(zero_stage=0, steps=10), "h100", 2, 0.35)
    assert plan.fits
    assert plan.nearest().config == plan.config  # it fits as it is
    needs = {}
    for zero, checkpointing, accumulation in ((0, False, 1), (1, False, 1), (1, False, 2), (1, True, 1)):
        engine = plan.config.engine.model_copy(
            update={"zero_stage": zero, "checkpoint_activations": checkpointing, "accumulation": accumulation}
        )
        needs[zero, checkpointing, accumulation] = plan.memory(engine).peak
    assert needs[1, False, 2] < needs[1, False, 1]
    for limit, expected in ((needs[1, False, 2], None), (0.99 * needs[0, False, 1], needs)):
        monkeypatch.setattr(Plan, "usable", property(lambda self, limit=limit: limit))
        nearest = plan.nearest()
        assert nearest.memory().peak <= limit
        cheaper = plan._ways()[: plan._ways().index(nearest.config.engine)]
        assert all(plan.memory(engine).peak > limit for engine in cheaper)
        assert expected is None or not nearest.config.engine.checkpoint_activations
    monkeypatch.setattr(Plan, "usable", property(lambda self: 1000.0))
    assert plan.nearest() is None


def test_a_batch_that_does_not_divide_is_told_with_those_that_do():
    with pytest.raises(ValueError, match="8 samples do not divide over 3 GPUs x 1 micro-batches; the nearest that do: 6, 9"):
        Plan("dit", small_dit(), "h100", 3, 0.35)


def test_hours_and_checkpoint_follow_from_their_parts():
    plan = Plan("tokenizer", presets.preset("tokenizer", "tiny"), "a100", 2, 0.5)
    assert plan.hours == pytest.approx(240 * plan.flops_per_step / (2 * 312e12 * 0.5) / 3600)
    assert plan.checkpoint_bytes == 12 * 203_426 + plan.sizes.buffers
    assert plan.tokens_per_step == 32 * 2 * 68
    assert plan.usable == pytest.approx((80 * 0.94 - 2) * GB)


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_a_device_is_known_by_its_name(device, kind):
    assert gpu_of(device) is (GPUS[kind] if kind else None)
