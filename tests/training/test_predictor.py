"""The predictor stage in a plain loop: what its loss is on, what a mirror changes, which models it takes, what it exports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from infra.errors import UserError
from lato.edits import parse_instruction
from lato.landmarks import mirror_landmarks
from lato.predictor import LandmarkPredictor, compact_reaches
from lato.tiny_vlm import build_tiny_vlm
from tests.training.versions import publish
from training.data import Dataset
from training.mixture import Mixture
from training.stages.predictor import AdapterConfig, PredictorConfig, PredictorStage

TINY = {"syntax": "compact", "image_size": 56, "hidden_size": 32, "num_layers": 2, "val_samples": 3, "decoded_samples": 1}


@pytest.fixture(scope="module")
def dataset(synthetic_version):
    return Dataset.open(synthetic_version.uri)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Untrained small models as folders: a Qwen2.5-VL, and a Qwen3-VL with the same tokenizer."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    folder = tmp_path_factory.mktemp("bases")
    model, processor = build_tiny_vlm(hidden_size=32, num_layers=2, image_size=56)
    model.save_pretrained(folder / "qwen2_5")
    processor.save_pretrained(folder / "qwen2_5")
    old, tokenizer = model.config, processor.tokenizer
    text = old.text_config.to_dict() | {"model_type": "qwen3_vl_text", "head_dim": 32, "rope_parameters": old.text_config.rope_parameters}
    config = Qwen3VLConfig(
        text_config={key: value for key, value in text.items() if key not in ("layer_types", "sliding_window", "use_sliding_window")},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32, "patch_size": 16,
                       "spatial_merge_size": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        image_token_id=old.image_token_id, video_token_id=old.video_token_id,
        vision_start_token_id=old.vision_start_token_id, vision_end_token_id=old.vision_end_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder / "qwen3")
    pixels = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels), tokenizer=tokenizer, video_processor=Qwen3VLVideoProcessor(**pixels),
        chat_template=processor.chat_template,
    ).save_pretrained(folder / "qwen3")  # fmt: skip
    return folder


def make(dataset, **config):
    keys = [row["key"] for row in dataset.split("train")]
    return PredictorStage(PredictorConfig(**{**TINY, **config}), [dataset], Mixture([keys], [1.0], 0))


def answer_text(stage, labels):
    return stage._processor.tokenizer.decode(labels[labels != -100])


def train(stage, steps, lr=4e-3, size=4):
    """A plain loop; returns the module and its losses."""
    torch.manual_seed(0)
    module = stage.build()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr)
    losses = []
    for step in range(steps):
        loss = stage.loss(module, stage.read(stage.data.batch(step, size))).per_sample.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss))
    return module, losses


def test_the_loss_of_a_sample_is_its_own_and_on_its_answer_alone(dataset):
    stage = make(dataset)
    module = stage.build().eval()
    samples = stage.data.batch(0, 3)
    batch = stage.read(samples)
    together = stage.loss(module, batch)
    assert together.per_sample.shape == (3,) and together.tokens == int(batch["attention_mask"].sum())
    alone = torch.cat([stage.loss(module, stage.read([sample])).per_sample for sample in samples])
    assert torch.allclose(together.per_sample, alone, atol=1e-4)  # left padding, and how the batch is cut, change nothing
    labels = batch["labels"]
    logits = module(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    whole = [
        torch.nn.functional.cross_entropy(logits[row, :-1][labels[row, 1:] != -100], labels[row, 1:][labels[row, 1:] != -100])
        for row in range(3)
    ]
    assert torch.allclose(together.per_sample, torch.stack(whole), atol=1e-5)
    text = answer_text(stage, labels[0])
    assert text.startswith("<think>1 ") and text.endswith("</answer><|im_end|>")
    assert stage.length(samples[0]) > 0


def test_positions_need_the_type_ids(dataset):
    stage = make(dataset)
    module, batch = stage.build().eval(), stage.read(stage.data.batch(0, 2))
    assert batch["mm_token_type_ids"].sum() == 2 * 4  # four image tokens each
    batch.pop("labels")
    with torch.no_grad():
        logits = module(**batch).logits
        types = batch.pop("mm_token_type_ids")
        without = module(**batch).logits
    assert (logits - without).abs().max() > 1e-4 * logits.abs().max() and types.shape == batch["input_ids"].shape


def test_a_mirror_turns_picture_landmarks_and_words(dataset):
    plain, mirrored = make(dataset), make(dataset, mirror=True)
    samples = plain.data.batch(0, 24)
    turned = 0
    for sample in samples:
        first, second = plain._example(sample), mirrored._example(sample)
        if np.array_equal(first.picture, second.picture):
            assert first.reasoning == second.reasoning
            continue
        turned += 1
        assert np.array_equal(first.picture[:, ::-1], second.picture)
        assert np.allclose(mirror_landmarks(first.landmarks), second.landmarks)
        assert parse_instruction(second.instruction) == parse_instruction(first.instruction).mirrored()
        edit = parse_instruction(first.instruction)
        if edit.yaw or edit.roll:
            assert first.reasoning != second.reasoning
    assert 5 <= turned <= 19
    again = [mirrored._example(sample).instruction for sample in samples]
    assert again == [mirrored._example(sample).instruction for sample in samples]


@pytest.mark.slow
def test_it_learns_and_its_folder_loads_with_plain_transformers(dataset, tmp_path):
    stage = make(dataset, max_new_tokens=300)
    module, losses = train(stage, 40)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    values = stage.validate(module)
    assert values["held_out"] < 0.8 * losses[0] and 0 <= values["held_out/valid_answers"] <= 1
    assert stage.pictures(module)["landmarks"].shape == (256, 3 * 256, 3)
    stage.export(module, tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer.convert_tokens_to_ids("<c007>") == stage._processor.tokenizer.convert_tokens_to_ids("<c007>")
    batch = stage.read(stage.data.batch(0, 2))
    assert torch.equal(stage.loss(model.eval(), batch).per_sample, stage.loss(module.eval(), batch).per_sample)
    settings = LandmarkPredictor.from_pretrained(tmp_path).settings
    assert (settings.syntax, settings.image_size, settings.max_new_tokens) == ("compact", 56, 300)


@pytest.mark.parametrize(("base", "side"), [("qwen2_5", 56), ("qwen3", 64)])
def test_pretrained_models_take_both_syntaxes(dataset, bases, base, side):
    for syntax in ("json", "compact"):
        stage = make(dataset, base=str(bases / base), image_size=side, syntax=syntax)
        module = stage.build()
        assert type(module).__name__.startswith({"qwen2_5": "Qwen2_5", "qwen3": "Qwen3"}[base])
        batch = stage.read(stage.data.batch(0, 1))
        assert answer_text(stage, batch["labels"][0]).startswith("<think>1")
        stage.loss(module, batch).per_sample.mean().backward()
        assert all(float(p.grad.abs().sum()) > 0 for name, p in module.named_parameters() if name.endswith("q_proj.weight"))


def test_lora_trains_the_adapter_and_exports_merged_and_alone(dataset, bases, tmp_path):
    stage = make(dataset, base=str(bases / "qwen2_5"), syntax="json", adapter=AdapterConfig(rank=4, alpha=8), decoded_samples=0)
    module, _ = train(stage, 2, size=1)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 7 * 2 and all(".lora_" in name and "visual" not in name for name in names)
    stage.export(module, tmp_path)
    batch = stage.read(stage.data.batch(0, 1))
    expected = stage.loss(module.eval(), batch).per_sample
    assert torch.allclose(stage.loss(AutoModelForImageTextToText.from_pretrained(tmp_path), batch).per_sample, expected, atol=1e-4)
    from peft import PeftModel

    base = AutoModelForImageTextToText.from_pretrained(bases / "qwen2_5")
    before = stage.loss(base.eval(), batch).per_sample
    adapted = stage.loss(PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), batch).per_sample
    assert torch.allclose(adapted, expected, atol=1e-5) and not torch.allclose(before, expected, atol=1e-4)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 4


def test_what_the_compact_syntax_cannot_write_is_left_out_and_told(tmp_path, bases):
    publish(tmp_path / "v1", {"train": 8, "val": 4}, far=(2, 5, 9))
    version = Dataset.open(str(tmp_path / "v1"))
    stage = make(version, decoded_samples=0, val_samples=8)
    assert stage.notes == [
        "3 samples are left out: a landmark moves by more than 255 px, which the compact syntax cannot write (k0002, k0005, k0009)"
    ]
    seen = {sample.key for step in range(6) for sample in stage.data.batch(step, 2)}
    assert seen == {"k0000", "k0001", "k0003", "k0004", "k0006", "k0007"}
    assert [pair.key for pair in stage._val] == ["k0008", "k0010", "k0011"]
    assert np.isfinite(stage.validate(stage.build().eval())["held_out"])
    whole = make(version, base=str(bases / "qwen2_5"), syntax="json")
    assert whole.notes == [] and len(whole.data) == 8
    publish(tmp_path / "v2", {"train": 2, "val": 2}, far=(2, 3))
    with pytest.raises(UserError, match="in every sample of val a landmark moves by more than 255 px; use syntax=json"):
        make(Dataset.open(str(tmp_path / "v2")))


def test_how_far_compact_coordinates_reach_is_the_same_in_a_mirror():
    for move, reached in ((255, True), (-255, True), (256, False), (-256, False), (255.4, True)):
        pair = np.full((2, 68, 2), 256, np.float32)
        pair[1, 3, 0] += move
        assert compact_reaches(pair) == reached == compact_reaches(mirror_landmarks(pair))


def test_wrong_settings_say_what_to_do(dataset, bases):
    for wrong, said in (
        ({"base": str(bases / "qwen3"), "image_size": 56}, "take 32 or 64"),
        ({"base": str(Path("nowhere"))}, "is no folder"),
        ({"adapter": AdapterConfig()}, "needs a pretrained model"),
        ({"base": str(bases / "qwen2_5"), "adapter": AdapterConfig()}, "does not train"),
    ):
        with pytest.raises(UserError, match=said):
            make(dataset, **wrong)
