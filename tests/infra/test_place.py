"""What actors ask Ray for: memory, GPUs, environments. On real Ray, each time one of its own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from infra import place
from infra.config import load_config
from infra.errors import UserError

ROOT = Path(__file__).parents[2]
_CLUSTER = """
import json, os, sys, time
from ray.cluster_utils import Cluster
from infra.errors import UserError
from infra.place import Place
from infra.pool import prepare_places, run_all
from infra.runtime import RuntimeConfig, start_ray
GB = 1024**3
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "memory": 2 * GB, "include_dashboard": False})
cluster.add_node(num_cpus=4, memory=3 * GB, num_gpus=1)
start_ray(RuntimeConfig(address=cluster.address))

class Worker:
    def run(self, job):
        time.sleep(0.2)
        return os.getpid()

def attempt(place, workers=4, jobs=8):
    try:
        return len({done.result for done in run_all(Worker, list(range(jobs)), workers, place)})
    except UserError as error:
        return str(error)

found = {"fits": attempt(Place("small", memory=GB // 4)), "three": attempt(Place("middle", memory=GB))}
found["one"] = attempt(Place("large", memory=int(2.5 * GB)))
found["none"] = attempt(Place("huge", "analyze", "analyze.workers", memory=4 * GB))
found["gpus"] = attempt(Place("scores", "analyze.groups", "analyze.workers", GB, gpus=2))
found["apart"] = attempt(Place("both", "analyze.groups", "analyze.workers", int(2.5 * GB), gpus=0.5))
prepare_places([Place("later", "analyze.groups", gpus=3)])
found["before"] = attempt(Place("sooner"))
print(json.dumps(found))
"""


def run(python, script, *words):
    busy = os.environ | {"RAY_raylet_start_wait_time_s": "120"}  # two nodes on a machine that does other things
    done = subprocess.run([str(python), "-c", script, *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=300, env=busy)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_workers_go_where_there_is_memory_and_what_never_fits_is_told_before_the_start():
    """On two nodes of four CPUs, with 2 and 3 GB and a GPU on the second."""
    *lines, found = run(sys.executable, _CLUSTER).splitlines()
    found = json.loads(found)
    assert (found["fits"], found["one"]) == (4, 1)
    assert found["three"] == 4  # two and three: five places
    assert [line for line in lines if "at once" in line] == [
        f"  {stage}: 1 of 4 workers at once; each asks for 2.5 GB of memory, and the nodes have no more" for stage in ("large", "both")
    ]
    assert found["none"] == (
        "huge: each worker asks Ray for 1 CPU, 4.0 GB of memory, and no node of the cluster can ever have that; the largest has 4 CPU, 3.0 GB of memory. "
        "To go on, add a node that has it (Ray's memory on a node is what was free when it started), or work without Ray (analyze.workers=0)."
    )
    assert "1 CPU, 1.0 GB of memory, 2 GPU" in found["gpus"] and "4 CPU, 3.0 GB of memory, 1 GPU" in found["gpus"]
    assert found["gpus"].endswith("or set analyze.groups.gpus=0.")
    assert found["apart"] == 1  # on the node that has both
    assert found["before"].startswith("later: each worker asks Ray for 1 CPU, 3 GPU")


_ENVIRONMENTS = """
import importlib.util, json, sys
from data_pipeline.places import diffusers
from data_pipeline.synthetic.diffusers_edit import DiffusersConfig
from data_pipeline.synthetic.sources import edit_photos
from data_pipeline.worklist import item_for
from infra.errors import UserError
from infra.runtime import RuntimeConfig, start_ray
from pathlib import Path
photo, wheel, work = sys.argv[1:]
start_ray(RuntimeConfig(num_cpus=2))

class Editor:
    def edit(self, photo, seed, box):
        import lato_small_wheel
        return [(lato_small_wheel.picture, None)]

def attempt(work, runtime_env, seed=0):
    config = DiffusersConfig(runtime_env=runtime_env, seed=seed)
    try:
        (item,) = edit_photos("small", config, Editor, [item_for(photo, licence="CC0-1.0")], work, 1, diffusers(config))
        return item.uri
    except UserError as error:
        return str(error)

offline = {"pip_install_options": ["--no-index", "--no-deps"]}
found = {"driver": importlib.util.find_spec("lato_small_wheel") is not None, "without": attempt(work, {"env_vars": {"ANOTHER": "1"}})}
found["with"] = attempt(work, {"pip": {"packages": [wheel], **offline}})
found["stands"] = attempt(work, {})
found["broken"] = attempt(work, {"pip": {"packages": ["lato-no-such-package"], **offline}}, seed=1)
found["no_python"] = attempt(work, {"py_executable": "/nowhere/python", "config": {"setup_timeout_seconds": 5}}, seed=1)
records = [json.loads(file.read_text()) for file in Path(work, "synthetic").glob("small_*.json")]
print(json.dumps(found | {"records": records}))
"""


def light_python(folder):
    """A virtual environment that holds nothing but a way to this one's packages: Ray copies it whole for each pip environment, and this one is 8 GB."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    paths = [sysconfig.get_path("purelib"), str(ROOT)]
    (site / "all.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in paths))
    return folder / "bin/python"


def small_wheel(folder, picture):
    """A wheel with one module, which holds a picture."""
    wheel, info = folder / "lato_small_wheel-1.0-py3-none-any.whl", "lato_small_wheel-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("lato_small_wheel.py", f"picture = {picture!r}\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lato-small-wheel\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.mark.slow
def test_a_stage_has_libraries_that_the_driver_has_not(person, tmp_path):
    """A wheel that only the actors of one stage have; and environments that cannot be made, each one message and no hang."""
    import cv2

    picture = cv2.imencode(".jpg", person(3)())[1].tobytes()
    (tmp_path / "photo.jpg").write_bytes(picture)
    words = tmp_path / "photo.jpg", small_wheel(tmp_path, picture), tmp_path / "w"
    found = json.loads(run(light_python(tmp_path / "light"), _ENVIRONMENTS, *words).splitlines()[-1])
    assert found["driver"] is False
    assert found["without"].startswith("a worker could not go on: ModuleNotFoundError: No module named 'lato_small_wheel'")
    assert Path(found["with"]).is_file()
    assert found["stands"] == found["with"]  # an environment is in no fingerprint: what was made is not made again
    assert [set(record) for record in found["records"]] == [{"set", "with"}] and "version.diffusers" in found["records"][0]["with"]
    for name in ("broken", "no_python"):
        assert found[name].startswith("edited photos: no worker can be started, mend synthetic.diffusers.runtime_env: ")
    assert "No matching distribution found for lato-no-such-package" in found["broken"]
    assert "none came up in 5 s" in found["no_python"]


def test_nodes_that_are_started_on_demand_count_as_there(monkeypatch, capsys):
    """What a cluster file does not say of their memory is no reason to refuse; what waits is what they are started for, so no worker is left out."""
    there = [{"CPU": 2.0, "memory": 4.0 * 1024**3}]
    asked = place.Place("s", memory=3 * 1024**3, gpus=0.25)
    for grown in ({"CPU": 8.0, "GPU": 1.0, "memory": float("inf")}, {"CPU": 8.0, "GPU": 1.0, "memory": 5.0 * 1024**3}):
        monkeypatch.setattr(place, "_nodes", lambda grown=grown: (there, [grown]))
        assert place.room_for(asked, 8) == 8
    for lacks in ({"CPU": 8.0, "memory": float("inf")}, {"CPU": 8.0, "GPU": 1.0, "memory": 2.0 * 1024**3}):
        monkeypatch.setattr(place, "_nodes", lambda lacks=lacks: (there, [lacks]))
        with pytest.raises(UserError, match="no node of the cluster can ever have that"):
            place.room_for(asked, 8)
    monkeypatch.setattr(place, "_nodes", lambda: ([{"CPU": 8.0, "GPU": 1.0, "memory": 99.0 * 1024**3}], []))
    assert place.room_for(asked, 8) == 8 and capsys.readouterr().out == ""  # that a GPU is full is no news of memory


MISTAKES = [
    ("analyze.runtime_env", "{pipp: [x]}", "pipp: unknown key; did you mean 'pip'?"),
    ("analyze.groups.runtime_env", "{pip: [x], conda: y}", "cannot be specified at the same time"),
    ("synthetic.diffusers.runtime_env", "{env_vars: {A: 1}}", "Ray does not take it"),
    ("analyze.runtime_env", "{working_dir: .}", "only supported at the job level"),
]


@pytest.mark.parametrize(("key", "given", "message"), MISTAKES, ids=[case[1] for case in MISTAKES])
def test_an_environment_that_ray_does_not_take_is_a_mistake_in_the_config(key, given, message):
    with pytest.raises(UserError, match="1 mistake in the configuration") as told:
        load_config(DataConfig, None, [f"{key}={given}"])
    assert key in str(told.value) and message in str(told.value)


@pytest.mark.parametrize("section", ["analyze", "analyze.groups", "synthetic.diffusers"])
def test_an_environment_without_actors_is_a_mistake_in_the_config(section):
    workers = "synthetic.diffusers.workers=0" if "diffusers" in section else "analyze.workers=0"
    with pytest.raises(UserError, match="with workers=0 there are none"):
        load_config(DataConfig, None, [workers, f"{section}.runtime_env={{env_vars: {{A: b}}}}"])
    config = load_config(DataConfig, None, [f"{section}.runtime_env={{env_vars: {{A: b}}, pip: [x], py_executable: p}}"])
    assert "runtime_env" not in json.dumps(config.model_dump(include={"pairing", "render", "split", "instructions", "pack"}))
