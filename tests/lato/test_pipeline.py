"""Predictor and pipeline from small untrained models: answers always parse, a saved folder edits by itself, a batch equals its pictures alone."""

import numpy as np
import pytest
import torch

from lato.codec import SpaceToDepthCodec, decode_latents, encode_images, from_tokens, to_tokens
from lato.guidance import Guidance
from lato.pipeline import LaToPipeline
from lato.predictor import LandmarkPredictor, PredictorSettings, check_geometry, write_reasoning
from lato.text_encoder import TextEncoder, TextEncoderSettings
from lato.tiny_vlm import build_tiny_vlm, template_texts
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer


@pytest.fixture(scope="module")
def vlm():
    return build_tiny_vlm(template_texts(), hidden_size=32, num_layers=2, image_size=56)


@pytest.fixture(scope="module")
def predictor(vlm):
    return LandmarkPredictor(*vlm, PredictorSettings("compact", 512, 56, 600))


@pytest.fixture(scope="module")
def pipeline(vlm, predictor):
    torch.manual_seed(0)
    tokenizer = LandmarkTokenizer(widths=(32, 32), code_dim=8, num_codes=16)
    tokenizer.initialise_codebook(torch.rand(4, 68, 2) * 300 + 100)
    transformer = LaToTransformer(
        in_channels=48, hidden_size=32, num_attention_heads=1, num_double_blocks=1, num_single_blocks=1, axes_dims_rope=(8, 12, 12),
        text_dim=32, context_dim=32, connector_num_heads=1, connector_depth=1, pooled_dim=16, landmark_dim=8, text_padding="masked",
    )  # fmt: skip
    encoder = TextEncoder(*vlm, TextEncoderSettings(image_size=56))
    return LaToPipeline(transformer, tokenizer, encoder, SpaceToDepthCodec(2), predictor, 32)


@pytest.fixture(scope="module")
def face():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (512, 512, 3), dtype=np.uint8) for _ in range(2)]
    return pictures, rng.uniform(150, 350, (2, 68, 2)).astype(np.float32)


def test_codec_loses_nothing():
    image = torch.rand(2, 3, 24, 16) * 2 - 1
    codec = SpaceToDepthCodec(2)
    tokens = to_tokens(encode_images(codec, image))
    assert tokens.shape == (2, 6 * 4, 48)
    assert torch.equal(decode_latents(codec, from_tokens(tokens, (6, 4))), image)


def test_answers_read_back(predictor, face):
    _, points = face
    target = points[0] + np.arange(136).reshape(68, 2) % 7 - 3
    text = predictor.write_answer(points[0], target, "because")
    read = predictor.read_answer(text, points[0])
    assert read.reasoning == "because"
    assert np.abs(read.landmarks - target).max() <= 0.51
    assert predictor.read_answer("<think>a</think><answer><c001></answer>", points[0]).problems == ("expected 136 coordinates, given 1",)
    assert predictor.read_answer("nothing", points[0]).landmarks is None


def test_json_syntax_reads_back_and_checks(vlm, face):
    predictor = LandmarkPredictor(*vlm, PredictorSettings("json", 512, 56))
    source, target = face[1]
    read = predictor.read_answer(predictor.write_answer(source, target, ""), source)
    assert np.abs(read.landmarks - target).max() <= 0.51
    for bad in ('{"NOSE": []}', "[1, 2", '{"JAW/BROWS": 3}'):
        assert predictor.read_answer(f"<answer>{bad}</answer>", source).landmarks is None


def test_grammar_makes_even_an_untrained_model_answer(predictor, face):
    for prediction in predictor.predict(*face, ["smile", "turn the head 30 degrees to the left"]):
        assert prediction.landmarks is not None, prediction.problems
        assert prediction.landmarks.shape == (68, 2)


def test_only_the_answer_is_labelled(predictor, face):
    answers = [predictor.write_answer(points, points, reasoning) for points, reasoning in zip(face[1], ("a", "a longer one"), strict=True)]
    inputs = predictor.encode(*face, ["smile", "smile"], answers)
    for row, answer in enumerate(answers):
        labelled = inputs["labels"][row] != -100
        assert predictor.processor.tokenizer.decode(inputs["labels"][row][labelled]) == answer
    assert inputs["mm_token_type_ids"].sum() == 2 * 4  # four image tokens each


def test_geometry_is_checked(face):
    points = face[1][0].copy()
    points[:, 1] = np.linspace(100, 400, 68)
    upside_down = points * [1, -1] + [0, 500]
    assert any("nose" in p or "eyes" in p for p in check_geometry(points, np.zeros_like(points) + upside_down * 0.1))
    assert "yaw 30" in write_reasoning("happy", (28, 0, 0), "sad", points, points)


def test_positions_need_the_type_ids(vlm, face):
    """Without mm_token_type_ids transformers 5 places image tokens in a row; the encoder passes them."""
    model, processor = vlm
    from PIL import Image

    inputs = processor(
        text=["<|vision_start|><|image_pad|><|vision_end|>smile"],
        images=[Image.fromarray(face[0][0]).resize((56, 56))],
        return_tensors="pt",
    )
    with torch.no_grad():
        right = model.model(**inputs).last_hidden_state
        wrong = model.model(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}).last_hidden_state
    assert not torch.allclose(right, wrong, atol=1e-6)


def test_a_text_alone_equals_the_same_beside_a_longer_one(pipeline, face):
    pictures, _ = face
    both, masks = pipeline.text_encoder.encode(pictures, ["smile", "turn the head 30 degrees to the left, and look very surprised"])
    alone, mask = pipeline.text_encoder.encode(pictures[:1], ["smile"])
    assert mask.all()
    assert torch.allclose(both[0][masks[0]], alone[0], atol=1e-5)
    assert both[0][~masks[0]].abs().sum() == 0
    null, null_mask = pipeline.text_encoder.encode(pictures, ["", ""])
    assert null_mask.sum() < masks.sum()
    assert not torch.allclose(null[0], null[1])  # the null text still sees the picture


def test_saved_and_loaded_it_edits_the_same(pipeline, face, tmp_path):
    pictures, points = face
    pipeline.save_pretrained(tmp_path)
    again = LaToPipeline.from_pretrained(tmp_path)
    arguments = {"images": pictures, "instructions": ["smile", "look sad"], "source_landmarks": points, "num_inference_steps": 2, "seed": 3}
    first, second = pipeline(**arguments), again(**arguments)
    assert all(np.array_equal(a, b) for a, b in zip(first.images, second.images, strict=True))
    assert first.reasoning == second.reasoning
    assert first.images[0].shape == (32, 32, 3)


def test_a_batch_equals_its_pictures_alone(pipeline, face):
    pictures, points = face
    together = pipeline(pictures, ["smile", "look sad"], points, num_inference_steps=3, guidance=Guidance("joint", 2.0))
    alone = pipeline(pictures[1:], ["look sad"], points[1:], num_inference_steps=3, guidance=Guidance("joint", 2.0), seed=1)
    assert np.abs(together.images[1].astype(int) - alone.images[0]).max() <= 1


def test_missing_landmarks_are_left_to_the_model(pipeline, face):
    pictures, points = face
    partial = points.copy()
    partial[:, 48:] = np.nan
    steps = []
    output = pipeline(pictures, ["smile", "smile"], partial, num_inference_steps=2, callback=lambda *call: steps.append(call[0]))
    assert steps == [1, 2]
    assert not np.array_equal(output.images[0], pipeline(pictures, ["smile", "smile"], points, num_inference_steps=2).images[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instructions": ["one"]}, "instructions: expected one for each of 2 images"),
        ({"landmarks": np.zeros((2, 67, 2))}, r"landmarks: expected shape \(2, 68, 2\)"),
        ({"landmarks": None}, "source_landmarks: needed"),
        ({"images": [np.zeros((5, 5, 3)), np.zeros((5, 5, 3))]}, "expected uint8"),
    ],
)
def test_bad_arguments_are_named(pipeline, face, change, message):
    pictures, points = face
    with pytest.raises(ValueError, match=message):
        pipeline(**{"images": pictures, "instructions": ["a", "b"], "landmarks": points} | change)
