"""Loads a folder of released-format files and edits a synthetic face with it.

The files are made here, at small size and with random weights, so the picture shows noise; with the real ones in the same places the same two calls edit.

Run: `python docs/examples/edit_released.py FOLDER` (writes FOLDER/models, FOLDER/edited.png and FOLDER/landmarks.png).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from data_pipeline.synthetic.anny_people import landmark_vertices
from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, draw_person
from data_pipeline.synthetic.rasterizer import project, render
from lato.conversion import tokenizer_to_released, transformer_to_released
from lato.edits import Expression, Intensity
from lato.guidance import Guidance
from lato.landmarks import draw_landmarks
from lato.pipeline import LaToPipeline
from lato.released_vae import vae_to_released
from lato.tiny_vlm import build_tiny_vlm
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer

HEADS = {"num_attention_heads": 2, "axes_dims_rope": (4, 14, 14)}


def write_released_files(models: Path) -> None:
    """A small model in the released layout and under the released names."""
    torch.manual_seed(0)
    for folder in ("LaTo/lato", "LaTo/Po_VQVAE", "Qwen/Qwen2.5-VL-7B-Instruct"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    transformer = LaToTransformer(
        in_channels=16, hidden_size=64, num_double_blocks=1, num_single_blocks=1, text_dim=32, context_dim=64, connector_num_heads=2,
        connector_depth=1, pooled_dim=16, landmark_dim=48, **HEADS,
    )  # fmt: skip
    tokenizer = LandmarkTokenizer(widths=(32, 64), code_dim=48, num_codes=64)
    tokenizer.initialise_codebook(torch.rand(8, 68, 2) * 300 + 100)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(32,) * 4,
        layers_per_block=2, latent_channels=4, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    vlm, processor = build_tiny_vlm(hidden_size=32, num_layers=2)
    files = {
        "LaTo/lato/lato.safetensors": transformer_to_released(transformer),
        "LaTo/lato/vae.safetensors": vae_to_released(vae),
        "LaTo/Po_VQVAE/model.safetensors": tokenizer_to_released(tokenizer),
    }
    for name, state in files.items():
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, models / name)
    torch.save(transformer.landmark_in.state_dict(), models / "landmark_in.pth")
    vlm.save_pretrained(models / "Qwen/Qwen2.5-VL-7B-Instruct")
    processor.save_pretrained(models / "Qwen/Qwen2.5-VL-7B-Instruct")
    (models / "text_prefix.txt").write_text("Describe the edited picture:")


def main(folder: Path) -> None:
    """Writes the files, loads them, edits."""
    write_released_files(folder / "models")
    pipeline = LaToPipeline.from_released(folder / "models", **HEADS)

    mesh = load_head()
    person = draw_person(np.random.default_rng(7), mesh)
    source, _ = render(mesh, person, Expression.NEUTRAL, Intensity.PLAIN, Pose())
    _, vertices = render(mesh, person, Expression.HAPPY, Intensity.STRONGLY, Pose(yaw=30))
    target_landmarks = project(vertices[landmark_vertices()], 512)

    output = pipeline(
        source,
        "turn the head 30 degrees to the right and smile broadly",
        landmarks=target_landmarks[None],
        height=256,
        width=256,
        num_inference_steps=4,
        guidance=Guidance("text", 4.0),  # the release's: no null landmarks were trained
        generator=torch.Generator().manual_seed(0),
    )
    output.images[0].save(folder / "edited.png")
    Image.fromarray(np.hstack([source, draw_landmarks(output.landmarks[0], source)])).save(folder / "landmarks.png")
    print(f"{folder / 'edited.png'}: {output.images[0].size[0]} x {output.images[0].size[1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
