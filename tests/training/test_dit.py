"""The DiT stage: every conditioning form trains, and sees the same times as the sampler."""

import pytest
import torch

from lato.text_encoder import TextEncoder, TextEncoderSettings
from lato.tiny_vlm import build_tiny_vlm, template_texts
from lato.tokenizer import LandmarkTokenizer
from training.data import Dataset
from training.encode import EncodeConfig, encode
from training.stages.dit import DitConfig, DitStage

FORMS = ["none", "rendered", "compressed", *(f"tokens/{p}" for p in ("none", "image", "learnable", "mapped")), "control"]


@pytest.fixture(scope="module")
def inputs(synthetic_version, tmp_path_factory):
    """A dataset, and states and tokenizer of untrained models."""
    folder = tmp_path_factory.mktemp("dit")
    dataset = Dataset.open(synthetic_version.uri)
    torch.manual_seed(0)
    tokenizer = LandmarkTokenizer(widths=(32, 32), code_dim=16, num_codes=32)
    tokenizer.initialise_codebook(torch.rand(4, 68, 2) * 300 + 100)
    tokenizer.save_pretrained(folder / "tokenizer")
    vlm = build_tiny_vlm(template_texts(), hidden_size=32, num_layers=1, image_size=56)
    TextEncoder(*vlm, TextEncoderSettings(min_pixels=56 * 56, max_pixels=56 * 56)).save_pretrained(folder / "vlm")
    encode(dataset, folder / "vlm", folder / "text", EncodeConfig(workers=0))
    return dataset, folder


def make(inputs, form):
    dataset, folder = inputs
    conditioning, _, positions = form.partition("/")
    config = DitConfig(image_size=16, hidden_size=32, num_attention_heads=1, context_dim=32, conditioning=conditioning,
                       landmark_positions=positions or "mapped", num_double_blocks=1, num_single_blocks=1, val_samples=2)  # fmt: skip
    stage = DitStage(config, dataset, folder / "tokenizer", folder / "text")
    model = stage.build()
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)  # starts at zero, which would hide what the rest does
    return stage, model


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains(inputs, form):
    stage, model = make(inputs, form)
    samples = [(key, epoch) for epoch in range(8) for key in stage.keys[:4]]  # enough draws that some drop their landmarks
    loss, _ = stage.loss(model, samples)
    loss.backward()
    with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert ("landmark_in" in with_gradient) == (form.startswith("tokens") or form == "control")
    assert ("null_landmarks" in with_gradient) == (form.startswith("tokens") or form == "control")
    assert ("landmark_places" in with_gradient) == (form == "tokens/learnable")
    assert torch.isfinite(torch.tensor(stage.validate(model)["held_out"]))


def test_training_gives_the_connector_times_in_zero_to_one(inputs):
    """As sampling does: what the model is told is the sigma that the noise was mixed with."""
    stage, model = make(inputs, "tokens/mapped")
    seen = []
    model.connector.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    stage.validate(model)
    from lato.flow import apply_shift, shift_for

    expected = [float(apply_shift(torch.tensor(k / 10), shift_for(16))) for k in range(1, 10)]
    assert torch.allclose(torch.stack([t[0] for t in seen]), torch.tensor(expected), atol=1e-6)
