"""What diffusers users expect of a model, and where times and positions go."""

import pytest
import torch
from safetensors.torch import load_file

from lato.conversion import transformer_from_released
from lato.flow import sampling_sigmas, shift_for
from tests.lato.test_golden import GOLDEN, HEADS, run_dit


@pytest.fixture
def transformer():
    return transformer_from_released(load_file(GOLDEN / "dit_weights.safetensors"), **HEADS)


@pytest.fixture(scope="module")
def dit_io():
    return load_file(GOLDEN / "dit_io.safetensors")


def arguments(io):
    tokens = io["noise_and_source_tokens"]
    return {
        "noise_tokens": tokens[:, :16], "source_tokens": tokens[:, 16:], "grid": (4, 4), "landmarks": io["landmarks"],
        "landmark_latents": io["landmark_latents"].transpose(1, 2), "timestep": io["timestep"],
        "text_embeddings": io["llm_embedding"], "text_mask": io["llm_mask"],
    }  # fmt: skip


def test_without_landmarks_it_is_the_base_model(transformer, dit_io):
    """Nothing of LaTo's own takes part."""
    none = {"landmark_latents": None, "landmarks": None}
    before = run_dit(transformer, dit_io, **none)
    with torch.no_grad():
        for module in (transformer.landmark_in, transformer.null_landmarks):
            for parameter in module.parameters():
                parameter.normal_()
    assert torch.equal(run_dit(transformer, dit_io, **none), before)
    assert not torch.allclose(run_dit(transformer, dit_io), before, atol=1e-3)


def test_gradient_checkpointing_gives_the_same_gradients(transformer, dit_io):
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            transformer.enable_gradient_checkpointing()
        transformer.zero_grad()
        transformer.train()(**arguments(dit_io)).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 100
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_attention_backends_are_chosen_by_name(transformer, dit_io):
    before = run_dit(transformer, dit_io)
    transformer.set_attention_backend("_native_math")
    assert torch.allclose(run_dit(transformer, dit_io), before, atol=1e-5)
    transformer.reset_attention_backend()
    with pytest.raises(ValueError, match="backend: expected one of"):
        transformer.set_attention_backend("quick")
    with pytest.raises((RuntimeError, ImportError)):
        transformer.set_attention_backend("flash")


def test_weights_stored_in_eight_bits(transformer, dit_io):
    before = run_dit(transformer, dit_io)
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert transformer.double_blocks[0].img_mlp[0].weight.dtype == torch.float8_e4m3fn
    assert transformer.double_blocks[0].img_attn.norm.query_norm.scale.dtype == torch.float32
    after = run_dit(transformer, dit_io)
    assert 0 < (after - before).abs().mean() < 0.2 * before.abs().mean()


def test_blocks_can_be_offloaded(transformer, dit_io):
    from diffusers.hooks import apply_group_offloading

    before = run_dit(transformer, dit_io)
    apply_group_offloading(transformer, torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(run_dit(transformer, dit_io), before)


def test_positions_stay_float32_under_bfloat16(transformer, dit_io, monkeypatch):
    """31.40 would be 31.375 in bfloat16. Ids reach the rotary embedding in float32, for each sample its own."""
    import lato.transformer as module

    seen = []
    real = module.rotary_embedding
    monkeypatch.setattr(module, "rotary_embedding", lambda ids, axes: seen.append(ids) or real(ids, axes))
    run_dit(transformer.to(torch.bfloat16), dit_io)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0][:, -68:, 1:], dit_io["landmark_ids"][..., 1:])
    assert not torch.equal(seen[0][0], seen[0][1])


def test_connector_sees_the_time_that_the_model_is_given(transformer, dit_io):
    """In 0..1, whoever calls: the base model's public trainer gave its connector times a thousandfold too large."""
    seen = []
    transformer.connector.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    for sigma in sampling_sigmas(4, shift_for(16))[:-1]:
        run_dit(transformer, dit_io, timestep=sigma.expand(2))
        assert torch.equal(seen[-1], sigma.expand(2))
    assert max(float(t.max()) for t in seen) <= 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (4, 5)}, r"noise_tokens: expected shape \(2, 20, 16\), given \(2, 16, 16\)"),
        ({"landmarks": None}, "landmarks: landmark_latents needs it"),
        ({"landmarks": torch.rand(2, 68, 2)}, "values within 0..1"),
        ({"landmark_latents": torch.zeros(2, 67, 64)}, r"landmark_latents: expected shape \(2, 68, 64\), given \(2, 67, 64\)"),
        ({"timestep": torch.zeros(3)}, r"timestep: expected shape \(2,\), given \(3,\)"),
        ({"text_mask": torch.ones(2, 5)}, r"text_mask: expected shape \(2, 12\), given \(2, 5\)"),
        ({"condition_tokens": torch.zeros(2, 4, 16)}, "condition_ids: condition_tokens needs it"),
        ({"landmark_mask": torch.ones(2, 5)}, r"landmark_mask: expected shape \(2, 68\), given \(2, 5\)"),
    ],
)
def test_a_wrong_tensor_is_named(transformer, dit_io, change, message):
    with pytest.raises(ValueError, match=message):
        transformer(**arguments(dit_io) | change)
