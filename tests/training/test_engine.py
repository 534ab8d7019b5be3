"""The engine in two real processes with DeepSpeed on gloo: exact resume, the finite guard, and equal batches for any number of ranks."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

from training import checkpoint, engine, portable
from training.config import EngineConfig
from training.data import batch_indices, sample_generator

BASE = {"global_batch": 4, "warmup": 2, "checkpoint_every": 5, "eval_every": 100, "log_every": 1, "lr": 1e-2}


class Toy:
    """A stage: y = Wx from noisy draws, with a buffer that moves after each step and a dropout that draws from the global state."""

    name = "toy"

    def __init__(self, poison=None):
        self.keys = [f"k{n}" for n in range(11)]
        self._poison = poison

    def build(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 3))
        model.register_buffer("moved", torch.zeros(3))
        return model

    def loss(self, module, samples):
        draws = torch.stack([torch.randn(9, generator=sample_generator(0, epoch, key)) for key, epoch in samples])
        loss = (module(draws[:, :6]) - draws[:, 6:]).square().mean()
        if self._poison and any(key == self._poison.strip("~") for key, _ in samples):
            hidden = self._poison.startswith("~")  # the loss stays finite, its gradient does not
            loss = loss + (0 * module(draws[:, :6]).sum()).abs().sqrt() if hidden else loss * float("nan")
        return loss, {}

    def after_step(self, module, step, steps):
        module.moved += step
        return {}

    def validate(self, module):
        return {"held_out": float(module(torch.ones(1, 6)).square().mean())}

    def export(self, module, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: tensor.clone() for name, tensor in module.state_dict().items()}, folder / "model.pt")


def _rank(rank, world, port, jobs):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    for folder, config, poison in jobs:
        folder = Path(folder)
        torch.manual_seed(100 + rank)
        try:
            engine.run(Toy(poison), EngineConfig(**config), folder, engine.write_line(folder / "metrics.jsonl"))
        except engine.NotFinite as error:
            (folder / f"stopped-{rank}.txt").write_text(str(error))
        except engine.Preempted as error:
            (folder / f"preempted-{rank}.txt").write_text(str(error))
    _leave()


def _leave():
    """Together: a process that is gone while another still speaks aborts it."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run(jobs, world=2, port=29640):
    for folder, _, _ in jobs:
        Path(folder).mkdir(parents=True, exist_ok=True)
    multiprocessing.spawn(_rank, (world, port, jobs), nprocs=world)


def weights(folder):
    return torch.load(Path(folder) / "export/model.pt", weights_only=True)


@pytest.mark.slow
def test_twenty_steps_are_ten_and_ten_bit_for_bit_at_every_zero_stage(tmp_path):
    jobs, later = [], []
    for stage in (0, 1, 2, 3):
        whole, parts = tmp_path / f"whole{stage}", tmp_path / f"parts{stage}"
        config = BASE | {"zero_stage": stage, "steps": 20}
        jobs += [(str(whole), config, None), (str(parts), config | {"steps": 10, "decay_from": 2.0 * 0.7}, None)]
        later.append((str(parts), config, None))
    run(jobs)
    assert [path.name for path in checkpoint.complete(tmp_path / "parts2" / "checkpoints")] == ["step-000005", "step-000010"]
    run(later, port=29641)  # new processes: all state comes from the checkpoint
    for stage in (0, 1, 2, 3):
        whole, parts = weights(tmp_path / f"whole{stage}"), weights(tmp_path / f"parts{stage}")
        assert whole["moved"].tolist() == [210.0] * 3
        for name in whole:
            assert torch.equal(whole[name], parts[name]), (stage, name)
        lines = [json.loads(line) for line in (tmp_path / f"whole{stage}" / "metrics.jsonl").read_text().splitlines()]
        assert lines[0]["step"] == 0
        assert "held_out" in lines[-1]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_ranks_and_changes_nothing(tmp_path):
    poisoned = 3  # the step in which the bad sample comes
    order = [batch_indices(step, 4, 11, 0) for step in range(5)]
    key = f"k{order[poisoned][0][0]}"
    steps_before = min(step for step, places in enumerate(order) if any(f"k{index}" == key for index, _ in places))
    config = BASE | {"steps": 20, "checkpoint_every": 1}
    kinds = {f"{kind}{stage}": (stage, key if kind == "loss" else f"~{key}") for stage in (0, 1, 2, 3) for kind in ("loss", "gradient")}
    run([(str(tmp_path / name), config | {"zero_stage": stage}, poison) for name, (stage, poison) in kinds.items()], port=29642)
    for name in kinds:
        for rank in (0, 1):
            said = (tmp_path / name / f"stopped-{rank}.txt").read_text()
            assert f"step {steps_before + 1} is not finite" in said
            assert key in said
            assert name.rstrip("0123") in said
        # the newest checkpoint is of the step before, and nothing was written after it
        names = [path.name for path in checkpoint.complete(tmp_path / name / "checkpoints")]
        assert (names[-1] if names else "step-000000") == f"step-{steps_before:06d}"


def _preempt(rank, world, port, folder):
    """SIGTERM to rank 1 alone, in the middle of the run; and before that a request for a checkpoint."""
    import signal
    import threading

    def ask():
        metrics = Path(folder) / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            pass
        if rank == 0:
            (Path(folder) / "save-now").write_text("")
        while len(metrics.read_text().splitlines()) < 12:
            pass
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    _rank(rank, world, port, [(folder, BASE | {"steps": 2000, "checkpoint_every": 5000, "keep": 5}, None)])


@pytest.mark.slow
def test_a_stop_that_reaches_one_rank_saves_and_ends_all_and_a_save_is_made_on_request(tmp_path):
    multiprocessing.spawn(_preempt, (2, 29643, str(tmp_path)), nprocs=2)
    said = [(tmp_path / f"preempted-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    last = int(said[0].split("step ")[1].split(":")[0])
    names = [path.name for path in checkpoint.complete(tmp_path / "checkpoints")]
    assert names[-1] == f"step-{last:06d}"
    assert len(names) == 2  # the one that was asked for, and the last
    assert not (tmp_path / "save-now").exists()
    assert not (tmp_path / "export").exists()
    run([(str(tmp_path), BASE | {"steps": last + 3, "checkpoint_every": 5000}, None)], port=29644)
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-3:] == [last + 1, last + 2, last + 3]  # it went on where it stopped


def _load(rank, world, port, jobs):
    """Loads each run's newest checkpoint on another number of ranks, and writes down what is then in the engine."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    for folder, config in jobs:
        deep = engine._initialise(Toy().build(), EngineConfig(**config))
        step = checkpoint.load_newest(Path(folder) / "checkpoints", deep)
        tensors, counters = portable.gather(deep)
        if rank == 0:
            torch.save({"step": step, "tensors": tensors, "counters": counters, "lr": deep.get_lr()}, Path(folder) / f"loaded-{world}.pt")
    _leave()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_ranks_goes_on_with_the_same_state(tmp_path, world):
    """Two ranks stop after ten steps; one or three find equal weights, moments, buffers and counters, and train on."""
    base = BASE | {"global_batch": 6, "steps": 20}
    stages = (0, 1, 2, 3)
    run([(str(tmp_path / str(stage)), base | {"zero_stage": stage, "steps": 10, "decay_from": 1.4}, None) for stage in stages], port=29645)
    same = [(str(tmp_path / str(stage)), base | {"zero_stage": stage}) for stage in stages]
    multiprocessing.spawn(_load, (2, 29646, same), nprocs=2)
    multiprocessing.spawn(_load, (world, 29647, same), nprocs=world)
    for stage in stages:
        there, here = (torch.load(tmp_path / str(stage) / f"loaded-{count}.pt", weights_only=False) for count in (2, world))
        assert there["step"] == here["step"] == 10
        assert there["counters"] == here["counters"]
        assert there["lr"] == here["lr"]
        assert there["tensors"].keys() == here["tensors"].keys()
        assert {name.split("/")[0] for name in there["tensors"]} == {"weight", "exp_avg", "exp_avg_sq", "buffer"}
        for name, tensor in there["tensors"].items():
            assert torch.equal(tensor, here["tensors"][name]), (stage, name)
    run([(str(tmp_path / "2"), base | {"zero_stage": 2}, None)], world=world, port=29648)
    assert weights(tmp_path / "2")["moved"].tolist() == [210.0] * 3


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    for step, held_out in ((5, 0.5), (10, 0.2), (15, None), (20, 0.4), (25, 0.3)):
        folder = tmp_path / f"step-{step:06d}"
        folder.mkdir()
        (folder / "COMPLETE").write_text(json.dumps({"step": step, "world_size": 1, "held_out": held_out, "files": {}}))
    gone = checkpoint._superfluous(checkpoint.complete(tmp_path), keep=2)
    assert [path.name for path in gone] == ["step-000005", "step-000015"]


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    for step in (5, 10):
        folder = tmp_path / f"step-{step:06d}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"w" * 100)
        manifest = {"step": step, "world_size": 1, "files": {"weights": __import__("hashlib").sha256(b"w" * 100).hexdigest()}}
        (folder / "COMPLETE").write_text(json.dumps(manifest))
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-000005", "step-000010"]
    (tmp_path / "step-000010" / "weights").write_bytes(b"w" * 50)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-000005"]


def test_a_steps_samples_do_not_depend_on_the_ranks():
    seen = [index for step in range(11) for index, epoch in batch_indices(step, 4, 44, 7)]
    assert sorted(seen) == list(range(44))  # one epoch, each sample once
    assert batch_indices(3, 4, 44, 7) != batch_indices(3, 4, 44, 8)
    first = torch.randn(3, generator=sample_generator(0, 1, "a"))
    assert torch.equal(first, torch.randn(3, generator=sample_generator(0, 1, "a")))
    assert not torch.equal(first, torch.randn(3, generator=sample_generator(0, 2, "a")))


def test_rate_warms_up_holds_and_falls():
    config = EngineConfig(steps=100, warmup=10, decay_from=0.5)
    factors = [engine.rate_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[30] == 1
    assert factors[100] == pytest.approx(0.1)
