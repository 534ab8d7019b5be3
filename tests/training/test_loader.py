"""The loader: what a step sees does not depend on how far ahead or by how many threads it was read, and an error comes up at its step."""

import threading
import time

import pytest
import torch

from infra.errors import UserError
from training.loader import Loader, ReadFailed
from training.mixture import Mixture, sample_generator

MIXTURE = Mixture([[f"k{n}" for n in range(11)], [f"m{n}" for n in range(5)]], [2, 1], 0)


def plan(step):
    samples = MIXTURE.batch(step, 6)
    return [samples[:4], samples[4:]]


def read(samples):
    time.sleep(0.004 * (hash(samples[0].key) % 3))  # so that later ones are done first
    return {"draws": torch.stack([torch.randn(3, generator=sample_generator(1, sample)) for sample in samples])}


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize(("ahead", "count"), [(1, 1), (2, 2), (7, 5)])
def test_what_a_step_sees_does_not_depend_on_how_it_was_read(ahead, count):
    plain = list(Loader(read, plan, 3, 12, 0))
    read_ahead = list(Loader(read, plan, 3, 12, ahead, count))
    assert len(plain) == len(read_ahead) == 9
    for step, (one, other) in enumerate(zip(plain, read_ahead, strict=True), start=3):
        assert [samples for samples, _ in one] == [samples for samples, _ in other] == plan(step)
        assert all(torch.equal(a["draws"], b["draws"]) for (_, a), (_, b) in zip(one, other, strict=True))
    assert threads() == []  # the last step ends them


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize(("error", "raised"), [(KeyError("gone"), ReadFailed), (UserError("the shard is gone"), UserError)])
def test_an_error_comes_up_at_its_step_with_its_samples(ahead, error, raised):
    bad = plan(4)[1]

    def fail(samples):
        if samples == bad:
            raise error
        return {}

    loader = Loader(fail, plan, 2, 9, ahead)
    assert [len(next(loader)) for _ in range(2)] == [2, 2]
    with pytest.raises(raised, match=rf"step 5: .*\({bad[0].key}, {bad[1].key}\): .*gone") as caught:
        next(loader)
    assert caught.value.__cause__ is error
    assert threads() == []
    with pytest.raises(StopIteration):
        next(loader)


def test_coming_steps_are_read_while_the_consumer_works_and_no_more_than_asked():
    begun, third = [], threading.Event()

    def note(samples):
        begun.append(samples)
        if samples == plan(2)[1]:
            third.set()
        return {}

    loader = Loader(note, plan, 0, 50, ahead=2)
    next(loader)
    assert third.wait(30)  # step 2 is read while the consumer still has step 0
    time.sleep(0.05)
    assert len(begun) == 6
    loader.close()
    assert threads() == []


def test_closing_while_reads_are_under_way_ends_the_threads():
    started = threading.Event()

    def slow(samples):
        started.set()
        time.sleep(0.05)
        return {}

    loader = Loader(slow, plan, 0, 1000, ahead=20)
    next(loader)
    assert started.is_set()
    loader.close()
    assert threads() == []
    with pytest.raises(StopIteration):
        next(loader)


def test_waiting_is_counted():
    ready = threading.Event()

    def slow(samples):
        time.sleep(0.15)
        if samples == plan(1)[1]:
            ready.set()
        return {}

    loader = Loader(slow, plan, 0, 2, ahead=1, threads=1)
    next(loader)
    assert loader.waited >= 0.3  # two micro-batches, one thread
    assert ready.wait(30)
    time.sleep(0.05)
    next(loader)
    assert loader.waited < 0.3


def test_nothing_is_recorded_for_gradients_in_the_threads():
    weight = torch.ones(2, requires_grad=True)
    for ahead in (0, 1):
        (_, batch), _ = next(Loader(lambda samples: {"x": weight * 2}, plan, 0, 1, ahead))
        assert not batch["x"].requires_grad
