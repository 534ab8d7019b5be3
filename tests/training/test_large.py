"""What large models need: ZeRO-3 filled tensor by tensor, adapters on a base that is never saved, checkpoints on an object store, torchrun."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lato.conversion import read_released
from lato.transformer import LaToTransformer
from tests.training import ranks
from tests.training.test_data import upload
from tests.training.test_engine import equal, state
from tests.training.test_stages import changed, home, job, train_all, train_one  # noqa: F401 - a fixture
from training import checkpoint
from training.config import DataSource, EngineConfig
from training.ranges import RangeReader
from training.restore import ShardFiles

pytestmark = pytest.mark.slow
LAYERS, WIDTH = 16, 2048
LARGEST = WIDTH * WIDTH * 4 / 2**20


class Large(nn.Module):
    def __init__(self, layers=LAYERS):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])


def _memory(name):
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1]) / 1024


def _fill(rank, world, file, folder):
    import deepspeed

    from training import zero

    zero.start_process_group(2)
    config = EngineConfig(zero_stage=3, global_batch=world)
    for layers in (1, LAYERS):  # the first loads what DeepSpeed loads once
        with torch.device("meta"):
            model = Large(layers)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
        zero.fill(model, read_released(file), config)
        peak = _memory("VmHWM") - before
    partition = LAYERS * LARGEST / world
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"peak": peak, "partition": partition}))
    plain = read_released(file)
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            assert torch.equal(parameter, plain[name]), name
    ranks.leave()


def test_zero_3_is_filled_with_no_more_than_the_partition_and_the_largest_tensor(tmp_path):
    torch.manual_seed(0)
    save_file({f"layers.{n}.weight": torch.randn(WIDTH, WIDTH) for n in range(LAYERS)}, tmp_path / "model.safetensors")
    ranks.run(_fill, 2, str(tmp_path / "model.safetensors"), str(tmp_path))
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["partition"] == LAYERS * LARGEST / 2
        # ten MB for what the process group buffers: a plain load would be at twice the partition
        assert seen["partition"] <= seen["peak"] <= seen["partition"] + LARGEST + 10, seen


def test_an_adapter_is_trained_at_zero_2_and_3_and_only_it_is_saved(home, small, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    base = LaToTransformer(in_channels=48, hidden_size=32, num_attention_heads=1, num_double_blocks=1, num_single_blocks=1, axes_dims_rope=(8, 12, 12),
                           text_dim=32, context_dim=32, connector_num_heads=1, connector_depth=1, pooled_dim=32, landmark_dim=16, text_padding="masked")  # fmt: skip
    base.save_pretrained(tmp_path / "base")
    changes = {"base": str(tmp_path / "base"), "adapter": "lora", "lora_rank": 4, "lora_alpha": 8}
    jobs = {
        zero: changed(job("dit", tmp_path / str(zero), home, small), {"zero_stage": zero, "steps": 3, "eval_every": 3}, **changes)
        for zero in (2, 3)
    }
    ranks.run(train_all, 2, [given.model_dump_json() for given in jobs.values()])
    two, three = (state(tmp_path / str(zero))[1] for zero in (2, 3))
    own = {"landmark_in.weight", "landmark_in.bias", "null_landmarks.tokens"}
    for tensors in (two, three):
        names = {key.removeprefix("weight/") for key in tensors if key.startswith("weight/")}
        assert own < names
        assert all(".lora_" in name for name in names - own)
    assert two.keys() == three.keys()
    for name in two:
        assert torch.allclose(two[name], three[name], atol=1e-4), name
    ranks.run(train_one, 1, changed(jobs[3], {"zero_stage": 0}).model_dump_json())  # at its end already: it only exports
    model = LaToTransformer.from_pretrained(tmp_path / "base")
    model.load_lora_adapter(tmp_path / "3" / "export")
    layer = model.double_blocks[0].img_attn.qkv
    assert torch.allclose(layer.lora_B[layer.active_adapters[0]].weight, three["ema/double_blocks.0.img_attn.qkv.lora_B.default.weight"])
    assert three["ema/double_blocks.0.img_attn.qkv.lora_B.default.weight"].any()
    assert (tmp_path / "3" / "export" / "released").exists()


def test_checkpoints_on_an_object_store_are_committed_resumed_and_thinned(home, small, bucket, tmp_path, monkeypatch):  # noqa: F811
    given = job("tokenizer", tmp_path, home, small, keep=1, eval_every=100).model_copy(update={"checkpoints": f"{bucket}/run/checkpoints"})
    shorter = changed(given, {"steps": 4, "decay_from": 1.05})
    ranks.run(train_all, 2, [shorter.model_dump_json()])
    ranks.run(train_all, 2, [given.model_dump_json()])
    whole = job("tokenizer", tmp_path / "whole", home, small, eval_every=100)
    ranks.run(train_all, 2, [whole.model_dump_json()])
    found = checkpoint.markers(given.checkpoints)
    assert [marker["step"] for marker in found.values()] == [6]
    [(folder, marker)] = found.items()
    files = ShardFiles(folder, marker)
    mine = {f"weight/{name}": files.whole("weight", name) for name in files.shapes} | files.shared()
    there = {name: tensor for name, tensor in state(tmp_path / "whole")[1].items() if name in mine}
    equal(there, mine, "object store")
    name, asked = next(iter(files.shapes)), []
    monkeypatch.setattr(RangeReader, "read_many", lambda self, pieces: asked.extend(pieces) or [bytes(length) for _, _, length in pieces])
    part = torch.ones(5)
    files.fill([("exp_avg", name, 2, part)])
    assert sum(length for _, _, length in asked) == 4 * 5  # and not the whole file
    assert not part.any()


def test_a_dit_reads_pairs_and_states_from_an_object_store(home, small, bucket, tmp_path):  # noqa: F811
    here = job("dit", tmp_path, home, small)
    upload(small, f"{bucket}/v1")
    upload(home / "encoded", f"{bucket}/encoded")
    there = here.model_copy(update={"data": (DataSource(uri=f"{bucket}/v1"),), "encoded": f"{bucket}/encoded"})
    one, other = (given.make() for given in (here, there))
    batches = [stage.read(stage.data.batch(0, 4)) for stage in (one, other)]
    for name in ("source", "target", "text", "noise"):
        assert torch.equal(batches[0][name], batches[1][name])


def test_torchrun_starts_it_too(home, small, tmp_path):  # noqa: F811
    given = job("tokenizer", tmp_path, home, small)
    (tmp_path / "job.json").write_text(given.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "training.rank",
        str(tmp_path / "job.json"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr[-2000:]
    with safe_open(str(next((tmp_path / "export").glob("*.safetensors"))), framework="pt") as file:
        assert "vq.codebook" in set(file.keys())
    assert json.loads((tmp_path / "export" / "training.json").read_text())["step"] == 6


def _gathers(rank, world, folder):
    from deepspeed.runtime.zero import partition_parameters as parameters

    from training import zero

    zero.start_process_group(2)
    engine = zero.initialise(nn.Sequential(*(nn.Linear(512, 512) for _ in range(4))), None, EngineConfig(zero_stage=3, global_batch=world))
    apart, calls, gather = zero.HeldOutTrace(engine), [], parameters._dist_allgather_fn
    parameters._dist_allgather_fn = lambda *given: calls.append(1) or gather(*given)
    per_step = []
    for step in range(8):
        if step in (0, 4):
            with apart(), torch.no_grad():
                held_out = engine.module(torch.ones(2, 512))
        calls.clear()
        engine.backward(engine(torch.ones(2, 512)).square().mean())
        engine.step()
        per_step.append(len(calls))
    with apart(), torch.no_grad():
        assert not torch.equal(engine.module(torch.ones(2, 512)), held_out), "a held-out pass sees the weights of its time"
    (Path(folder) / f"{rank}.json").write_text(json.dumps(per_step))
    ranks.leave()


def test_a_held_out_pass_costs_later_steps_no_gathers(tmp_path):
    """Measured without it: every weight is gathered twice a step, ever after."""
    ranks.run(_gathers, 2, str(tmp_path))
    for rank in range(2):
        per_step = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(set(per_step[2:])) == 1 and per_step[2] < per_step[0], per_step  # the first step has no plan yet
