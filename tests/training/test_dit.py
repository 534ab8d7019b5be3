"""The DiT stage: what a step sees, every conditioning form, mirroring and picture sizes, and exports that the plain library loads."""

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from infra.errors import UserError
from lato.codec import SpaceToDepthCodec
from lato.conversion import read_released, transformer_from_released
from lato.edits import mirror_instruction
from lato.flow import apply_shift, shift_for
from lato.landmarks import CANVAS, mirror_landmarks
from lato.lora import merge_lora
from lato.text_encoder import TextEncoder, TextEncoderSettings
from lato.tiny_vlm import build_tiny_vlm
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer
from tests.training.versions import publish
from training.config import DataSource, EngineConfig
from training.data import Dataset, mixture
from training.encode import EncodeConfig, encode
from training.mixture import Sample
from training.stages.dit import DitStage
from training.stages.dit_config import DitConfig
from training.stages.views import disturb, face_window
from training.zero import materialise

FORMS = ["none", "rendered", "compressed", *(f"tokens/{p}" for p in ("none", "image", "learnable", "mapped")), "control"]
SMALL = {"sizes": [(16, 16)], "hidden_size": 32, "num_attention_heads": 1, "context_dim": 32, "num_double_blocks": 1, "num_single_blocks": 1,
         "val_samples": 4, "picture_samples": 2, "picture_steps": 2}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two versions, an untrained tokenizer, codecs, and both versions encoded: mirrored with latents, and plain."""
    folder = tmp_path_factory.mktemp("dit")
    publish(folder / "v1", {"train": 12, "val": 6})
    publish(folder / "v2", {"train": 5, "val": 2}, first=50, name="m")
    torch.manual_seed(0)
    tokenizer = LandmarkTokenizer(widths=(32, 32), code_dim=16, num_codes=32)
    tokenizer.initialise_codebook(torch.rand(4, 68, 2) * 300 + 100)
    tokenizer.save_pretrained(folder / "tokenizer")
    SpaceToDepthCodec(2).save_pretrained(folder / "codec")
    model, processor = build_tiny_vlm(hidden_size=32, num_layers=1, image_size=28)
    TextEncoder(model, processor, TextEncoderSettings(min_pixels=28 * 28, max_pixels=28 * 28)).save_pretrained(folder / "vlm")
    for name in ("v1", "v2"):
        dataset = Dataset.open(str(folder / name))
        encode(dataset, folder / "vlm", folder / "plain", EncodeConfig(workers=0))
        encode(dataset, folder / "vlm", folder / "whole", EncodeConfig(workers=0, mirror=True, image_size=16), folder / "codec")
    return folder


def make(home, encoded="plain", versions=("v1",), **changes):
    datasets = [Dataset.open(str(home / name)) for name in versions]
    mixed = mixture(datasets, [DataSource(uri=dataset.uri) for dataset in datasets], 0)
    return DitStage(DitConfig(**(SMALL | changes)), datasets, mixed, home / "tokenizer", home / encoded)


def built(stage):
    """What the engine trains: the module, filled."""
    model = stage.build()
    materialise(model, stage.weights())
    return model


def build(stage):
    model = built(stage)
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)  # starts at zero, which would hide what the rest does
    return model


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains(home, form):
    conditioning, _, positions = form.partition("/")
    stage = make(home, conditioning=conditioning, landmark_positions=positions or "mapped")
    model = build(stage)
    loss = stage.loss(model, stage.read(stage.data.batch(0, 32)))  # enough draws that some drop their landmarks
    assert loss.per_sample.shape == (32,)
    loss.per_sample.mean().backward()
    with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert ("landmark_in" in with_gradient) == (form.startswith("tokens") or form == "control")
    assert ("null_landmarks" in with_gradient) == (form.startswith("tokens") or form == "control")
    assert ("landmark_places" in with_gradient) == (form == "tokens/learnable")
    assert np.isfinite(stage.validate(model)["held_out"])
    assert stage.pictures(model)["edits"].shape == (2 * 16, 4 * 16, 3)


def test_the_loss_falls_in_a_plain_loop(home):
    stage = make(home, versions=("v1", "v2"))
    model = stage.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = stage.validate(model)["held_out"]
    for step in range(60):
        stage.loss(model, stage.read(stage.data.batch(step, 8))).per_sample.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert stage.validate(model)["held_out"] < 0.7 * before


def test_what_a_sample_draws_depends_on_nothing_but_itself(home):
    stage = make(home, versions=("v1", "v2"), jitter=3.0, masking=0.5)
    samples = stage.data.batch(4, 6)
    together, alone = stage.read(samples), [stage.read([sample]) for sample in samples]
    torch.rand(3)
    for name in ("source", "target", "noise", "sigma", "keep_landmarks"):
        assert torch.equal(together[name], torch.cat([own[name] for own in alone])), name
    assert torch.equal(together["condition"].landmarks, torch.cat([own["condition"].landmarks for own in alone]))
    again = stage.read([Sample(samples[0].source, samples[0].key, samples[0].epoch + 1, samples[0].step)])
    assert not torch.equal(again["noise"], alone[0]["noise"])
    assert {sample.source for step in range(9) for sample in stage.data.batch(step, 6)} == {0, 1}


def test_conditions_are_dropped_in_the_shares_asked_for_by_one_draw(home):
    stage = make(home)
    samples = [Sample(0, "k0001", epoch) for epoch in range(4000)]
    kept = np.array([stage._kept(sample) for sample in samples])
    shares = [float((kept == pair).all(1).mean()) for pair in ((False, True), (True, False), (False, False), (True, True))]
    assert np.allclose(shares, (0.10, 0.10, 0.05, 0.75), atol=0.02)
    without = samples[int(np.flatnonzero(~kept[:, 1])[0])]
    batch, cache = stage.read([without]), stage._caches[0]
    assert torch.equal(batch["text"][0], cache.text("k0001", False))
    assert stage.length(without) == len(cache.text("k0001", False)) < len(cache.text("k0001", True))
    with_text = samples[int(np.flatnonzero(kept[:, 1])[0])]
    assert stage.length(with_text) == stage.read([with_text])["text"].shape[1] == len(cache.text("k0001", True))


def test_the_held_out_loss_is_the_same_whenever_it_is_taken(home):
    stage = make(home, versions=("v1", "v2"))
    model = build(stage)
    torch.manual_seed(5)
    first = stage.validate(model)
    state = torch.get_rng_state()
    second = stage.validate(model)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert {sample.source for sample in stage._held_out} == {0, 1}
    assert len([name for name in first if name.startswith("held_out/sigma_")]) == 9


def test_training_gives_the_connector_times_in_zero_to_one(home):
    """As sampling does: what the model is told is the sigma that the noise was mixed with."""
    stage = make(home)
    model, seen = build(stage), []
    model.connector.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    stage.validate(model)
    expected = [float(apply_shift(torch.tensor(k / 10), shift_for(16))) for k in range(1, 10)]
    assert torch.allclose(torch.stack([t[0] for t in seen]), torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("padding", ["released", "masked"])
def test_a_sample_alone_equals_the_same_beside_a_longer_text(home, padding):
    stage = make(home, text_padding=padding)
    model = build(stage)
    samples = sorted(
        (Sample(0, key, 0) for key in stage.data.keys[0]), key=lambda s: stage._caches[0].text_length(s.key, stage._kept(s)[1])
    )
    short, long = samples[0], samples[-1]
    assert (stage.length(short) < stage.length(long)) == (padding == "masked")
    with torch.no_grad():
        together = stage.loss(model, stage.read([short, long])).per_sample
        alone = stage.loss(model, stage.read([short])).per_sample
    assert torch.allclose(together[0], alone[0], atol=1e-5)


def test_mirrored_samples_change_sides_in_picture_landmarks_and_text(home):
    stage = make(home, "whole", mirror=True, drop_landmarks=0, drop_text=0, drop_both=0)
    plain = make(home, "whole", drop_landmarks=0, drop_text=0, drop_both=0)
    samples = [Sample(0, "k0001", epoch) for epoch in range(20)]  # k0001 turns by 30 degrees to one side
    sides = [stage._mirrored(sample) for sample in samples]
    assert 4 <= sum(sides) <= 16
    sample = samples[sides.index(True)]
    mirrored, straight = stage.read([sample]), plain.read([sample])
    turned = [stage._to_pictures(mirrored[name], (4, 4))[0].astype(int) for name in ("source", "target")]
    pictures = [plain._to_pictures(straight[name], (4, 4))[0].astype(int) for name in ("source", "target")]
    assert all(np.abs(one - other[:, ::-1]).max() <= 2 for one, other in zip(turned, pictures, strict=True))  # stored in bf16
    assert np.allclose(mirrored["condition"].landmarks[0], mirror_landmarks(straight["condition"].landmarks[0].numpy()), atol=1e-4)
    instruction = stage._datasets[0].read(stage._datasets[0].row("k0001")).meta.instruction
    encoder = TextEncoder.from_pretrained(home / "vlm")
    picture = np.ascontiguousarray(stage._datasets[0].read(stage._datasets[0].row("k0001")).source_image()[:, ::-1])
    expected = encoder.encode([picture], [mirror_instruction(instruction)])[0]
    assert mirror_instruction(instruction) != instruction
    assert torch.allclose(mirrored["text"][0], expected, atol=0.03)  # bf16 of values around 1


def test_mirroring_without_mirrored_states_is_refused(home):
    with pytest.raises(UserError, match="mirror"):
        make(home, mirror=True)


def test_latents_from_the_cache_are_those_of_the_pictures(home):
    cached, read = make(home, "whole").read([Sample(0, "k0002", 0)]), make(home).read([Sample(0, "k0002", 0)])
    assert torch.allclose(cached["target"], read["target"], atol=0.01)
    assert torch.equal(cached["noise"], read["noise"])
    for sizes in ([(32, 32)], [(16, 16), (16, 24)]):
        with pytest.raises(UserError, match="sizes"):
            make(home, "whole", sizes=sizes)


def test_latents_of_another_codec_are_refused(home):
    """Also where it makes latents of the same shape: pictures would be drawn, and the model exported, with the wrong one."""
    SpaceToDepthCodec(2, scaling_factor=0.36, shift_factor=0.12).save_pretrained(home / "scaled_codec")
    own, other = str(home / "codec"), str(home / "scaled_codec")
    encode(Dataset.open(str(home / "v2")), home / "vlm", home / "scaled", EncodeConfig(workers=0, image_size=16), other)
    versions = ("v2",)
    make(home, "whole", versions, codec=own)
    make(home, "scaled", versions, codec=other)
    make(home, "plain", versions, codec=other)  # no latents: pictures are encoded as they are read
    with pytest.raises(UserError, match=rf"{other} \(.*\): weights or settings differ. Give the one that made them \(codec=FOLDER\), or"):
        make(home, "whole", versions, codec=other)
    with pytest.raises(UserError, match=r"scaled are not of the lossless codec \(codec_factor=2\)"):
        make(home, "scaled", versions)


@pytest.mark.parametrize("size", [(24, 16), (16, 24), (16, 16)])
def test_landmarks_stay_on_what_they_mark_when_a_picture_is_cut(size):
    """Each axis by its own scale: a dot painted at a landmark is found at the landmark's new place."""
    face = np.array([370.0, 180.0], np.float32) + np.random.default_rng(0).uniform(-40, 40, (2, 68, 2)).astype(np.float32)
    window = face_window(face, size)
    assert window.left >= 0 and window.left + window.width <= 512 and window.top >= 0 and window.top + window.height <= 512
    assert window.width / window.height == pytest.approx(size[1] / size[0], rel=0.01)
    placed = window.place(face)
    assert placed.min() >= 0 and placed.max() <= 512  # the face is inside
    for point, new in zip(face[1, :5], placed[1, :5], strict=True):
        picture = np.zeros((512, 512, 3), np.uint8)
        cv2.circle(picture, tuple(int(v) for v in np.rint(point)), 6, (255, 255, 255), -1)
        part = window.cut(picture)
        rows, columns = np.nonzero(part[:, :, 0])
        found = np.array([columns.mean() / part.shape[1], rows.mean() / part.shape[0]]) * CANVAS.width
        assert np.abs(found - new).max() < 2.0


def test_all_samples_of_a_step_share_a_size_and_sizes_change(home):
    stage = make(home, sizes=[(16, 16), (24, 16), (16, 24)])
    grids = []
    for step in range(12):
        samples = stage.data.batch(step, 4)
        parts = [stage.read(part) for part in (samples[:1], samples[1:], samples)]  # however ranks cut it
        assert len({part["grid"] for part in parts}) == 1
        assert parts[2]["target"].shape == (4, parts[2]["grid"][0] * parts[2]["grid"][1], 48)
        grids.append(parts[0]["grid"])
    assert set(grids) == {(4, 4), (6, 4), (4, 6)}
    assert torch.isfinite(stage.loss(build(stage), parts[0]).per_sample).all()


def test_landmarks_are_disturbed_as_asked(home):
    points = np.full((68, 2), 200, np.float32)
    given = [disturb(points, 5.0, 0.5, torch.Generator().manual_seed(seed)) for seed in range(200)]
    hidden = np.array([float(torch.isnan(one[:, 0]).float().mean()) for one in given])
    assert hidden.max() <= 0.5 and hidden.mean() == pytest.approx(0.25, abs=0.03)
    assert float(torch.cat(given).flatten()[~torch.isnan(torch.cat(given).flatten())].std()) == pytest.approx(5.0, rel=0.05)
    assert torch.equal(disturb(points, 0.0, 0.0, torch.Generator().manual_seed(1)), torch.from_numpy(points))
    stage = make(home, masking=0.5)
    known = stage.read(stage.data.batch(0, 16))["condition"].known
    assert 0.5 <= float(known.float().mean()) < 1


def change(model, by=0.05):
    """Makes all that is trained other than it was."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def test_a_whole_model_is_exported_in_both_layouts(home, tmp_path):
    stage = make(home)
    model = build(stage)
    change(model)
    stage.export(model, tmp_path)
    batch = stage.read([Sample(0, key, 0) for key in stage.data.keys[0][:4]])
    batch |= {"keep_landmarks": torch.ones(4, dtype=torch.bool)}  # released files have no null tokens
    loaded = LaToTransformer.from_pretrained(tmp_path)
    released = transformer_from_released(read_released(tmp_path / "released/LaTo/lato/lato.safetensors"), 1, (8, 12, 12))
    with torch.no_grad():
        expected = stage.loss(model, batch).per_sample
        assert torch.equal(stage.loss(loaded, batch).per_sample, expected)
        # a released file does not say how text is padded; these texts are padded where the model was trained to be blind
        one = {**stage.read([Sample(0, "k0001", 0)]), "keep_landmarks": torch.ones(1, dtype=torch.bool)}
        assert torch.allclose(stage.loss(released, one).per_sample, stage.loss(model, one).per_sample, atol=1e-5)
    assert SpaceToDepthCodec.from_pretrained(tmp_path / "vae").config["factor"] == 2


def test_a_lora_trains_its_own_tensors_and_is_exported_for_peft_and_kohya(home, tmp_path):
    base = build(make(home))
    base.save_pretrained(tmp_path / "base")
    stage = make(home, base=str(tmp_path / "base"), adapter="lora", lora_rank=4, lora_alpha=8)
    model = built(stage)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {"landmark_in.weight", "landmark_in.bias", "null_landmarks.tokens"}
    assert own <= trained and all(".lora_" in name for name in trained - own)
    change(model, 0.3)
    stage.export(model, tmp_path / "export")
    batch = stage.read(stage.data.batch(0, 8))
    plain, kohya = (LaToTransformer.from_pretrained(tmp_path / "base") for _ in range(2))
    plain.load_lora_adapter(tmp_path / "export")
    with torch.no_grad():
        expected = stage.loss(model, batch).per_sample
        assert not torch.allclose(stage.loss(kohya, batch).per_sample, expected, atol=1e-2)
        assert torch.allclose(stage.loss(plain, batch).per_sample, expected, atol=1e-5)
        state = dict(read_released(tmp_path / "export/released/LaTo/lora/lato.safetensors"))
        std = kohya.config["landmark_std"]
        state |= {"landmark_in.weight": state["landmark_in.weight"] * std, "null_landmarks.tokens": state["null_landmarks.tokens"] / std}
        merge_lora(kohya, state)  # its codes are not scaled, this base's are
        assert torch.allclose(stage.loss(kohya, batch).per_sample, expected, atol=1e-4)
    assert not (tmp_path / "export/diffusion_pytorch_model.safetensors").exists()  # the base is not copied


def test_a_released_base_gets_null_tokens_at_the_codebooks_mean(home, tmp_path):
    base = build(make(home))
    with torch.no_grad():
        base.null_landmarks.tokens.zero_()
    base.save_pretrained(tmp_path)
    stage = make(home, base=str(tmp_path))
    tokens = built(stage).null_landmarks.tokens
    codebook = stage._tokenizer.vq.codebook
    assert torch.allclose(tokens[5], codebook.mean(0) / codebook.std(), atol=1e-6)


def test_what_does_not_fit_is_refused_at_the_start(home, tmp_path):
    with pytest.raises(ValidationError, match="base"):
        DitConfig(adapter="lora")
    with pytest.raises(ValidationError, match="drop_"):
        DitConfig(drop_landmarks=0.6, drop_text=0.4)
    with pytest.raises(UserError, match="no folder of a LaToTransformer"):
        make(home, base=str(tmp_path))
    with pytest.raises(UserError, match="multiples of 4"):
        make(home, sizes=[(18, 16)])
    LaToTransformer(hidden_size=32, num_attention_heads=1, axes_dims_rope=(8, 12, 12), num_double_blocks=1, num_single_blocks=1, in_channels=48,
                    text_dim=64, context_dim=32, connector_num_heads=1, connector_depth=1, landmark_dim=16).save_pretrained(tmp_path / "base")  # fmt: skip
    with pytest.raises(UserError, match="text_dim is 64"):
        make(home, base=str(tmp_path / "base"))
    publish(tmp_path / "v3", {"train": 3})
    dataset = Dataset.open(str(tmp_path / "v3"))
    encode(dataset, home / "vlm", tmp_path / "states", EncodeConfig(workers=0))
    mixed = mixture([dataset], [DataSource(uri=dataset.uri)], 0)
    with pytest.raises(UserError, match="val"):
        DitStage(DitConfig(**SMALL, engine=EngineConfig(seed=1)), [dataset], mixed, home / "tokenizer", tmp_path / "states")
