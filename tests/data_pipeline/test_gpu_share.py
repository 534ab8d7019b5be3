"""Workers with a share of a GPU, on real Ray. There is no GPU here: Ray is told of one, and what ONNX Runtime is asked for is looked at where it is asked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.segments import AnalyzeConfig
from infra.errors import UserError
from tests.data_pipeline.small import CONFIG

ROOT = Path(__file__).parents[2]
_PRETENDS = """
import json, os, time
from pathlib import Path
import onnxruntime
folder = Path(os.environ["LATO_SEEN"])

def look_at(providers):
    seen = {"providers": providers, "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}
    mark = folder / f"{os.getpid()}.json"
    if not mark.exists():
        (folder / f"{os.getpid()}.part").write_text(json.dumps(seen))
        (folder / f"{os.getpid()}.part").rename(mark)
        until = time.monotonic() + 200
        while not (folder / "prepared").exists():  # the GPU is held until sources were looked at beside it
            assert time.monotonic() < until
            time.sleep(0.05)

class Session(onnxruntime.InferenceSession):
    def __init__(self, *given, providers):
        look_at(providers)
        super().__init__(*given, providers=["CPUExecutionProvider"])

onnxruntime.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
onnxruntime.InferenceSession = Session
"""
_SHARES = """
import json, sys, threading, time
from pathlib import Path
import ray
from data_pipeline import groups
from data_pipeline.analyze import analyze
from data_pipeline.chip_scores import GroupsConfig
from data_pipeline.groups import backfill, group_digests
from data_pipeline.ledger import read_ledger
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for
from infra.errors import UserError
work, models, clip, seen, path = sys.argv[1:]
models, seen, groups._BUNDLE = Path(models), Path(seen), 1
ray.init(address="local", num_cpus=6, num_gpus=1, include_dashboard=False, log_to_driver=False)
parts = [part for row in read_ledger(work) for part in row["parts"]]

def score(**changed):
    config = GroupsConfig(names=("identity",), **changed)
    try:
        return backfill(parts, group_digests(models, config), config, models, work, 4)
    except UserError as error:
        return str(error)

found = {"parts": len(parts), "missing": score(gpus=0.25), "never": score(gpus=2)}
pretends = {"env_vars": {"PYTHONPATH": path, "LATO_SEEN": str(seen)}}
scores = threading.Thread(target=lambda: found.update(scored=score(gpus=0.25, runtime_env=pretends)))
scores.start()
while len(list(seen.glob("*.json"))) < 4:
    assert scores.is_alive(), found
    time.sleep(0.05)
found["free"] = ray.available_resources().get("GPU", 0.0)
found["beside"] = [row["status"] for row in analyze([item_for(clip)], AnalyzeConfig(workers=1), models, work + "_beside").rows]
found["then"] = ray.available_resources().get("GPU", 0.0)
(seen / "prepared").touch()
scores.join()
print(json.dumps(found | {"seen": [json.loads(file.read_text()) for file in seen.glob("*.json")]}))
"""


@pytest.mark.slow
def test_four_workers_share_a_gpu_and_sources_are_looked_at_beside_them(built, models, clip, tmp_path):
    work, seen, path = tmp_path / "w", tmp_path / "seen", tmp_path / "path"
    shutil.copytree(built[0], work)
    seen.mkdir()
    path.mkdir()
    (path / "sitecustomize.py").write_text(_PRETENDS)
    words = [str(word) for word in (work, models, clip("single_face"), seen, f"{path}{os.pathsep}{ROOT}")]
    done = subprocess.run([sys.executable, "-c", _SHARES, *words], capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parts"] == 8 == found["scored"]
    assert len(found["seen"]) == 4  # at once, on one device
    assert all(one == {"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"], "devices": "0"} for one in found["seen"])
    assert (found["free"], found["then"], found["beside"]) == (0.0, 0.0, ["ok"])  # who looks at sources waits for no GPU
    assert found["missing"].startswith("a worker could not go on: ValueError: a GPU was asked for, but onnxruntime has none of CUDA")
    assert "2 GPU, and no node of the cluster can ever have that" in found["never"]


def test_a_build_that_asks_for_a_gpu_that_is_not_there_does_not_begin(ray_session, models, tmp_path):
    """The scores come hours after the sources: what they ask for is held against the cluster before any of them is looked at."""
    config = CONFIG.model_copy(update={"analyze": AnalyzeConfig.model_validate({"workers": 1, "groups": {"gpus": 0.25}})})
    with pytest.raises(UserError, match=r"scores of face chips: .* 0\.25 GPU, and no node .* set analyze\.groups\.gpus=0"):
        build_dataset(config, str(tmp_path), models)
    assert not (tmp_path / "parts").exists()
