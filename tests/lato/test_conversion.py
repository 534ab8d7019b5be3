"""Released files both ways: VAE, LoRA, landmark_in.pth, whole folders, and the memory that filling takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from lato.conversion import landmark_in_from_released, read_released, transformer_from_released
from lato.lora import add_adapter, block_linears, load_lora, lora_to_released, merge_lora
from lato.released_vae import vae_from_released, vae_to_released
from lato.transformer import LaToTransformer
from tests.lato.test_golden import GOLDEN, HEADS, run_dit


@pytest.fixture
def transformer():
    made = transformer_from_released(load_file(GOLDEN / "dit_weights.safetensors"), **HEADS)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.null_landmarks.tokens)
    return made


@pytest.fixture(scope="module")
def dit_io():
    return load_file(GOLDEN / "dit_io.safetensors")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(32, 64, 64),
        layers_per_block=2, latent_channels=4, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159,
    ).eval()  # fmt: skip


def test_vae_names_are_those_that_diffusers_reads(vae):
    """diffusers has a reader of its own for these files: both must give the same model."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    released = vae_to_released(vae)
    assert "encoder.down.1.block.0.nin_shortcut.weight" in released
    assert released["decoder.mid.attn_1.q.weight"].ndim == 4
    theirs = convert_ldm_vae_checkpoint(dict(released), dict(vae.config))
    mine = vae.state_dict()
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[name].reshape(mine[name].shape), mine[name]) for name in mine)
    image = torch.rand(1, 3, 32, 16)
    again = vae_from_released(released)
    assert torch.equal(again.encode(image).latent_dist.mode(), vae.encode(image).latent_dist.mode())
    assert again.config["scaling_factor"] == 0.3611
    back = vae_to_released(again)
    assert back.keys() == released.keys()
    assert all(torch.equal(back[name], released[name]) for name in back)


def test_full_size_vae_is_read_off_its_shapes():
    with torch.device("meta"):
        full = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
            layers_per_block=2, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False,
        )  # fmt: skip
    released = vae_to_released(full)
    assert len(released) == 244
    assert released["decoder.up.3.upsample.conv.weight"].shape == (512, 512, 3, 3)


def test_a_wrong_vae_is_named(vae):
    state = vae_to_released(vae)
    state.pop("encoder.norm_out.bias")
    with pytest.raises(ValueError, match=r"encoder.conv_norm_out.bias: missing"):
        vae_from_released(state)


def kohya(transformer, rank=4, alpha=2.0):
    torch.manual_seed(3)
    state = {}
    for name in [*block_linears(transformer), "landmark_in"]:
        out, width = transformer.get_submodule(name).weight.shape
        key = "lora_unet_" + name.replace(".", "_")
        state |= {f"{key}.lora_down.weight": torch.randn(rank, width) * 0.1, f"{key}.lora_up.weight": torch.randn(out, rank) * 0.1}
        state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


def test_lora_merged_equals_lora_as_an_adapter(transformer, dit_io):
    before = run_dit(transformer, dit_io)
    state = kohya(transformer)
    merged = transformer_from_released(load_file(GOLDEN / "dit_weights.safetensors"), **HEADS)
    merged.null_landmarks.load_state_dict(transformer.null_landmarks.state_dict())
    layers = 10 * 2 + 3 * 3 + 1  # 10 Linears a double block, 3 a single one, and landmark_in
    assert merge_lora(merged, state) == layers
    assert load_lora(transformer, state) == layers
    out = run_dit(transformer, dit_io)
    assert (out - before).abs().max() > 0.01
    assert torch.allclose(out, run_dit(merged, dit_io), atol=1e-5)
    back = lora_to_released(transformer)
    assert back.keys() - state.keys() == {"null_landmarks.tokens"}  # landmark_in's own weights stay the base's
    assert all(torch.equal(back[name], state[name]) for name in state)
    transformer.disable_lora()
    assert torch.allclose(run_dit(transformer, dit_io), before, atol=1e-6)


def test_the_full_model_has_304_adapted_linears():
    with torch.device("meta"):
        assert len(block_linears(LaToTransformer())) == 304


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"lora_unet_nothing.alpha": torch.ones(())}), "lora_unet_nothing.alpha: this LoRA key is of no layer"),
        (lambda s: s.pop("lora_unet_landmark_in.lora_up.weight"), "landmark_in: its lora_up.weight is missing"),
        (lambda s: s.update({"lora_unet_landmark_in.lora_down.weight": torch.ones(4, 3)}), "landmark_in: expected LoRA of"),
        (lambda s: s.clear(), "no LoRA keys"),
    ],
)
def test_a_wrong_lora_is_named(transformer, change, message):
    state = kohya(transformer)
    change(state)
    with pytest.raises(ValueError, match=message):
        merge_lora(transformer, state)


def test_a_trained_adapter_and_its_base_are_the_trained_model(transformer, dit_io, tmp_path):
    """Trained: LoRA, landmark_in and nulls. Saved, and loaded on a fresh base, the conditional and the null branch are the same."""
    transformer.save_pretrained(tmp_path / "base")
    add_adapter(transformer, rank=4, alpha=4)
    trainable = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert {"landmark_in.weight", "landmark_in.bias", "null_landmarks.tokens"} < trainable
    assert all(".lora_" in name for name in trainable - {"landmark_in.weight", "landmark_in.bias", "null_landmarks.tokens"})
    optimizer = torch.optim.AdamW([p for p in transformer.parameters() if p.requires_grad], lr=1e-2)
    nothing = torch.zeros(2, 68, dtype=torch.bool)
    before = run_dit(transformer, dit_io), run_dit(transformer, dit_io, landmark_mask=nothing)
    arguments = {name: dit_io[name] for name in ("landmarks", "timestep")}
    tokens = dit_io["noise_and_source_tokens"]
    for step in range(3):
        out = transformer(
            noise_tokens=tokens[:, :16], source_tokens=tokens[:, 16:], grid=(4, 4),
            landmark_latents=dit_io["landmark_latents"].transpose(1, 2), text_embeddings=dit_io["llm_embedding"],
            text_mask=dit_io["llm_mask"], landmark_mask=nothing if step % 2 else ~nothing, **arguments,
        )  # fmt: skip
        optimizer.zero_grad()
        out.square().mean().backward()
        optimizer.step()
    trained = run_dit(transformer, dit_io), run_dit(transformer, dit_io, landmark_mask=nothing)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(before, trained, strict=True))
    transformer.save_lora_adapter(tmp_path / "adapter")
    for source in (tmp_path / "adapter", tmp_path / "adapter" / "pytorch_lora_weights.safetensors"):
        again = LaToTransformer.from_pretrained(tmp_path / "base")
        again.load_lora_adapter(source)
        assert torch.allclose(run_dit(again, dit_io), trained[0], atol=1e-6)
        assert torch.allclose(run_dit(again, dit_io, landmark_mask=nothing), trained[1], atol=1e-6)
    # the exported form, merged into the base, is the trained model too
    merged = LaToTransformer.from_pretrained(tmp_path / "base")
    merge_lora(merged, lora_to_released(transformer))
    assert torch.allclose(run_dit(merged, dit_io), trained[0], atol=1e-5)
    assert torch.allclose(run_dit(merged, dit_io, landmark_mask=nothing), trained[1], atol=1e-5)
    other = LaToTransformer.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        other.txt_in.weight.mul_(2)
    with pytest.raises(ValueError, match="trained on base"):
        other.load_lora_adapter(tmp_path / "adapter")
    with pytest.raises(ValueError, match="no LoRA keys"):
        LaToTransformer.from_pretrained(tmp_path / "base").load_lora_adapter({"landmark_in.bias": torch.zeros(64)})
    with pytest.raises(ValueError, match="not found"):
        other.save_lora_adapter(tmp_path / "other")


def test_landmark_in_pth_is_read_without_running_it(transformer, tmp_path):
    torch.save(transformer.landmark_in.state_dict(), tmp_path / "landmark_in.pth")
    state = load_file(GOLDEN / "dit_weights.safetensors")
    expected = {name: state.pop(name) for name in ("landmark_in.weight", "landmark_in.bias")}
    over = landmark_in_from_released(tmp_path / "landmark_in.pth")
    made = transformer_from_released(state, **HEADS, landmark_in=over)
    assert torch.equal(made.landmark_in.weight, expected["landmark_in.weight"])
    torch.save({"weight": Path("x")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="expected tensors only"):
        landmark_in_from_released(tmp_path / "bad.pth")
    torch.save({"other": torch.ones(1)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"expected a weight and a bias, given \['other'\]"):
        landmark_in_from_released(tmp_path / "bad.pth")


def test_a_file_that_only_says_safetensors(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"PK\x03\x04 a pickle in a zip, say" * 10)
    with pytest.raises(ValueError, match="expected safetensors content"):
        read_released(tmp_path / "x.safetensors")


_PEAK = """
import json, sys
import torch
from lato.conversion import read_released, transformer_from_released
file = read_released(sys.argv[1])
before = int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) * 1024
model = transformer_from_released(file, num_attention_heads=8, axes_dims_rope=(16, 56, 56))
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
sizes = [t.numel() * t.element_size() for t in model.state_dict().values()]
print(json.dumps({"before": before, "peak": peak, "model": sum(sizes), "largest": max(sizes)}))
"""


def test_filling_takes_the_model_and_one_tensor(tmp_path):
    """Peak memory over what the process had before: at most the model and its largest tensor (and 5 % for the allocator)."""
    torch.manual_seed(0)
    big = LaToTransformer(
        in_channels=16, hidden_size=1024, num_attention_heads=8, num_double_blocks=2, num_single_blocks=4, text_dim=64, context_dim=1024,
        connector_num_heads=8, connector_depth=1, pooled_dim=64, landmark_dim=64,
    )  # fmt: skip
    from lato.conversion import transformer_to_released

    save_file({name: tensor.contiguous() for name, tensor in transformer_to_released(big).items()}, tmp_path / "big.safetensors")
    del big
    script = _PEAK
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "big.safetensors")], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["model"] > 400e6
    assert told["peak"] - told["before"] <= 1.05 * told["model"] + told["largest"], told


@pytest.mark.slow
def test_the_example_edits_with_released_files(tmp_path):
    """docs/examples/edit_released.py: a whole folder in the released layout; and what is missing from one is named at once."""
    from lato.pipeline import LaToPipeline

    example = Path(__file__).parents[2] / "docs/examples/edit_released.py"
    subprocess.run([sys.executable, str(example), str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "edited.png").is_file()
    heads = {"num_attention_heads": 2, "axes_dims_rope": (4, 14, 14)}
    first = LaToPipeline.from_released(tmp_path / "models", **heads)
    (tmp_path / "models/LaTo/lora").mkdir()
    save_file(kohya(first.transformer), tmp_path / "models/LaTo/lora/lato.safetensors")
    merged = LaToPipeline.from_released(tmp_path / "models", **heads)
    assert not torch.equal(merged.transformer.landmark_in.weight, first.transformer.landmark_in.weight)
    (tmp_path / "models/text_prefix.txt").unlink()
    (tmp_path / "models/LaTo/lato/vae.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"vae.safetensors.*text_prefix.txt"):
        LaToPipeline.from_released(tmp_path / "models", **heads)
