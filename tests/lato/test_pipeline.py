"""Predictor and pipeline from small untrained models: answers always parse, a saved folder edits by itself, a batch equals its pictures alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from lato.codec import SpaceToDepthCodec, decode_latents, encode_images, from_tokens, to_tokens
from lato.conditioning import fill_unknown
from lato.guidance import Guidance
from lato.pipeline import LaToPipeline
from lato.predictor import LandmarkPredictor, PredictorSettings, check_geometry
from lato.text_encoder import TextEncoder, TextEncoderSettings, pad_states
from lato.tiny_vlm import build_tiny_vlm
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer


@pytest.fixture(scope="module")
def vlm():
    return build_tiny_vlm(hidden_size=32, num_layers=2, image_size=56)


@pytest.fixture(scope="module")
def predictor(vlm):
    return LandmarkPredictor(*vlm, PredictorSettings("compact", 512, 56, 200, max_reasoning=40))


@pytest.fixture(scope="module")
def pipeline(vlm, predictor):
    torch.manual_seed(0)
    tokenizer = LandmarkTokenizer(widths=(32, 32), code_dim=8, num_codes=16)
    tokenizer.initialise_codebook(torch.rand(4, 68, 2) * 300 + 100)
    transformer = LaToTransformer(
        in_channels=48, hidden_size=32, num_attention_heads=1, num_double_blocks=1, num_single_blocks=1, axes_dims_rope=(8, 12, 12),
        text_dim=32, context_dim=32, connector_num_heads=1, connector_depth=1, pooled_dim=16, landmark_dim=8, text_padding="masked",
    )  # fmt: skip
    encoder = TextEncoder(*vlm, TextEncoderSettings(min_pixels=56 * 56, max_pixels=56 * 56))
    made = LaToPipeline.from_parts(transformer, tokenizer, SpaceToDepthCodec(2), encoder, predictor, image_size=32)
    made.set_progress_bar_config(disable=True)
    return made


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


def test_positions_need_the_type_ids(vlm, face):
    """Without mm_token_type_ids transformers 5 places image tokens in a row; the encoder passes them."""
    model, processor = vlm
    inputs = processor(
        text=["<|vision_start|><|image_pad|><|vision_end|>smile"],
        images=[Image.fromarray(face[0][0]).resize((56, 56))],
        return_tensors="pt",
    )
    with torch.no_grad():
        right = model.model(**inputs).last_hidden_state
        wrong = model.model(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}).last_hidden_state
    assert not torch.allclose(right, wrong, atol=1e-6)


@pytest.fixture(scope="module")
def encoder(vlm):
    return TextEncoder(*vlm, TextEncoderSettings(min_pixels=56 * 56, max_pixels=56 * 56))


def test_a_text_alone_equals_the_same_beside_a_longer_one(encoder, face):
    pictures, _ = face
    both = encoder.encode(pictures, ["smile", "turn the head 30 degrees to the left, and look very surprised"])
    alone = encoder.encode(pictures[:1], ["smile"])
    assert torch.allclose(both[0], alone[0], atol=1e-5)
    padded, mask = pad_states(both)
    assert padded[0][~mask[0]].abs().sum() == 0
    null = encoder.encode(pictures, ["", ""])
    assert len(null[0]) < len(both[0])
    assert not torch.allclose(null[0], null[1])  # the null text still sees the picture


def test_the_prefix_is_dropped_whatever_its_length(vlm, face):
    """The states begin at the prefix's last token, for any prefix (217 of the release's 218 are dropped)."""
    for prefix in ("Look.\n", "Describe the person at length, and then some more.\n"):
        encoder = TextEncoder(*vlm, TextEncoderSettings(prefix=prefix, min_pixels=56 * 56, max_pixels=56 * 56))
        inputs, dropped = encoder._ask(face[0][0], "smile")
        tokens = inputs["input_ids"][0, dropped:].tolist()
        assert encoder.processor.tokenizer.decode(tokens).lstrip(".").startswith("\nPicture 1: <|vision_start|>")
        assert len(encoder.encode(face[0][:1], ["smile"])[0]) == len(tokens)


def test_quoted_words_are_spelled(encoder, face):
    plain, _ = encoder._ask(face[0][0], 'a sign "smile" in front')
    tokens = [encoder.processor.tokenizer.decode(token) for token in plain["input_ids"][0].tolist()]
    tokens = tokens[tokens.index("<|vision_end|>") :]
    assert [*"smile"] == tokens[tokens.index("s") : tokens.index("s") + 5]
    assert plain["mm_token_type_ids"].shape == plain["input_ids"].shape
    apostrophe, _ = encoder._ask(face[0][0], "turn the man's head")  # no pair of quotes: left as it is
    assert "".join(encoder.processor.tokenizer.batch_decode(apostrophe["input_ids"][0])).count("man's") == 1


def test_the_vlm_sees_multiples_of_its_patches(vlm):
    encoder = TextEncoder(*vlm, TextEncoderSettings())
    for size in ((512, 512), (300, 900), (2000, 1500)):
        height, width = encoder.seen_size(*size)
        assert height % 28 == width % 28 == 0
        assert 0.85 * 256 * 784 <= height * width <= 1.1 * 324 * 784
        assert abs(height / width / (size[0] / size[1]) - 1) < 0.12
    assert encoder.seen_size(512, 512) == (504, 504)


def test_saved_and_loaded_it_edits_the_same(pipeline, face, tmp_path):
    pictures, points = face
    pipeline.save_pretrained(tmp_path)
    again = LaToPipeline.from_pretrained(tmp_path)
    assert all(component is not None for component in again.components.values())
    arguments = {
        "image": pictures,
        "instruction": ["smile", "look sad"],
        "source_landmarks": points,
        "num_inference_steps": 2,
        "output_type": "np",
    }
    first, second = (each(**arguments, generator=torch.Generator().manual_seed(3)) for each in (pipeline, again))
    assert all(np.array_equal(a, b) for a, b in zip(first.images, second.images, strict=True))
    assert first.reasoning == second.reasoning
    assert first.images[0].shape == (32, 32, 3)
    assert np.array_equal(first.source_landmarks[1], points[1])


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


def test_a_batch_equals_its_pictures_alone(pipeline, face):
    pictures, points = face
    options = {"num_inference_steps": 3, "guidance": Guidance("joint", 2.0), "output_type": "np"}
    together = pipeline(pictures, ["smile", "look sad"], points, generator=generators(2), **options)
    alone = pipeline(pictures[1], "look sad", points[1:], generator=generators(1, 1), **options)
    assert np.abs(together.images[1].astype(int) - alone.images[0]).max() <= 1


@pytest.mark.parametrize("padding", ["released", "masked"])
def test_a_sample_alone_equals_itself_beside_a_longer_text(pipeline, face, padding):
    pictures, points = face
    config = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith("_")} | {"text_padding": padding}
    torch.manual_seed(1)
    released = LaToPipeline.from_parts(
        LaToTransformer(**config), pipeline.landmark_tokenizer, pipeline.vae,
        TextEncoder(pipeline.text_encoder, pipeline.processor, TextEncoderSettings(min_pixels=56 * 56, max_pixels=56 * 56, max_length=64)),
        image_size=32,
    )  # fmt: skip
    released.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    texts = ["smile", "turn the head 30 degrees to the left, and look very surprised"]
    together = released(pictures, texts, points, generator=generators(2), **options)
    alone = released(pictures[0], texts[0], points[:1], generator=generators(1), **options)
    assert (together.images[0] - alone.images[0]).abs().max() <= 1e-5


def test_missing_landmarks_are_left_to_the_model(pipeline, face):
    pictures, points = face
    partial = points.copy()
    partial[:, 48:] = np.nan
    steps = []
    options = {"num_inference_steps": 2, "output_type": "np"}

    def note(_, step, sigma, tensors):
        steps.append((step, tensors["tokens"].shape))

    output = pipeline(pictures, ["smile", "smile"], partial, generator=generators(2), callback_on_step_end=note, **options)
    assert steps == [(0, (2, 64, 48)), (1, (2, 64, 48))]
    assert not np.array_equal(
        output.images[0], pipeline(pictures, ["smile", "smile"], points, generator=generators(2), **options).images[0]
    )
    filled = fill_unknown(torch.from_numpy(partial))
    assert torch.equal(filled[:, :48], torch.from_numpy(points[:, :48]))
    assert torch.isfinite(filled).all()


def test_a_callback_can_change_the_tokens(pipeline, face):
    black = pipeline(
        face[0][0], "smile", face[1][:1], num_inference_steps=1, output_type="np",
        callback_on_step_end=lambda *call: {"tokens": torch.full_like(call[3]["tokens"], -1.0)},
    )  # fmt: skip
    assert black.images[0].max() == 0


def test_any_aspect_ratio_in_one_batch(pipeline, face):
    wide, tall = face[0][0][:256], face[0][1][:, :300]
    output = pipeline([Image.fromarray(wide), tall], ["smile", "smile"], face[1], num_inference_steps=1)
    assert [picture.size for picture in output.images] == [(44, 20), (24, 40)]
    explicit = pipeline([wide, tall], ["smile", "smile"], face[1], height=16, width=64, num_inference_steps=1)
    assert [picture.size for picture in explicit.images] == [(64, 16)] * 2


FORMS = ["none", "rendered", "compressed", *(f"tokens/{p}" for p in ("none", "image", "learnable", "mapped")), "control"]


@pytest.mark.parametrize("form", FORMS)
def test_every_conditioning_form_edits(pipeline, face, form):
    conditioning, _, positions = form.partition("/")
    config = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith("_")}
    torch.manual_seed(0)
    transformer = LaToTransformer(**config | {"conditioning": conditioning, "landmark_positions": positions or "mapped"})
    text = TextEncoder(pipeline.text_encoder, pipeline.processor, TextEncoderSettings(min_pixels=56 * 56, max_pixels=56 * 56))
    one = LaToPipeline.from_parts(transformer, pipeline.landmark_tokenizer, pipeline.vae, text, image_size=32)
    one.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "pt", "guidance": Guidance("joint", 2.0)}
    edits = [one(face[0][0], "smile", points[None], generator=generators(1), **options).images[0] for points in face[1]]
    sees_landmarks = not torch.allclose(edits[0], edits[1], atol=1e-6)
    assert sees_landmarks == (form != "none")
    nothing = Guidance("text", 0.0)  # only v(l, 0)
    assert one(face[0][0], "smile", face[1][:1], generator=generators(1), num_inference_steps=1, guidance=nothing).images[0].size == (
        32,
        32,
    )


def test_it_reads_the_source_itself(pipeline, models, person, tmp_path):
    from lato.faces import FaceReader

    pipeline.faces = FaceReader.from_folder(models)
    pipeline.save_pretrained(tmp_path)
    pipeline.faces = None
    again = LaToPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    blank = np.full((300, 300, 3), 127, np.uint8)
    output = again([person(1)(), blank], ["smile", "smile"], num_inference_steps=1)
    assert output.source_landmarks[0].shape == (68, 2)
    assert output.images[1] is None
    assert output.problems[1] == ("no face was found in the picture",)
    (tmp_path / "faces" / "face_recognition_sface_2021dec.onnx").write_bytes(b"other")
    with pytest.raises(ValueError, match="expected sha256"):
        LaToPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": ["one"]}, "instruction: expected one for each of 2 images"),
        ({"height": 20, "width": 30}, "expected multiples of 4, given 20 x 30"),
        ({"height": 20}, "expected both or neither"),
        ({"generator": generators(3)}, "generator: expected one, or one for each of 2"),
        ({"landmarks": np.full((2, 68, 2), 0.5)}, "given values within 0..1"),
        ({"landmarks": np.zeros((2, 67, 2))}, r"landmarks: expected shape \(2, 68, 2\)"),
        ({"landmarks": None}, "source_landmarks: needed"),
        ({"image": [np.zeros((5, 5, 3)), np.zeros((5, 5, 3))]}, "expected PIL or uint8"),
    ],
)
def test_bad_arguments_are_named(pipeline, face, change, message):
    pictures, points = face
    with pytest.raises(ValueError, match=message):
        pipeline(**{"image": pictures, "instruction": ["a", "b"], "landmarks": points} | change)
