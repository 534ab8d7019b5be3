"""The small world in which the DiT is proved: synthetic people at 32 px, what is known of them, and the instruments that measure edits of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.synthetic.anny_people import landmark_vertices
from data_pipeline.synthetic.head_mesh import load_head
from data_pipeline.synthetic.person import Pose, draw_person
from data_pipeline.synthetic.rasterizer import project, render
from lato.codec import SpaceToDepthCodec, decode_latents, encode_images, from_tokens, to_tokens
from lato.edits import Edit, Expression, Intensity
from lato.landmarks import CANVAS
from lato.pipeline import resize
from lato.tokenizer import LandmarkTokenizer

SIDE, CODEC, GRID = 32, SpaceToDepthCodec(2), (8, 8)
TEXT_DIM = 32
ZERO = 2.5
"""Canvas px that stand for "coordinates = 0": exact zeros are refused as evidently another unit."""


@dataclass(frozen=True)
class World:
    """P people with I pictures each."""

    images: Tensor
    """(P, I, 3, 32, 32) in [-1, 1]."""
    landmarks: Tensor
    """(P, I, 68, 2) canvas px, exact."""
    poses: Tensor
    """(P, I, 3) yaw, pitch, roll in degrees."""
    expressions: np.ndarray
    """(P, I, 2) names of expression and intensity."""
    held_out: int
    """The last so many people are never trained on."""

    @property
    def train(self) -> int:
        """Number of people to train on, the first ones."""
        return len(self.images) - self.held_out

    def tokens(self, people: Tensor, pictures: Tensor) -> Tensor:
        """(B, 64, 48) image tokens."""
        return to_tokens(encode_images(CODEC, self.images[people, pictures]))

    def instruction(self, person: int, source: int, target: int) -> str:
        """What leads from one picture to another, in short: the expression to show, and the change of pose to the nearest 30 degrees."""
        expression, intensity = (str(name) for name in self.expressions[person, target])
        steps = (30 * torch.round((self.poses[person, target] - self.poses[person, source]) / 30)).int().tolist()
        plain = Intensity.PLAIN if expression == "neutral" else Intensity(intensity)
        return str(Edit(expression=Expression(expression), intensity=plain, yaw=steps[0], pitch=steps[1], roll=steps[2]))


def load_world(folder: Path, people: int, pictures: int, held_out: int) -> World:
    """The people, drawn once: every picture with another pose (yaw, pitch, roll anywhere in +-30, +-18, +-25 degrees) and expression."""
    file = folder / f"people-{people}x{pictures}.npz"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _draw_people(people, pictures, file)
    with np.load(file, allow_pickle=False) as stored:
        images = torch.from_numpy(stored["images"]).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        return World(images, torch.from_numpy(stored["landmarks"]), torch.from_numpy(stored["poses"]), stored["expressions"], held_out)


def _draw_people(people: int, pictures: int, file: Path) -> None:
    cv2.setNumThreads(1)
    mesh, vertices = load_head(), landmark_vertices()
    images = np.zeros((people, pictures, SIDE, SIDE, 3), np.uint8)
    landmarks, poses = np.zeros((people, pictures, 68, 2), np.float32), np.zeros((people, pictures, 3), np.float32)
    expressions = np.zeros((people, pictures, 2), "U12")
    for number in range(people):
        rng = np.random.default_rng((77, number))
        person = draw_person(rng, mesh)
        for picture in range(pictures):
            poses[number, picture] = rng.uniform((-30, -18, -25), (30, 18, 25))
            expression, intensity = list(Expression)[int(rng.integers(7))], list(Intensity)[int(rng.integers(3))]
            pose = Pose(*(float(angle) for angle in poses[number, picture]))
            image, posed = render(mesh, person, expression, intensity, pose, 4 * SIDE)
            images[number, picture] = resize(image, (SIDE, SIDE))
            landmarks[number, picture] = project(posed[vertices], int(CANVAS.width))
            expressions[number, picture] = expression.value, intensity.value
    np.savez(file, images=images, landmarks=landmarks, poses=poses, expressions=expressions)


def text_states(text: str) -> Tensor:
    """(L, 32): a frozen random vector for each word; one for "nothing" where there is no text. No language model: only which words stand where is known."""
    words = text.replace(",", "").split() or ["<nothing>"]
    return torch.stack([_word(word) for word in words])


_WORDS: dict[str, Tensor] = {}


def _word(word: str) -> Tensor:
    if word not in _WORDS:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        _WORDS[word] = torch.randn(TEXT_DIM, generator=torch.Generator().manual_seed(seed))
    return _WORDS[word]


def train_tokenizer(world: World, steps: int, dropout: float) -> tuple[LandmarkTokenizer, float]:
    """A small tokenizer on the train people's landmarks, and its held-out mean L1 in px.

    Args:
        world: The people.
        steps: Of 32 faces.
        dropout: Share of faces whose coordinates are set to zero.
    """
    torch.manual_seed(0)
    tokenizer = LandmarkTokenizer(widths=(64, 64), code_dim=64, num_codes=512)
    faces = world.landmarks[: world.train].flatten(0, 1)
    tokenizer.initialise_codebook(faces[torch.randperm(len(faces))[:64]])
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        set_rate(optimizer, 1e-3, step, steps)
        batch = faces[torch.randint(len(faces), (32,))] + 25 * torch.randn(32, 1, 2)
        batch[torch.rand(32) < dropout] = ZERO
        output = tokenizer(batch)
        (output.reconstruction_loss + 0.25 * output.commit_loss).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        tokenizer.update_codebook(output.statistics, reset=step < 0.8 * steps)
    unseen = world.landmarks[world.train :].flatten(0, 1)
    tokenizer.eval()
    return tokenizer, float((tokenizer.decode(tokenizer.encode(unseen)[1]) - unseen).abs().mean())


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int, warmup: int = 50) -> None:
    """Warm-up, constant, and from 70 % of the steps a linear fall to a tenth."""
    fall = max(0.1, 1 - 0.9 * max(0.0, step - 0.7 * steps) / (0.3 * steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / warmup) * fall


class Instruments(nn.Module):
    """Reads landmarks and an identity embedding off 32 px pictures; one small convolutional network with two heads.

    Args:
        people: Number of identities it is trained to tell apart.
        mean: (68, 2) mean landmarks.
    """

    mean: Tensor

    def __init__(self, people: int, mean: Tensor) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for given, made, stride in ((3, 32, 1), (32, 64, 2), (64, 96, 2), (96, 128, 2)):
            layers += [nn.Conv2d(given, made, 3, stride, 1), nn.GroupNorm(8, made), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.places = nn.Linear(2048, 136)
        self.identity = nn.Linear(2048, 64)
        self.people = nn.Parameter(torch.randn(people, 64))
        self.register_buffer("mean", mean)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 32, 32) -> landmarks (B, 68, 2) canvas px, unit embeddings (B, 64)."""
        features = self.trunk(pictures.clamp(-1, 1))
        return self.mean + 64 * self.places(features).unflatten(1, (68, 2)), F.normalize(self.identity(features), dim=-1)


def train_instruments(world: World, steps: int) -> tuple[Instruments, dict[str, float]]:
    """Trains on real renders of the train people, slightly moved, blurred and noisy; measured on held-out people.

    Returns:
        The instruments, and their own errors: mean L1 of the landmarks in canvas px; cosines between pictures of one person and of two, and the share of
        (same, other) pairs that they order rightly.
    """
    torch.manual_seed(0)
    net = Instruments(world.train, world.landmarks[: world.train].mean((0, 1)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    unit = CANVAS.width / SIDE
    for step in range(steps):
        set_rate(optimizer, 2e-3, step, steps)
        people, pictures = torch.randint(world.train, (64,)), torch.randint(world.images.shape[1], (64,))
        moved = torch.randint(-2, 3, (2,))
        images = F.pad(world.images[people, pictures], (2, 2, 2, 2), mode="replicate")
        images = images[:, :, 2 - moved[1] : 2 - moved[1] + SIDE, 2 - moved[0] : 2 - moved[0] + SIDE]
        blur = torch.rand(64, 1, 1, 1) * (torch.rand(64, 1, 1, 1) < 0.5)
        images = torch.lerp(images, F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), blur)
        images = images + 0.08 * torch.rand(64, 1, 1, 1) * torch.randn_like(images)
        places, embedding = net(images)
        error = (places - world.landmarks[people, pictures] - unit * moved).abs().mean() / 8
        scores = 16 * embedding @ F.normalize(net.people, dim=-1).T
        (error + 0.2 * F.cross_entropy(scores, people)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval(), _judge(net, world)


@torch.no_grad()
def _judge(net: Instruments, world: World) -> dict[str, float]:
    unseen = world.images[world.train :]
    places, embedding = net(unseen.flatten(0, 1))
    cosines = embedding @ embedding.T
    owner = torch.arange(len(unseen)).repeat_interleave(unseen.shape[1])
    same = (owner[:, None] == owner) & ~torch.eye(len(owner), dtype=torch.bool)
    other = owner[:, None] != owner
    ranks = torch.searchsorted(cosines[other].sort().values, cosines[same])
    return {
        "landmarks_px": float((places - world.landmarks[world.train :].flatten(0, 1)).abs().mean()),
        "same_person": float(cosines[same].mean()),
        "other_person": float(cosines[other].mean()),
        "ordered_rightly": float(ranks.float().mean() / other.sum()),
    }


def to_images(tokens: Tensor) -> Tensor:
    """(B, 64, 48) tokens -> (B, 3, 32, 32)."""
    return decode_latents(CODEC, from_tokens(tokens, GRID))
