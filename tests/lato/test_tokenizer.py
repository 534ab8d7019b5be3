"""The quantizer can be trained: state is whole, ranks agree, revived codes stay."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lato.tokenizer import LandmarkTokenizer
from tests.training import ranks


def small(**changes):
    torch.manual_seed(0)
    return LandmarkTokenizer(**{"widths": (32, 32), "code_dim": 8, "num_codes": 32, "reset_every": 5} | changes)


def faces(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 68, 2, generator=generator) * 300 + 100


def test_forward_changes_no_buffer():
    tokenizer = small()
    tokenizer.initialise_codebook(faces(4))
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    tokenizer(faces(4, 1)).reconstruction_loss.mean().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tokenizer.state_dict().items())


def test_code_use_is_told():
    tokenizer = small()
    tokenizer.initialise_codebook(faces(4))
    output = tokenizer(faces(4, 1))
    assert int(output.codes_used) == len(output.codes.unique())
    assert 1 <= float(output.perplexity) <= int(output.codes_used) + 1e-3


def test_revived_codes_stay_revived():
    tokenizer = small(num_codes=512)
    tokenizer.initialise_codebook(faces(1))
    tokenizer.vq.codebook[100:] += 1000  # nobody will choose these
    tokenizer.vq.code_sum[100:] += 1000
    revived = 0
    for step in range(5):
        revived += tokenizer.update_codebook(tokenizer(faces(2, step)).statistics)
    assert revived >= 412
    placed = tokenizer.vq.codebook[100:].clone()
    assert placed.abs().max() < 500
    tokenizer.update_codebook(tokenizer(faces(2, 9)).statistics)
    moved = (tokenizer.vq.codebook[100:] - placed).norm(dim=1)
    assert moved.median() < 1e-3 * 1000
    assert tokenizer.vq.codebook[100:].abs().max() < 500  # in the release they jump back


def test_no_reset_when_told():
    tokenizer = small()
    tokenizer.initialise_codebook(faces(4))
    assert sum(tokenizer.update_codebook(tokenizer(faces(1, s)).statistics, reset=False) for s in range(10)) == 0


def test_the_whole_state_is_saved(tmp_path):
    tokenizer = small()
    tokenizer.initialise_codebook(faces(4))
    for step in range(7):
        tokenizer.update_codebook(tokenizer(faces(2, step)).statistics)
    tokenizer.save_pretrained(tmp_path)
    again = LandmarkTokenizer.from_pretrained(tmp_path)
    for model in (tokenizer, again):
        for step in range(7, 15):
            model.update_codebook(model(faces(2, step)).statistics)
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.state_dict().values(), again.state_dict().values(), strict=True))


def test_micro_batches_add_up():
    whole, parts = small(), small()
    for model in (whole, parts):
        model.initialise_codebook(faces(4))
    batch = faces(8, 3)
    whole.update_codebook(whole(batch).statistics)
    parts.update_codebook(parts(batch[:3]).statistics + parts(batch[3:]).statistics)
    assert torch.allclose(whole.vq.codebook, parts.vq.codebook, atol=1e-6)


def _rank(rank, world, folder, accumulation, steps):
    """`steps` codebook updates on global batches of 64, cut into ranks and micro-batches."""
    if world > 1:
        torch.distributed.init_process_group("gloo")
    tokenizer = small(num_codes=256, reset_every=10)
    tokenizer.initialise_codebook(faces(2))
    revived = 0
    for step in range(steps):
        parts = faces(64, step)[rank::world].chunk(accumulation)
        statistics = [tokenizer(part).statistics for part in parts]
        revived += tokenizer.update_codebook(sum(statistics[1:], statistics[0]))
    assert revived > 0
    codes, _ = tokenizer.encode(faces(8, 999))
    save_file({**tokenizer.vq.state_dict(), "codes": codes}, f"{folder}/{world}x{accumulation}-{rank}.safetensors")
    if world > 1:
        ranks.leave()


def test_two_ranks_have_one_codebook_after_100_steps(tmp_path):
    ranks.run(_rank, 2, str(tmp_path), 1, 100)
    first, second = (load_file(tmp_path / f"2x1-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ranks_and_accumulation_do_not_change_the_codebook(tmp_path):
    """1 x 64, 2 x 32 and 2 x 16 x 2, three resets among thirty steps."""
    for world, accumulation in ((1, 1), (2, 1), (2, 2)):
        ranks.run(_rank, world, str(tmp_path), accumulation, 30)
    whole, *others = (load_file(tmp_path / f"{name}-0.safetensors") for name in ("1x1", "2x1", "2x2"))
    for other in others:
        assert torch.equal(whole["codes"], other["codes"])
        for name in ("codebook", "code_sum", "code_count"):
            assert torch.allclose(whole[name], other[name], rtol=1e-6, atol=1e-6), name
        assert torch.equal(whole["generator_state"], other["generator_state"])


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (torch.zeros(1, 67, 2), r"expected shape \(B, 68, 2\), given \(1, 67, 2\)"),
        (torch.rand(1, 68, 2), "0..1"),
        (torch.full((1, 68, 2), float("nan")), "NaN"),
    ],
)
def test_bad_landmarks_are_named(landmarks, message):
    with pytest.raises(ValueError, match=message):
        small().encode(landmarks)
