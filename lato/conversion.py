"""Released checkpoints <-> this layout. Names are the released ones, so a conversion checks keys and shapes and reads the sizes off them.

Only our own keys differ: the quantizer's statistics and the null landmark tokens, which no released file has; the released form leaves them out.
Models are built without memory and filled tensor by tensor from the file, so that no more is held at any moment than the model and one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lato.lora import merge_lora
from lato.pipeline import LaToPipeline
from lato.predictor import LandmarkPredictor, PredictorSettings
from lato.released_vae import vae_from_released
from lato.text_encoder import TextEncoder, TextEncoderSettings
from lato.tokenizer import LandmarkTokenizer
from lato.transformer import LaToTransformer

_TOKENIZER_OWN = ("vq.code_sum", "vq.code_count", "vq.used", "vq.updates", "vq.generator_state")
_TRANSFORMER_OWN = ("null_landmarks.tokens", "landmark_places")


class ReleasedFile(Mapping[str, Tensor]):
    """A safetensors file as a state dict whose tensors are read when asked for and not kept."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a .safetensors file; other formats can run code when read and are refused")
        try:
            with safe_open(str(path), framework="pt") as file:
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: expected safetensors content, given something else ({error})") from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        with safe_open(str(self.path), framework="pt") as file:
            return file.get_tensor(name).clone()  # the file's pages go when it is closed

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def read_released(path: str | Path) -> ReleasedFile:
    """A released safetensors file as a state dict, memory-mapped.

    Raises:
        ValueError: It is not safetensors (a pickle is refused unread).
    """
    return ReleasedFile(path)


def landmark_in_from_released(path: str | Path) -> dict[str, Tensor]:
    """The released `landmark_in.pth` -> `landmark_in.weight` and `landmark_in.bias`. Read with weights only: no code in it can run.

    Raises:
        ValueError: It holds something else.
    """
    import pickle

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: expected tensors only, given other objects, which are not read") from error
    found = {str(name).rsplit(".", 1)[-1]: tensor for name, tensor in content.items()} if isinstance(content, Mapping) else {}
    if set(found) != {"weight", "bias"}:
        raise ValueError(f"{path}: expected a weight and a bias, given {sorted(found) or type(content).__name__}")
    return {f"landmark_in.{name}": tensor for name, tensor in found.items()}


def tokenizer_from_released(state_dict: Mapping[str, Tensor]) -> LandmarkTokenizer:
    """Builds the tokenizer of a released state dict; sizes are read from the shapes.

    Raises:
        ValueError: Keys are missing, unknown or misshapen; names them.
    """
    shapes = shapes_of(state_dict)
    first = _shape(shapes, "encoder.conv_in.weight")[0]
    second = _shape(shapes, "encoder.resnet2.conv_short.weight")[0]
    num_codes, dim = _shape(shapes, "vq.codebook")
    with torch.device("meta"):
        tokenizer = LandmarkTokenizer(widths=(first, second), code_dim=dim, num_codes=num_codes)
    fill(tokenizer, state_dict, "tokenizer", own=_TOKENIZER_OWN)
    # the release keeps no statistics: codes start where they are, each with the weight of one assignment
    tokenizer.vq.code_sum = tokenizer.vq.codebook.clone()
    tokenizer.vq.code_count = torch.ones(num_codes)
    tokenizer.vq.used = torch.zeros(num_codes, dtype=torch.bool)
    tokenizer.vq.updates = torch.zeros((), dtype=torch.int64)
    return tokenizer.eval()


def tokenizer_to_released(tokenizer: LandmarkTokenizer) -> dict[str, Tensor]:
    """The released form of a tokenizer."""
    return {name: tensor for name, tensor in tokenizer.state_dict().items() if name not in _TOKENIZER_OWN}


def transformer_from_released(
    state_dict: Mapping[str, Tensor],
    num_attention_heads: int = 24,
    axes_dims_rope: tuple[int, ...] = (16, 56, 56),
    landmark_in: Mapping[str, Tensor] | None = None,
) -> LaToTransformer:
    """Builds the transformer of a released state dict; sizes are read from the shapes, all but those of the heads.

    Null landmark tokens start at zero: no released file has them.

    Args:
        state_dict: 819 tensors at full size.
        num_attention_heads: Heads of the DiT; the connector's are as wide.
        axes_dims_rope: Channels of a head for each axis.
        landmark_in: Of `landmark_in_from_released`; overrides the state dict's, as the release does.

    Raises:
        ValueError: Keys are missing, unknown or misshapen; names them.
    """
    if landmark_in is not None:
        state_dict = _Overridden(state_dict, landmark_in)
    shapes = shapes_of(state_dict)
    hidden, channels = _shape(shapes, "img_in.weight")
    context, text = _shape(shapes, "connector.S.input_embedder.weight")
    with torch.device("meta"):
        transformer = LaToTransformer(
            in_channels=channels,
            hidden_size=hidden,
            num_attention_heads=num_attention_heads,
            num_double_blocks=count_blocks(shapes, "double_blocks"),
            num_single_blocks=count_blocks(shapes, "single_blocks"),
            mlp_ratio=_shape(shapes, "double_blocks.0.img_mlp.0.weight")[0] / hidden,
            axes_dims_rope=tuple(axes_dims_rope),
            text_dim=text,
            context_dim=context,
            connector_num_heads=context // (hidden // num_attention_heads),
            connector_depth=count_blocks(shapes, "connector.S.individual_token_refiner.blocks"),
            pooled_dim=_shape(shapes, "connector.global_proj_out.weight")[0],
            landmark_dim=_shape(shapes, "landmark_in.weight")[1],
        )
    fill(transformer, state_dict, "transformer", own=_TRANSFORMER_OWN)
    nulls = torch.zeros(transformer.null_landmarks.tokens.shape, dtype=transformer.landmark_in.weight.dtype)
    transformer.null_landmarks.tokens = nn.Parameter(nulls)
    return transformer.eval()


def transformer_to_released(transformer: LaToTransformer) -> dict[str, Tensor]:
    """The released form of a transformer: null tokens left out, the codes' scale folded into `landmark_in`."""
    state = {name: tensor for name, tensor in transformer.state_dict().items() if name not in _TRANSFORMER_OWN}
    state["landmark_in.weight"] = state["landmark_in.weight"] / transformer.config["landmark_std"]
    return state


def pipeline_from_released(folder: Path, num_attention_heads: int = 24, axes_dims_rope: tuple[int, ...] = (16, 56, 56)) -> LaToPipeline:
    """Loads the released files, laid out as the release's download script leaves them.

    Args:
        folder: With `LaTo/lato/lato.safetensors`, `LaTo/lato/vae.safetensors`, `LaTo/Po_VQVAE/model.safetensors`, `Qwen/Qwen2.5-VL-7B-Instruct/`, and
            `text_prefix.txt`, the text that the base model puts before the picture (`Qwen25VL_7b_PREFIX` in its conditioner). Where they are there also:
            `landmark_in.pth`, `LaTo/lora/lato.safetensors` (merged), and `LaTo/Landmark_Predictor/` with the release's `prompt_template.txt` beside it.
        num_attention_heads: Heads of the DiT.
        axes_dims_rope: Channels of a head for each axis.

    Raises:
        FileNotFoundError: Files are missing; names all of them.
    """
    dit, vae = folder / "LaTo/lato/lato.safetensors", folder / "LaTo/lato/vae.safetensors"
    tokenizer, vlm, prefix = folder / "LaTo/Po_VQVAE/model.safetensors", folder / "Qwen/Qwen2.5-VL-7B-Instruct", folder / "text_prefix.txt"
    missing = [str(path) for path in (dit, vae, tokenizer, vlm, prefix) if not path.exists()]
    if missing:
        raise FileNotFoundError("no folder of released LaTo files: missing " + ", ".join(missing))
    adapter = folder / "landmark_in.pth"
    transformer = transformer_from_released(
        read_released(dit), num_attention_heads, axes_dims_rope, landmark_in_from_released(adapter) if adapter.is_file() else None
    )
    lora = folder / "LaTo/lora/lato.safetensors"
    if lora.is_file():
        merge_lora(transformer, read_released(lora))
    return LaToPipeline.from_parts(
        transformer,
        tokenizer_from_released(read_released(tokenizer)),
        vae_from_released(read_released(vae)),
        _released_text_encoder(vlm, prefix),
        _released_predictor(folder),
    )


def _released_text_encoder(vlm: Path, prefix: Path) -> TextEncoder:
    encoder = TextEncoder.from_pretrained(vlm)
    return TextEncoder(encoder.model, encoder.processor, TextEncoderSettings(prefix=prefix.read_text(encoding="utf-8")))


def _released_predictor(folder: Path) -> LandmarkPredictor | None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    vlm, template = folder / "LaTo/Landmark_Predictor", folder / "LaTo/prompt_template.txt"
    if not vlm.is_dir():
        return None
    if not template.is_file():
        raise FileNotFoundError(f"{template}: the released predictor was trained with this prompt; copy it from the release")
    processor = AutoProcessor.from_pretrained(vlm)
    unit = processor.image_processor.patch_size * processor.image_processor.merge_size
    settings = PredictorSettings(
        "json", 512, 512 // unit * unit, max_new_tokens=8192, template=template.read_text(encoding="utf-8"), max_reasoning=20000
    )
    return LandmarkPredictor(AutoModelForImageTextToText.from_pretrained(vlm).eval(), processor, settings)


class _Overridden(Mapping[str, Tensor]):
    """A state dict with some tensors in another's place."""

    def __init__(self, base: Mapping[str, Tensor], over: Mapping[str, Tensor]) -> None:
        self.base, self.over = base, over
        self.shapes = shapes_of(base) | shapes_of(over)

    def __getitem__(self, name: str) -> Tensor:
        return self.over[name] if name in self.over else self.base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def shapes_of(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of a state dict's tensors, read from no tensor where a file knows them."""
    known: dict[str, tuple[int, ...]] | None = getattr(state_dict, "shapes", None)
    return known if known is not None else {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


@torch.no_grad()
def fill(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    what: str,
    own: tuple[str, ...] = (),
    names: Mapping[str, str] | None = None,
    reshape: bool = False,
) -> None:
    """Puts a state dict's tensors into a model built on the meta device, one by one.

    Args:
        model: Its tensors hold no memory yet.
        state_dict: Released tensors.
        what: The model, for messages.
        own: Keys of the model that no released file has.
        names: The model's key -> the released key; equal where None.
        reshape: Whether shapes that differ by axes of length 1 are the same (1 x 1 convolutions as Linears).

    Raises:
        ValueError: Keys are missing, unknown or misshapen; names them.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in own}
    given = shapes_of(state_dict)
    released = names or {name: name for name in given}
    mistakes = [f"{name}: missing, expected shape {shape}" for name, shape in expected.items() if name not in released]
    mistakes += [f"{released[name]}: not a key of the {what}" for name in released if name not in expected]

    def same(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return a == b or (reshape and [n for n in a if n != 1] == [n for n in b if n != 1])

    mistakes += [
        f"{released[name]}: expected shape {shape}, given {given[released[name]]}"
        for name, shape in expected.items()
        if name in released and not same(shape, given[released[name]])
    ]
    if mistakes:
        more = f"\n  and {len(mistakes) - 10} more" if len(mistakes) > 10 else ""
        raise ValueError(f"this is no released {what} checkpoint:\n" + "\n".join(f"  {line}" for line in mistakes[:10]) + more)
    copied = not hasattr(state_dict, "shapes")  # a state dict in memory stays its owner's
    for name, shape in expected.items():
        tensor = state_dict[released[name]].reshape(shape)
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = tensor.clone() if copied else tensor
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensor)
        else:
            module._buffers[leaf] = tensor


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"{name}: missing from the checkpoint; this is not a released file of this model")
    return shapes[name]


def count_blocks(shapes: Mapping[str, Any], prefix: str) -> int:
    """How many numbered blocks stand under a prefix.

    Raises:
        ValueError: None.
    """
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    numbers = {int(match.group(1)) for name in shapes if (match := pattern.match(name))}
    if not numbers:
        raise ValueError(f"{prefix}.*: missing from the checkpoint")
    return max(numbers) + 1
