"""Photos of every shape through a pipeline of diffusers: what comes back is the photo's shape, or it is refused. Real pipelines, tiny random weights."""

import functools

import cv2
import diffusers
import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.image_set import read_image_set
from data_pipeline.synthetic.diffusers_edit import DiffusersConfig, DiffusersEditor
from data_pipeline.synthetic.sources import SyntheticConfig, synthetic_sources
from data_pipeline.worklist import item_for
from infra.config import load_config


@pytest.fixture
def drawn(monkeypatch):
    """Makes every name a FLUX.1-Kontext of a few thousand weights that reads no text; what it was called with, beside the size of what it drew."""
    import torch

    asked = []

    class Kontext(diffusers.FluxKontextPipeline):
        def encode_prompt(self, *given, **named):
            return torch.zeros(1, 4, 8), torch.zeros(1, 8), torch.zeros(4, 3)

        @functools.wraps(diffusers.FluxKontextPipeline.__call__)
        def __call__(self, **named):
            made = super().__call__(**named)
            asked.append((named, made.images[0].size))
            return made

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4, shift_factor=0.0, scaling_factor=1.0,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=0, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = Kontext(diffusers.FlowMatchEulerDiscreteScheduler(), vae, transformer=transformer, **texts)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda name, torch_dtype: pipeline)
    return asked


@pytest.fixture(scope="module")
def photo(clip):
    """A face as broad as high, in a photo that is neither."""
    whole = np.asarray(Image.open(clip("obama")).convert("RGB"))
    return cv2.copyMakeBorder(cv2.resize(whole, (600, 600 * whole.shape[0] // whole.shape[1])), 0, 0, 150, 150, cv2.BORDER_REPLICATE)


@pytest.mark.parametrize("turned", [False, True])
def test_kontext_draws_the_photos_shape_at_the_size_that_is_asked(drawn, photo, reader, turned):
    """Left to itself it draws a square of a megapixel, of whatever photo."""
    photo = cv2.copyMakeBorder(photo, 900, 0, 0, 0, cv2.BORDER_REPLICATE) if turned else photo
    editor = DiffusersEditor(DiffusersConfig(edits=2, steps=1, size=96), reader)
    edited = editor.edit(photo, 1, None)
    height, width = photo.shape[:2]
    for (named, size), (jpg, _) in zip(drawn, edited, strict=True):
        assert size == named["image"].size  # what it was given has the size that was asked, and the photo's shape
        assert max(size) == 96 and all(side % 16 == 0 for side in size)
        assert abs(size[0] / size[1] - width / height) < 16 / 96
        assert cv2.imdecode(np.frombuffer(jpg, np.uint8), cv2.IMREAD_COLOR).shape == photo.shape
    assert (width > height) != turned


def test_a_picture_of_another_shape_is_refused_and_told(drawn, photo, models, tmp_path, capsys):
    """Brought back to the photo's size it would show a face that is broader or narrower. What was refused is not tried again, and told again."""
    square = cv2.resize(photo, (600, 600))
    for name, picture in (("broad", photo), ("square", square)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    photos = [item_for(str(tmp_path / f"{name}.png")) for name in ("broad", "square")]
    settings = DiffusersConfig(edits=2, steps=1, size=64, options={"width": 64, "height": 64}, workers=0)
    for _ in range(2):
        made = synthetic_sources(SyntheticConfig(diffusers=settings), photos, models, str(tmp_path / "w"))
        assert [item.source_id for item in made] == ["square_diffusers"]
        said = " ".join(capsys.readouterr().out.split())
        assert "synthetic.diffusers: 1 of 2 photos have no edits, as these came out in another shape (broad: given 64 x " in said
        assert "pixels, the pipeline drew 64 x 64" in said
    assert len(read_image_set(made[0].uri).images) == 3  # the photo and both edits
    assert len(drawn) == 3  # of the refused photo one is enough to know


def test_options_reach_the_call_as_they_are_written(drawn, photo, reader):
    written = [
        "synthetic.diffusers.options={negative_prompt: blurry, true_cfg_scale: 1.5, max_sequence_length: 256}",
        "synthetic.diffusers.options._auto_resize=true",
    ]
    options = load_config(DataConfig, None, [*written, "synthetic.diffusers.size=64"]).synthetic.diffusers.options
    expected = {"negative_prompt": "blurry", "true_cfg_scale": 1.5, "max_sequence_length": 256, "_auto_resize": True}
    assert {name: (type(value), value) for name, value in options.items()} == {
        name: (type(value), value) for name, value in expected.items()
    }
    options = {name: value for name, value in options.items() if name != "_auto_resize"}  # a megapixel of its own choice takes minutes here
    DiffusersEditor(DiffusersConfig(edits=1, steps=1, size=64, options=options), reader).edit(photo, 1, None)
    ((named, _),) = drawn
    assert {name: (type(named[name]), named[name]) for name in options} == {name: (type(value), value) for name, value in options.items()}
