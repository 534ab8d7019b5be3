"""The engine in real processes with DeepSpeed on gloo: exact resume, the guards, requests, other numbers of ranks."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.training import ranks
from tests.training.ranks import leave
from tests.training.toy import BASE, Toy, train_all
from training import checkpoint, engine, zero
from training.config import EngineConfig
from training.export import export
from training.guards import Alarms
from training.mixture import Mixture, Sample, sample_generator
from training.restore import ShardFiles, load

pytestmark = pytest.mark.slow
STAGES = (0, 1, 2, 3)


def run(jobs, world=2, target=train_all):
    jobs = [(str(folder), config, *toy) if toy else (str(folder), config, {}) for folder, config, *toy in jobs]
    for folder, *_ in jobs:
        Path(folder).mkdir(parents=True, exist_ok=True)
    ranks.run(target, world, jobs)


def state(folder):
    """Step, and every tensor of the newest checkpoint, whole, by part and name."""
    path = checkpoint.newest(str(Path(folder) / "checkpoints"))
    marker = json.loads((Path(path) / checkpoint.MARKER).read_text())
    files = ShardFiles(path, marker)
    parts = [part for part in ("weight", "exp_avg", "exp_avg_sq", "ema") if files.has(part)]
    return marker["step"], {f"{part}/{name}": files.whole(part, name) for part in parts for name in files.shapes} | files.shared()


def equal(one, other, where):
    assert one.keys() == other.keys(), where
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), (where, name)


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


VARIANTS = {
    **{f"zero{stage}": {"zero_stage": stage, "ema": 0.9} for stage in STAGES},
    **{f"zero{stage}-bf16": {"zero_stage": stage, "ema": 0.9, "precision": "bf16"} for stage in STAGES},
    "zero2-accumulation": {"zero_stage": 2, "accumulation": 2},
    "zero3-offload": {"zero_stage": 3, "offload": "all"},
    "zero2-offload": {"zero_stage": 2, "offload": "optimizer", "prefetch": 0},
}


def test_twenty_steps_are_ten_and_ten_bit_for_bit(tmp_path):
    """Weights, moments, average, buffers; at every ZeRO stage, in fp32 and bf16, with accumulation and offload; all state comes from the checkpoint."""
    whole, first, rest = [], [], []
    for name, variant in VARIANTS.items():
        config = BASE | variant | {"steps": 20}
        whole.append((tmp_path / f"{name}-whole", config))
        first.append((tmp_path / name, config | {"steps": 10, "decay_from": 1.4}))
        rest.append((tmp_path / name, config))
    run(whole + first)
    run(rest)
    for name in VARIANTS:
        step, uninterrupted = state(tmp_path / f"{name}-whole")
        assert step == 20
        assert uninterrupted["buffer/moved"].tolist() == [210.0] * 3
        equal(uninterrupted, state(tmp_path / name)[1], name)
        assert any(key.startswith("ema/") for key in uninterrupted) == ("ema" in VARIANTS[name])
    held = [line for line in lines(tmp_path / "zero0-whole") if "held_out" in line]
    assert held[0]["step"] == 0
    assert held[-1]["step"] == 20
    assert (tmp_path / "zero0-whole" / "pictures" / "grid-000020.png").exists()


def test_ranks_accumulation_stages_and_prefetch_change_how_not_what(tmp_path):
    """Without dropout, which draws from a rank's own state, equal global batches give equal weights."""
    config = BASE | {"steps": 6, "zero_stage": 0}
    still = {"dropout": 0.0}
    ways = {
        "accumulation": {"accumulation": 2},
        "zero2": {"zero_stage": 2, "prefetch": 0},
        "zero3": {"zero_stage": 3},
        "remade": {"checkpoint_activations": True},
    }
    run([(tmp_path / "plain", config, still), *((tmp_path / name, config | way, still) for name, way in ways.items())])
    run([(tmp_path / "alone", config, still)], world=1)
    _, plain = state(tmp_path / "plain")
    for name in ("alone", *ways):
        for key, tensor in state(tmp_path / name)[1].items():
            assert torch.allclose(tensor, plain[key], atol=1e-5), (name, key)
        for one, other in zip(lines(tmp_path / "plain"), lines(tmp_path / name), strict=True):
            assert {name: one[name] for name in ("loss", "held_out", "seen") if name in one} == pytest.approx(
                {name: other[name] for name in ("loss", "held_out", "seen") if name in other}, rel=1e-4
            )


def test_what_is_not_finite_stops_all_ranks_and_changes_nothing(tmp_path):
    order = [Toy().data.batch(step, 4) for step in range(6)]
    key = order[2][0].key  # an epoch has eleven samples: it does not come before the third step
    before = min(step for step, batch in enumerate(order) if any(sample.key == key for sample in batch))
    config = BASE | {"steps": 20, "checkpoint_every": 1, "ema": 0.9}
    kinds = {f"{kind}{stage}": (stage, key if kind == "loss" else f"~{key}") for stage in STAGES for kind in ("loss", "gradient")}
    run([(tmp_path / name, config | {"zero_stage": stage}, {"poison": poison}) for name, (stage, poison) in kinds.items()])
    for name in kinds:
        for rank in (0, 1):
            said = (tmp_path / name / f"stopped-{rank}.txt").read_text()
            assert f"step {before + 1} is not finite" in said
            assert key in said
            assert name.rstrip("0123") in said
        assert state(tmp_path / name)[0] == before == 2  # the newest checkpoint is of the step before


def _untouched(rank, world, jobs):
    """Runs into a poisoned sample and compares what is then in the engine with the checkpoint of the step before."""
    from training import engine as engine_module
    from training.shards import shards

    kept = {}
    before = engine_module._Training._train_step

    def look(self, parts, waited):
        kept["training"] = self
        kept["before"] = {
            s.name: [t.clone() for t in (s.weight, *s.moments.values(), self._ema.values[s.name])] for s in shards(self._engine)
        }
        kept["buffers"] = [buffer.clone() for buffer in self._engine.module.buffers()]
        kept["lr"] = self._engine.get_lr()
        return before(self, parts, waited)

    engine_module._Training._train_step = look
    for folder, config, toy in jobs:
        with pytest.raises(engine_module.NotFinite):
            engine_module.run(Toy(**toy), EngineConfig(**config), Path(folder))
        training = kept["training"]
        for shard in shards(training._engine):
            now = (shard.weight, *shard.moments.values(), training._ema.values[shard.name])
            assert all(torch.equal(a, b) for a, b in zip(kept["before"][shard.name], now, strict=True)), (folder, shard.name)
        assert all(torch.equal(a, b) for a, b in zip(kept["buffers"], training._engine.module.buffers(), strict=True))
        assert kept["lr"] == training._engine.get_lr()
        (Path(folder) / f"looked-{rank}").touch()
    leave()


def test_weights_moments_average_and_buffers_stay_when_a_gradient_is_not_finite(tmp_path):
    key = Toy().data.batch(4, 4)[0].key
    config = BASE | {"steps": 20, "ema": 0.9}
    run([(tmp_path / str(stage), config | {"zero_stage": stage}, {"poison": f"~{key}"}) for stage in STAGES], target=_untouched)
    assert len(list(tmp_path.glob("*/looked-*"))) == 8


def _asked(rank, world, jobs):
    """Asks for a checkpoint and a grid, then SIGTERM to rank 1 alone."""
    folder = Path(jobs[0][0])

    def ask():
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            time.sleep(0.01)
        if rank == 0:
            (folder / "save-now").touch()
            (folder / "sample-now").touch()
        while (folder / "save-now").exists() or not list((folder / "checkpoints").glob("*/COMPLETE")):
            time.sleep(0.01)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    train_all(rank, world, jobs)


def test_a_stop_that_reaches_one_rank_saves_and_ends_all_and_requests_are_met(tmp_path):
    run([(tmp_path, BASE | {"steps": 20000, "checkpoint_every": 50000, "keep": 5})], target=_asked)
    said = [(tmp_path / f"stopped-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("Preempted")
    last = int(said[0].split("step ")[1].split(":")[0])
    found = checkpoint.markers(str(tmp_path / "checkpoints"))
    assert [marker["step"] for marker in found.values()][-1] == last
    assert len(found) == 2  # the one that was asked for, and the last
    assert len(list((tmp_path / "pictures").iterdir())) == 1
    assert not (tmp_path / "sample-now").exists()
    run([(tmp_path, BASE | {"steps": last + 3, "checkpoint_every": 50000})])
    assert [line["step"] for line in lines(tmp_path)][-3:] == [last + 1, last + 2, last + 3]  # it went on where it stopped


def _load(rank, world, jobs):
    """Loads each run's newest checkpoint on another number of ranks, and saves it again at once."""
    from training.ema import Ema

    zero.start_process_group(2)
    for folder, config, toy in jobs:
        config = EngineConfig(**config)
        deep = zero.initialise(Toy(**toy).build(), None, config)
        ema = Ema(deep, 0.9)
        marker = load(checkpoint.newest(str(Path(folder) / "checkpoints")), deep, ema)
        again = checkpoint.Checkpoints(str(Path(folder) / f"again-{world}" / "checkpoints"), 2)
        again.save(marker["step"], deep, ema, None)
        again.finish()
        if rank == 0:
            (Path(folder) / f"lr-{world}.json").write_text(json.dumps(deep.get_lr()))
    leave()


@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_ranks_goes_on_with_the_same_state(tmp_path, world):
    """Two ranks stop after ten steps; one or three find equal weights, moments, average, buffers and counters, and train on."""
    base = BASE | {"global_batch": 6, "steps": 20, "ema": 0.9}
    run([(tmp_path / str(stage), base | {"zero_stage": stage, "steps": 10, "decay_from": 1.4}) for stage in STAGES])
    same = [(tmp_path / str(stage), base | {"zero_stage": stage}) for stage in STAGES]
    run(same, world=world, target=_load)
    for stage in STAGES:
        there, here = state(tmp_path / str(stage)), state(tmp_path / str(stage) / f"again-{world}")
        assert there[0] == here[0] == 10
        assert {name.split("/")[0] for name in there[1]} == {"weight", "exp_avg", "exp_avg_sq", "ema", "buffer"}
        equal(there[1], here[1], stage)
        counters = [json.loads(path.read_text()) for path in sorted((tmp_path / str(stage)).glob("**/step-000010/counters.json"))]
        assert counters[0] == counters[1]
    run([same[2], same[3]], world=world)
    assert state(tmp_path / "3")[1]["buffer/moved"].tolist() == [210.0] * 3
    assert lines(tmp_path / "3")[-1]["loss"] == pytest.approx(lines(tmp_path / "2")[-1]["loss"], rel=1e-3)


def test_an_export_holds_the_average(tmp_path):
    run([(tmp_path / str(stage), BASE | {"steps": 10, "zero_stage": stage, "ema": 0.5}) for stage in (0, 3)])
    for stage in (0, 3):
        path = checkpoint.newest(str(tmp_path / str(stage) / "checkpoints"))
        card = export(Toy(), path, tmp_path / "export")
        assert card["weights"] == "ema"
        assert card["step"] == 10
        exported = torch.load(tmp_path / "export" / "model.pt", weights_only=True)
        _, tensors = state(tmp_path / str(stage))
        for name in ("0.weight", "2.bias"):
            assert torch.equal(exported[name], tensors[f"ema/{name}"])
            assert not torch.equal(exported[name], tensors[f"weight/{name}"])
        assert exported["moved"].tolist() == [55.0] * 3


def test_a_model_filled_from_the_meta_device_trains_alike(tmp_path):
    config = BASE | {"steps": 5, "zero_stage": 3}
    run(
        [
            (tmp_path / "plain", config),
            (tmp_path / "meta", config, {"meta": True}),
            (tmp_path / "meta2", config | {"zero_stage": 2}, {"meta": True}),
        ]
    )
    equal(state(tmp_path / "plain")[1], state(tmp_path / "meta")[1], "filled")
    assert state(tmp_path / "meta2")[0] == 5


def _buckets(rank, world, jobs):
    """Trains with DeepSpeed's own bucket, and with the run's; notes the largest buffer that each made."""
    own = zero.zero_config
    for folder, config, toy in jobs:
        folder = Path(folder)
        made = []

        def look(*arguments, whole=folder.name.endswith("whole"), made=made):
            made.append(own(*arguments))
            if whole:
                made[-1]["zero_optimization"]["reduce_bucket_size"] = zero.BUCKET
            return made[-1]

        zero.zero_config = look
        engine.run(Toy(**toy), EngineConfig(**config), folder)
        (folder / "bucket").write_text(str(made[-1]["zero_optimization"]["reduce_bucket_size"]))
    leave()


def test_gradients_are_reduced_in_a_buffer_no_larger_than_they_are(tmp_path):
    """The toy trains 83 elements; the values are those of DeepSpeed's own buffer of 500 million."""
    ways = {f"{stage}-{precision}": {"zero_stage": stage, "precision": precision} for stage in (1, 2, 3) for precision in ("fp32", "bf16")}
    config = BASE | {"steps": 6, "accumulation": 2}
    run([(tmp_path / f"{name}{end}", config | way) for name, way in ways.items() for end in ("", "-whole")], target=_buckets)
    for name in ways:
        assert (tmp_path / name / "bucket").read_text() == "83" != (tmp_path / f"{name}-whole" / "bucket").read_text()
        equal(state(tmp_path / name)[1], state(tmp_path / f"{name}-whole")[1], name)


def test_a_file_system_that_hiccups_stops_no_heart(tmp_path, monkeypatch):
    from training import guards

    def stale(*_):
        raise OSError(116, "Stale file handle")

    heart, working = guards.Heartbeat(tmp_path, 0, 2), guards.commit
    monkeypatch.setattr(guards, "commit", stale)
    heart.beat(3, "step")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(guards, "commit", working)
    heart.beat(3, "validation")
    assert json.loads((tmp_path / "rank-00000.json").read_text())["phase"] == "validation"
    guards.Heartbeat(tmp_path, 2, 3).beat(3, "step")  # of a run on three ranks that went before
    assert heart.missing() == "no other rank has been heard of"


@pytest.mark.slow
def test_a_run_that_is_over_is_measured_where_its_curve_is_lost(tmp_path):
    run([(tmp_path / "first", BASE | {"steps": 5})])
    shutil.copytree(tmp_path / "first" / "checkpoints", tmp_path / "second" / "checkpoints")
    shutil.copytree(tmp_path / "second", tmp_path / "farther")
    (tmp_path / "farther" / "stop-now").touch()  # it has nothing to stop, and is met
    run([(tmp_path / "second", BASE | {"steps": 5}), (tmp_path / "farther", BASE | {"steps": 3})])
    for name in ("second", "farther"):
        (line,) = lines(tmp_path / name)
        assert (line["step"], line["held_out"]) == (5, lines(tmp_path / "first")[-1]["held_out"])
    assert not (tmp_path / "farther" / "stop-now").exists()


def test_a_steps_samples_do_not_depend_on_the_ranks():
    mixed = Mixture([[f"a{n}" for n in range(44)]], [1.0], 7)
    seen = [sample for step in range(11) for sample in mixed.batch(step, 4)]
    assert sorted(sample.key for sample in seen) == sorted(f"a{n}" for n in range(44))  # one epoch, each sample once
    assert mixed.batch(3, 4) == Mixture([[f"a{n}" for n in range(44)]], [1.0], 7).batch(3, 4)  # asked out of order
    assert mixed.batch(3, 4) != Mixture([[f"a{n}" for n in range(44)]], [1.0], 8).batch(3, 4)
    first = torch.randn(3, generator=sample_generator(0, Sample(0, "a", 1)))
    assert torch.equal(first, torch.randn(3, generator=sample_generator(0, Sample(0, "a", 1))))
    assert not torch.equal(first, torch.randn(3, generator=sample_generator(0, Sample(0, "a", 2))))
    assert not torch.equal(first, torch.randn(3, generator=sample_generator(0, Sample(1, "a", 1))))


def test_sources_get_their_shares_and_each_its_whole_epochs():
    mixed = Mixture([[f"a{n}" for n in range(10)], [f"b{n}" for n in range(30)]], [1.0, 3.0], 0)
    seen = [sample for step in range(256) for sample in mixed.batch(step, 8)]
    assert sum(sample.source == 0 for sample in seen) == 512
    for source, size in ((0, 10), (1, 30)):
        own = [sample for sample in seen if sample.source == source]
        for start in range(0, len(own) - size, size):
            assert len({sample.key for sample in own[start : start + size]}) == size
            assert {sample.epoch for sample in own[start : start + size]} == {start // size}


def test_rate_warms_up_holds_and_falls():
    config = EngineConfig(steps=100, warmup=10, decay_from=0.5)
    factors = [zero.rate_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[30] == 1
    assert factors[100] == pytest.approx(0.1)


def test_a_jump_of_the_loss_and_a_low_metric_are_told_once():
    alarms = Alarms({"codebook/perplexity": (10.0, "collapse")}, warmup=5)
    for step in range(50):
        assert alarms.look(step, {"loss": 1.0 + 0.01 * (step % 3), "codebook/perplexity": 20.0}) == []
    assert "6.0 times the median" in alarms.look(50, {"loss": 6.06, "codebook/perplexity": 20.0})[0]
    assert "collapse" in alarms.look(51, {"loss": 1.0, "codebook/perplexity": 5.0})[0]
    assert alarms.look(52, {"loss": 1.0, "codebook/perplexity": 5.0}) == []
