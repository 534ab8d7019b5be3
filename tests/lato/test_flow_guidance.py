"""Flow matching and guidance: the formulas, by known answers."""

import pytest
import torch

from lato.flow import apply_shift, euler_step, interpolate, sample_sigmas, sampling_sigmas, shift_for, velocity_target
from lato.guidance import Guidance, guided_velocity


def test_shift_at_the_base_models_sizes():
    assert shift_for(1024) == pytest.approx(1.8776, abs=1e-4)
    assert shift_for(4096) == pytest.approx(3.1582, abs=1e-4)
    assert apply_shift(torch.tensor([0.0, 1.0]), 3.0).tolist() == [0, 1]


def test_integrating_the_true_velocity_gives_the_clean_image():
    clean, noise = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    sigmas = sampling_sigmas(7, 1.9)
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    x = interpolate(clean, noise, torch.ones(2))
    assert torch.equal(x, noise)
    for step in range(7):
        x = euler_step(x, velocity_target(clean, noise), sigmas[step], sigmas[step + 1])
    assert torch.allclose(x, clean, atol=1e-5)


def test_training_times_are_within_and_shifted_to_noise():
    normal = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    assert sample_sigmas(normal, 1.9).mean() > sample_sigmas(normal, 1.0).mean() + 0.1
    assert sample_sigmas(normal, 1.9).min() > 0


def predict(landmarks, text):
    """A velocity that tells which conditions it saw: 1 for landmarks, 10 for text."""
    return (landmarks.float() + 10 * text.float())[:, None, None]


@pytest.mark.parametrize(
    ("guidance", "expected", "passes"),
    [
        (Guidance("joint", 3.0), 0 + 3 * (11 - 0), 2),
        (Guidance("text", 3.0), 1 + 3 * (11 - 1), 2),
        (Guidance("separate", 3.0, 2.0), 0 + 2 * (1 - 0) + 3 * (11 - 1), 3),
        (Guidance("joint", 1.0), 11, 1),
        (Guidance("separate", 1.0, 1.0), 11, 1),
    ],
)
def test_guidance_combines_its_branches_in_one_batch(guidance, expected, passes):
    calls = []

    def counted(landmarks, text):
        calls.append(len(landmarks))
        return predict(landmarks, text)

    assert guided_velocity(counted, 2, guidance).flatten().tolist() == [expected, expected]
    assert calls == [2 * passes]
