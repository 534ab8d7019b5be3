"""The command line as a user meets it: a mistake is one message and exit code 2, never a traceback; and a command ends."""

import inspect
import os
import signal
import subprocess
import sys

import pytest

from infra.cli import main


def lato(*words, **options):
    return subprocess.run([sys.executable, "-m", "infra.cli", *words], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quickstart", "dit.engine.stepz=3", "data.nmae=x", "evaluation.samples=few"], "3 mistakes in the configuration"),
        (["quickstart", "--config", "gone.yaml"], "gone.yaml: there is no such file"),
        (["data", "verify", "nowhere"], "no published version here"),
        (["data", "build", "folder=nowhere"], "there is no such folder"),
        (["data", "build", "worklist=nowhere.csv"], "there is no such work list"),
        (["data", "build"], "there are no sources"),
        (["data", "build", "gone.yaml"], "gone.yaml: there is no such file"),
        (["data", "pair", "a.yaml", "b.yml"], "give one YAML file, not 2"),
        (["data", "build", "--config", "a.yaml"], "No such option"),  # one way to give it: by its place
        (["data", "export", "nowhere", "out", "--licence", "commercial"], "no published version here"),
        (["data", "retry", "--class", "crash"], "no build here"),
        (["data", "replay", "--sample", "3"], "no build here"),
        (["data", "replay"], "give --source ID"),
        (["assets", "fetch", "nothing"], "there is no asset 'nothing'"),
        (["edit", "gone.jpg", "smile"], "gone.jpg: there is no such file"),
        (["submit", "--address", "http://127.0.0.1:9", "--", "doctor"], "no Ray head answers"),
        (["train", "tokenizer", "--data", "nowhere"], "no published dataset version here"),
    ],
)
def test_a_mistake_is_one_message(words, message, tmp_path, monkeypatch, capsys):
    """In this process, which has everything imported; the next test is one of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lato", *words])
    usual = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_all_commands_ask_of_what_a_build_makes_by_default():
    from data_pipeline.config import DataConfig
    from infra.jobs.data import app
    from infra.jobs.options import BUILD, VERSION

    assert DataConfig().name == VERSION
    options = [option for command in app.registered_commands for option in inspect.signature(command.callback).parameters.values()]
    assert {option.default for option in options if option.name == "work_dir"} == {BUILD}
    assert {option.default for option in options if option.name == "version"} == {VERSION, inspect.Parameter.empty}  # the latter: a folder


def test_a_folder_without_videos(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "notes.txt").write_text("")
    done = lato("data", "build", f"folder={tmp_path}/clips", "--work-dir", str(tmp_path / "w"))
    assert done.returncode == 2
    assert "no videos or images in it" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_names_what_is_missing_and_how_to_mend_it(tmp_path):
    done = lato("doctor", env=os.environ | {"LATO_ASSETS": str(tmp_path), "COLUMNS": "200"})
    assert done.returncode == 1
    assert "lato assets fetch yunet" in done.stdout
    assert "mediapipe" in done.stdout
    assert "h264, hevc, vp9, libdav1d" in done.stdout


def test_an_object_store_that_does_not_answer_is_told_without_a_traceback():
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}
    done = lato("data", "verify", "s3://nowhere/v1", env=os.environ | keys | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert done.returncode == 2
    assert "the object store did not do what was asked of it: Could not connect" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_of_too_many_pixels_is_refused_before_it_takes_memory():
    read = "from infra.runtime import quieten; quieten(); import cv2, numpy as np; from lato.pairs import decode_image"
    make = "bomb = cv2.imencode('.png', np.zeros((17_000, 17_000), np.uint8))[1].tobytes()"
    script = f"{read}\n{make}\ntry:\n    decode_image(bomb, 'bomb.png')\nexcept ValueError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "bomb.png: cannot be read as an image" in done.stdout


@pytest.mark.slow
def test_a_build_that_is_told_to_end_says_so_and_goes_on_later(tmp_path):
    command = [sys.executable, "-m", "infra.cli", "data", "build", "synthetic.anny.people=6", "split.val=0.2", "split.test=0.2"]
    command += ["synthetic.anny.workers=0", "analyze.workers=1", "--work-dir", str(tmp_path / "w")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    for line in process.stdout:  # Ray is there by then, with a handler of its own for SIGTERM
        if "analyze" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(60) == 130, rest
    assert "interrupted. The same command goes on where it stopped." in rest
    assert "SIGTERM received" not in rest
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "w" / "versions" / "v1" / "index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["node.Node.start_head_processes", "worker.connect"])
def test_a_command_that_is_told_to_end_while_ray_starts_ends_as_ever(moment):
    """Once Ray has its handler, and once its core has another."""
    owner, _, name = f"ray._private.{moment}".rpartition(".")
    script = f"""
import os, signal, sys, time
import ray._private.node, ray._private.worker
from infra import cli
from infra.runtime import RuntimeConfig, start_ray

usual = {owner}.{name}

def then_end(*args, **named):
    usual(*args, **named)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

{owner}.{name} = then_end
cli.app.command("ray")(lambda: start_ray(RuntimeConfig(num_cpus=1)))
sys.argv = ["lato", "ray"]
cli.run()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 130, done
    assert done.stderr.strip().splitlines() == ["interrupted. The same command goes on where it stopped."]


def test_a_command_with_a_pool_of_threads_ends(tmp_path):
    """Its idle threads wait for the end of the program, which waits for them."""
    script = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from infra import cli; pool = ThreadPoolExecutor(); "
        "pool.submit(int).result(); sys.argv = ['lato', '--help']; cli.run()"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=300, capture_output=True, check=False).returncode == 0
