"""Flow matching with a transformer and a batch of the DiT stage: the loss, and drawing by Euler steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lato.conditioning import LandmarkCondition
from lato.flow import euler_step, interpolate, sampling_sigmas, velocity_target
from lato.guidance import Guidance, guided_velocity


def velocity_error(module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, int]:
    """The loss of each sample.

    Args:
        module: The transformer.
        batch: `source`, `target`, `noise` (B, N, C); `sigma` (B,); `grid`; `text` (B, L, D) and `text_mask` (B, L); `condition`, and `keep_landmarks` (B,)
            bool, False where it is dropped.

    Returns:
        (B,) mean squared errors of the velocity of the noise tokens, in float32, and the number of tokens that went through the model.
    """
    target, noise, sigma = batch["target"], batch["noise"], batch["sigma"]
    condition: LandmarkCondition = batch["condition"]
    given = condition.arguments(batch["keep_landmarks"])
    velocity = module(
        noise_tokens=interpolate(target, noise, sigma),
        source_tokens=batch["source"],
        grid=batch["grid"],
        timestep=sigma,
        text_embeddings=batch["text"],
        text_mask=batch["text_mask"],
        **given,
    )
    error = (velocity.float() - velocity_target(target, noise)).square().mean((1, 2))
    further = sum(part.shape[1] for part in (given["landmark_latents"], given.get("condition_tokens")) if part is not None)
    return error, len(target) * (2 * target.shape[1] + batch["text"].shape[1] + further)


@torch.no_grad()
def draw_tokens(
    module: nn.Module,
    batch: dict[str, Any],
    noise: Tensor,
    steps: int,
    shift: float,
    null: dict[str, Any] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Draws the edits of a batch, as the pipeline does.

    Args:
        module: The transformer.
        batch: As for `velocity_error`; its target, noise and sigma are not looked at.
        noise: (B, N, C), where the drawing starts.
        steps: Euler steps.
        shift: Of the times.
        null: The same samples with both conditions dropped; needed where `scale` is not 1.
        scale: Of joint guidance.

    Returns:
        (B, N, C) tokens.
    """

    def velocity(tokens: Tensor, sigma: Tensor, part: dict[str, Any]) -> Tensor:
        return module(
            noise_tokens=tokens,
            source_tokens=part["source"],
            grid=part["grid"],
            timestep=sigma.expand(len(tokens)),
            text_embeddings=part["text"],
            text_mask=part["text_mask"],
            **part["condition"].arguments(part["keep_landmarks"]),
        ).float()

    tokens, sigmas = noise.float(), sampling_sigmas(steps, shift).to(noise.device)
    parts = [batch] if scale == 1.0 or null is None else [null, batch]
    for sigma, following in pairwise(sigmas):

        def predict(kept: Tensor, _: Tensor, x: Tensor = tokens, now: Tensor = sigma) -> Tensor:
            return torch.cat([velocity(x, now, part) for part in parts])

        tokens = euler_step(tokens, guided_velocity(predict, len(tokens), Guidance(scale=scale)), sigma, following)
    return tokens
