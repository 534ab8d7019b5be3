"""The multi-modal DiT: Step1X-Edit's, with landmark tokens in its image stream (released key names, fused qkv, connector inside).

Sequence: text | noise | source | landmark | condition. Without landmarks it is Step1X-Edit itself.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from lato.connector import Connector
from lato.landmarks import NUM_LANDMARKS
from lato.layers import MLPEmbedder, Modulation, QKNorm, modulate, timestep_sinusoid
from lato.lora import LandmarkAdapterMixin
from lato.positions import LandmarkPositions, apply_rotary, first_grid_places, image_ids, landmark_ids, rotary_embedding, text_ids
from lato.tokenizer import check_landmarks

Conditioning = Literal["none", "rendered", "compressed", "tokens", "control"]
"""How landmarks reach the model: not at all; drawn and encoded as an image, whole or at half size; as coordinate tokens; or, the control, as null tokens
at the landmarks' places."""


class StreamAttention(nn.Module):
    """One stream's share of a double block's attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> query, key, value, each (B, L, H, D / H), query and key normalised."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return *self.norm(query, key), value


def _mlp(dim: int, ratio: float) -> nn.Sequential:
    inner = int(dim * ratio)
    return nn.Sequential(nn.Linear(dim, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, dim))


class DoubleStreamBlock(nn.Module):
    """Text and image streams with weights of their own, joined in attention."""

    attention_backend: AttentionBackendName | None = None

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.img_mod = Modulation(dim, double=True)
        self.img_norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.img_attn = StreamAttention(dim, num_heads)
        self.img_norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.img_mlp = _mlp(dim, mlp_ratio)
        self.txt_mod = Modulation(dim, double=True)
        self.txt_norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.txt_attn = StreamAttention(dim, num_heads)
        self.txt_norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.txt_mlp = _mlp(dim, mlp_ratio)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """img (B, N, D), txt (B, L, D), vec (B, D), rotary over L + N, mask (B, 1, 1, L + N) or None -> img, txt."""
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = self.img_mod(vec)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(vec)
        img_qkv = self.img_attn.project(modulate(self.img_norm1(img), img_shift1, img_scale1))
        txt_qkv = self.txt_attn.project(modulate(self.txt_norm1(txt), txt_shift1, txt_scale1))
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(txt_qkv, img_qkv, strict=True))
        attended = _attend(query, key, value, rotary, mask, self.attention_backend)
        txt_attended, img_attended = attended.split([txt.shape[1], img.shape[1]], dim=1)
        img = img + img_gate1 * self.img_attn.proj(img_attended)
        img = img + img_gate2 * self.img_mlp(modulate(self.img_norm2(img), img_shift2, img_scale2))
        txt = txt + txt_gate1 * self.txt_attn.proj(txt_attended)
        txt = txt + txt_gate2 * self.txt_mlp(modulate(self.txt_norm2(txt), txt_shift2, txt_scale2))
        return img, txt


class SingleStreamBlock(nn.Module):
    """Attention and MLP in parallel over the joined streams."""

    attention_backend: AttentionBackendName | None = None

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.mlp_dim = int(dim * mlp_ratio)
        self.linear1 = nn.Linear(dim, 3 * dim + self.mlp_dim)
        self.linear2 = nn.Linear(dim + self.mlp_dim, dim)
        self.norm = QKNorm(dim // num_heads)
        self.pre_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp_act = nn.GELU(approximate="tanh")
        self.modulation = Modulation(dim, double=False)

    def forward(self, x: Tensor, vec: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """x (B, L, D) -> (B, L, D)."""
        shift, scale, gate = self.modulation(vec)
        qkv, inner = self.linear1(modulate(self.pre_norm(x), shift, scale)).split([3 * self.dim, self.mlp_dim], dim=-1)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        query, key = self.norm(query, key)
        attended = _attend(query, key, value, rotary, mask, self.attention_backend)
        return x + gate * self.linear2(torch.cat([attended, self.mlp_act(inner)], dim=-1))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, backend: AttentionBackendName | None
) -> Tensor:
    query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
    return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend).flatten(2)


class FinalLayer(nn.Module):
    """Modulated norm and projection to token channels."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, C)."""
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class NullLandmarks(nn.Module):
    """What stands for "no landmark" in each of the 68 places: trained vectors in codebook space, before `landmark_in`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(NUM_LANDMARKS, dim))

    def forward(self, latents: Tensor, keep: Tensor) -> Tensor:
        """latents (B, 68, d), keep (B, 68) bool -> the same with null vectors where `keep` is False; every parameter is in the graph at every step."""
        return torch.where(keep[..., None], latents, self.tokens.to(latents.dtype))


class LaToTransformer(ModelMixin, ConfigMixin, LandmarkAdapterMixin):
    """Predicts the velocity of noise tokens, given source, landmarks and text.

    Args:
        in_channels: C, channels of an image token (latent channels x 4).
        hidden_size: D.
        num_attention_heads: Heads of the DiT.
        num_double_blocks: Blocks with two streams.
        num_single_blocks: Blocks with one stream.
        mlp_ratio: Width of the MLPs.
        axes_dims_rope: Channels of a head that carry each of the three axes; they add up to the head's width.
        text_dim: Width of the VLM's states.
        context_dim: Width of the connector.
        connector_num_heads: Heads of the connector.
        connector_depth: Blocks of the connector.
        pooled_dim: Width of the pooled text vector.
        landmark_dim: d, width of the tokenizer's codes.
        landmark_std: Standard deviation of the codes; they are divided by it.
        landmark_positions: Where landmark tokens stand.
        conditioning: Form of the conditioning, one of the paper's ablation.
        text_padding: `released`: padded text slots take part in attention, as the base weights expect. `masked`: they do not.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    _no_split_modules = ["DoubleStreamBlock", "SingleStreamBlock"]
    _repeated_blocks = ["DoubleStreamBlock", "SingleStreamBlock"]
    _skip_layerwise_casting_patterns = ["norm", "null_landmarks"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 64,
        hidden_size: int = 3072,
        num_attention_heads: int = 24,
        num_double_blocks: int = 19,
        num_single_blocks: int = 38,
        mlp_ratio: float = 4.0,
        axes_dims_rope: tuple[int, ...] = (16, 56, 56),
        text_dim: int = 3584,
        context_dim: int = 4096,
        connector_num_heads: int = 32,
        connector_depth: int = 2,
        pooled_dim: int = 768,
        landmark_dim: int = 3072,
        landmark_std: float = 1.0,
        landmark_positions: LandmarkPositions = "mapped",
        conditioning: Conditioning = "tokens",
        text_padding: Literal["released", "masked"] = "released",
    ) -> None:
        super().__init__()
        if sum(axes_dims_rope) != hidden_size // num_attention_heads:
            head = hidden_size // num_attention_heads
            raise ValueError(f"axes_dims_rope: expected a sum of {head} (hidden_size / num_attention_heads), given {tuple(axes_dims_rope)}")
        self.img_in = nn.Linear(in_channels, hidden_size)
        self.time_in = MLPEmbedder(256, hidden_size)
        self.vector_in = MLPEmbedder(pooled_dim, hidden_size)
        self.txt_in = nn.Linear(context_dim, hidden_size)
        self.landmark_in = nn.Linear(landmark_dim, hidden_size)
        self.null_landmarks = NullLandmarks(landmark_dim)
        if landmark_positions == "learnable":
            self.landmark_places = nn.Parameter(first_grid_places(32))
        self.double_blocks = nn.ModuleList(
            [DoubleStreamBlock(hidden_size, num_attention_heads, mlp_ratio) for _ in range(num_double_blocks)]
        )
        self.single_blocks = nn.ModuleList(
            [SingleStreamBlock(hidden_size, num_attention_heads, mlp_ratio) for _ in range(num_single_blocks)]
        )
        self.final_layer = FinalLayer(hidden_size, in_channels)
        self.connector = Connector(text_dim, context_dim, connector_num_heads, connector_depth, pooled_dim)
        self.gradient_checkpointing = False

    def forward(
        self,
        noise_tokens: Tensor,
        source_tokens: Tensor,
        grid: tuple[int, int],
        landmark_latents: Tensor | None,
        landmarks: Tensor | None,
        timestep: Tensor,
        text_embeddings: Tensor,
        text_mask: Tensor,
        landmark_mask: Tensor | None = None,
        condition_tokens: Tensor | None = None,
        condition_ids: Tensor | None = None,
    ) -> Tensor:
        """Velocity of the noise tokens.

        Args:
            noise_tokens: (B, N, C), N = h * w.
            source_tokens: (B, N, C), on the same grid.
            grid: (h, w).
            landmark_latents: (B, 68, d) code vectors, or None for no landmark tokens.
            landmarks: (B, 68, 2) canvas px; where the tokens stand.
            timestep: (B,) in 0..1; 1 is noise.
            text_embeddings: (B, L, text_dim) states of the VLM.
            text_mask: (B, L), True for real tokens.
            landmark_mask: (B, 68) bool, False for a null token; None keeps all.
            condition_tokens: (B, M, C) tokens of a drawn map (rendered forms), or None.
            condition_ids: (B, M, 3) their ids.

        Returns:
            (B, N, C).

        Raises:
            ValueError: A tensor does not fit; names it.
        """
        given = {"noise_tokens": noise_tokens, "source_tokens": source_tokens, "landmark_latents": landmark_latents, "landmarks": landmarks}
        given |= {"timestep": timestep, "text_embeddings": text_embeddings, "text_mask": text_mask, "landmark_mask": landmark_mask}
        self._check(given | {"condition_tokens": condition_tokens, "condition_ids": condition_ids}, grid)
        batch, length = text_embeddings.shape[:2]
        dtype = self.dtype  # of computing, which differs from that of weights stored in 8 bits
        device = noise_tokens.device
        tokens = [self.img_in(torch.cat([noise_tokens, source_tokens], dim=1).to(dtype))]
        grid_ids = image_ids(batch, grid, device)
        ids = [text_ids(batch, length, device), grid_ids, grid_ids]
        if landmark_latents is not None and landmarks is not None:
            token, place = self._place_landmarks(landmark_latents.to(dtype), landmarks, grid, landmark_mask)
            tokens.append(token)
            ids.append(place)
        if condition_tokens is not None and condition_ids is not None:
            tokens.append(self.img_in(condition_tokens.to(dtype)))
            ids.append(condition_ids)
        img = torch.cat(tokens, dim=1)
        rotary = rotary_embedding(torch.cat(ids, dim=1), tuple(self.config["axes_dims_rope"]))

        text, pooled = self.connector(text_embeddings.to(dtype), timestep, text_mask)
        vec = self.time_in(timestep_sinusoid(timestep).to(dtype)) + self.vector_in(pooled)
        txt = self.txt_in(text)
        mask = None
        if self.config["text_padding"] == "masked":
            mask = torch.cat([text_mask.bool(), torch.ones(batch, img.shape[1], dtype=torch.bool, device=device)], dim=1)[:, None, None]

        for block in self.double_blocks:
            img, txt = self._run(block, img, txt, vec, rotary, mask)
        joined = torch.cat([txt, img], dim=1)
        for block in self.single_blocks:
            joined = self._run(block, joined, vec, rotary, mask)
        noise = joined[:, length : length + noise_tokens.shape[1]]
        return self.final_layer(noise, vec)

    def set_attention_backend(self, backend: str) -> None:
        """Chooses how attention is computed, by a name of diffusers' `AttentionBackendName`; flash backends take no mask, so they need `released` padding.

        Raises:
            ValueError: There is no such backend.
            RuntimeError, ImportError: It cannot run here.
        """
        from diffusers.models.attention_dispatch import _check_attention_backend_requirements

        if backend not in {known.value for known in AttentionBackendName}:
            raise ValueError(f"backend: expected one of {', '.join(known.value for known in AttentionBackendName)}, given {backend!r}")
        chosen = AttentionBackendName(backend)
        _check_attention_backend_requirements(chosen)
        for block in (*self.double_blocks, *self.single_blocks):
            block.attention_backend = chosen

    def reset_attention_backend(self) -> None:
        """Back to diffusers' active backend."""
        for block in (*self.double_blocks, *self.single_blocks):
            block.attention_backend = None

    def _run(self, block: nn.Module, *args: Any) -> Any:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _place_landmarks(self, latents: Tensor, landmarks: Tensor, grid: tuple[int, int], mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens (B, 68, D) and ids (B, 68, 3). A null token carries neither code nor place of the target."""
        keep = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device) if mask is None else mask.bool()
        ids = landmark_ids(landmarks, grid, self.config["landmark_positions"], getattr(self, "landmark_places", None))
        ids = torch.where(keep[..., None], ids, 0.0)
        if self.config["conditioning"] == "control":
            keep = torch.zeros_like(keep)
        latents = self.null_landmarks(latents / self.config["landmark_std"], keep)
        return self.landmark_in(latents), ids

    def _check(self, given: dict[str, Tensor | None], grid: tuple[int, int]) -> None:
        """Raises ValueError unless all shapes fit together; names the tensor, the expected and the given."""
        if given["noise_tokens"] is None or given["noise_tokens"].ndim != 3:
            raise ValueError(
                f"noise_tokens: expected (B, N, C), given {given['noise_tokens'] if given['noise_tokens'] is None else tuple(given['noise_tokens'].shape)}"
            )
        batch, count, channels = len(given["noise_tokens"]), grid[0] * grid[1], self.config["in_channels"]
        text = given["text_embeddings"]
        length = 0 if text is None or text.ndim != 3 else text.shape[1]
        shapes: dict[str, tuple[int, ...]] = {
            "noise_tokens": (batch, count, channels),
            "source_tokens": (batch, count, channels),
            "timestep": (batch,),
            "text_embeddings": (batch, length, self.config["text_dim"]),
            "text_mask": (batch, length),
        }
        needs = [("landmark_latents", "landmarks"), ("condition_tokens", "condition_ids"), ("condition_ids", "condition_tokens")]
        for name, other in needs:
            if given[name] is not None and given[other] is None:
                raise ValueError(f"{other}: {name} needs it, given None")
        optional = {
            "landmark_latents": (batch, NUM_LANDMARKS, self.config["landmark_dim"]),
            "landmarks": (batch, NUM_LANDMARKS, 2),
            "landmark_mask": (batch, NUM_LANDMARKS),
        }
        if (drawn := given["condition_tokens"]) is not None and drawn.ndim == 3:
            optional |= {"condition_tokens": (batch, drawn.shape[1], channels), "condition_ids": (batch, drawn.shape[1], 3)}
        for name, shape in (shapes | {name: shape for name, shape in optional.items() if given[name] is not None}).items():
            tensor = given[name]
            if tensor is None or tuple(tensor.shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, given {None if tensor is None else tuple(tensor.shape)}")
        landmarks, mask = given["landmarks"], given["landmark_mask"]
        if given["landmark_latents"] is not None and landmarks is not None and not landmarks.is_meta:
            kept = landmarks if mask is None else landmarks[mask.bool().all(1)]  # where a null token stands, anything may be written
            if len(kept):
                check_landmarks(kept)
