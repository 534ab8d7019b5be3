"""Parity with the released modules: their weights, inputs and outputs at small sizes (tests/golden)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lato.conversion import (
    read_released,
    tokenizer_from_released,
    tokenizer_to_released,
    transformer_from_released,
    transformer_to_released,
)
from lato.positions import image_ids, landmark_ids
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer

GOLDEN = Path(__file__).parents[1] / "golden"
HEADS = {"num_attention_heads": 4, "axes_dims_rope": (4, 6, 6)}


@pytest.fixture(scope="module")
def tokenizer_io():
    return load_file(GOLDEN / "tokenizer_io.safetensors")


@pytest.fixture(scope="module")
def dit_io():
    return load_file(GOLDEN / "dit_io.safetensors")


def near(a, b):
    assert (a - b).abs().max() <= 1e-4, float((a - b).abs().max())


def test_tokenizer_computes_what_the_release_computes(tokenizer_io):
    tokenizer = tokenizer_from_released(read_released(GOLDEN / "tokenizer_weights.safetensors"))
    codes, quantized = tokenizer.encode(tokenizer_io["landmarks"])
    assert torch.equal(codes, tokenizer_io["codes"].long())
    near(quantized, tokenizer_io["quantized"].transpose(1, 2))
    output = tokenizer(tokenizer_io["landmarks"])
    near(output.commit_loss.mean(), tokenizer_io["commit_loss"])
    near(output.reconstruction / 256 - 1, tokenizer_io["reconstruction"])
    near(tokenizer.decode(quantized) / 256 - 1, tokenizer_io["reconstruction"])


def run_dit(transformer, io, **changes):
    tokens = io["noise_and_source_tokens"]
    arguments = {
        "noise_tokens": tokens[:, :16],
        "source_tokens": tokens[:, 16:],
        "grid": (4, 4),
        "landmark_latents": io["landmark_latents"].transpose(1, 2),
        "landmarks": io["landmarks"],
        "timestep": io["timestep"],
        "text_embeddings": io["llm_embedding"],
        "text_mask": io["llm_mask"],
    }
    with torch.no_grad():
        return transformer(**arguments | changes)


def test_transformer_computes_what_the_release_computes(dit_io):
    transformer = transformer_from_released(read_released(GOLDEN / "dit_weights.safetensors"), **HEADS)
    near(image_ids(2, (4, 4)).repeat(1, 2, 1), dit_io["image_ids"])
    near(landmark_ids(dit_io["landmarks"], (4, 4), "mapped"), dit_io["landmark_ids"])
    with torch.no_grad():
        context, pooled = transformer.connector(dit_io["llm_embedding"], dit_io["timestep"], dit_io["llm_mask"])
    near(context, dit_io["connector_context"])
    near(pooled, dit_io["connector_pooled"])
    near(run_dit(transformer, dit_io), dit_io["output"][:, :16])


def test_conversion_goes_both_ways(tmp_path, dit_io, tokenizer_io):
    weights = load_file(GOLDEN / "dit_weights.safetensors")
    transformer = transformer_from_released(weights, **HEADS)
    transformer.save_pretrained(tmp_path / "dit")
    again = LaToTransformer.from_pretrained(tmp_path / "dit")
    save_file({name: tensor.contiguous() for name, tensor in transformer_to_released(again).items()}, tmp_path / "dit.safetensors")
    back = load_file(tmp_path / "dit.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)

    weights = load_file(GOLDEN / "tokenizer_weights.safetensors")
    tokenizer_from_released(weights).save_pretrained(tmp_path / "tokenizer")
    back = tokenizer_to_released(LandmarkTokenizer.from_pretrained(tmp_path / "tokenizer"))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_full_size_has_the_released_keys_and_parameters():
    with torch.device("meta"):
        transformer = LaToTransformer()
        tokenizer = LandmarkTokenizer()
    released = transformer_to_released(transformer)
    assert len(released) == 819
    assert sum(tensor.numel() for tensor in released.values()) == 12_437_240_641
    assert released["double_blocks.18.img_attn.qkv.weight"].shape == (9216, 3072)
    assert released["connector.S.individual_token_refiner.blocks.1.mlp.fc1.weight"].shape == (16384, 4096)
    assert len(tokenizer_to_released(tokenizer)) == 165


def test_null_tokens_know_nothing_of_the_target(dit_io):
    transformer = transformer_from_released(load_file(GOLDEN / "dit_weights.safetensors"), **HEADS)
    nothing = torch.zeros(2, 68, dtype=torch.bool)
    other = {"landmarks": dit_io["landmarks"].flip(0), "landmark_latents": dit_io["landmark_latents"].flip(0).transpose(1, 2)}
    null = run_dit(transformer, dit_io, landmark_mask=nothing)
    unknown = {"landmarks": torch.full((2, 68, 2), float("nan")), "landmark_latents": torch.full((2, 68, 64), float("nan"))}
    assert torch.equal(null, run_dit(transformer, dit_io, landmark_mask=nothing, **unknown))
    assert torch.equal(null, run_dit(transformer, dit_io, landmark_mask=nothing, **other))
    assert not torch.allclose(null, run_dit(transformer, dit_io), atol=1e-3)


def test_samples_of_a_batch_do_not_influence_each_other(dit_io):
    transformer = transformer_from_released(load_file(GOLDEN / "dit_weights.safetensors"), **HEADS)
    together = run_dit(transformer, dit_io)
    for row in range(2):
        alone = {name: tensor[row : row + 1] for name, tensor in dit_io.items()}
        near(run_dit(transformer, alone), together[row : row + 1])


def test_ids_stay_float32_under_bfloat16(dit_io):
    ids = landmark_ids(dit_io["landmarks"].bfloat16(), (32, 32), "mapped")
    assert ids.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("txt_in.bias"), "txt_in.bias: missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra: not a key"),
        (lambda s: s.update({"txt_in.bias": torch.zeros(3)}), r"txt_in.bias: expected shape \(64,\), given \(3,\)"),
    ],
)
def test_a_wrong_checkpoint_is_named(change, message):
    state = load_file(GOLDEN / "dit_weights.safetensors")
    change(state)
    with pytest.raises(ValueError, match=message):
        transformer_from_released(state, **HEADS)


def test_a_pickle_is_refused(tmp_path):
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"expected a \.safetensors file"):
        read_released(tmp_path / "model.pth")
