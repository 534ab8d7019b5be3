"""Fixtures that every room uses: real models, real clips, a real Ray, an empty MLflow database."""

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers beside other tests, which then wait for minutes
if threading.current_thread() is threading.main_thread():
    # a shell has what it starts in the background ignore Ctrl-C, and tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def signals_are_left_as_they_were():
    """What a test's code does with Ctrl-C or SIGTERM it undoes: else a process cannot be stopped after it, nor a later test's."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the perception models."""
    from infra.jobs.common import perception_models

    return perception_models()


@pytest.fixture(scope="session")
def clip():
    """`clip("carphone")` -> its path."""
    from infra import assets

    return lambda name: str(assets.path(name))


@pytest.fixture(scope="session")
def reader(models):
    """The perception models, loaded once."""
    from lato.faces import FaceReader

    return FaceReader.from_folder(models)


@pytest.fixture(scope="session")
def person():
    """`person(seed)` -> function that draws that synthetic person with an expression and a pose."""
    import numpy as np

    from data_pipeline.synthetic.head_mesh import load_head
    from data_pipeline.synthetic.person import Pose, draw_person
    from data_pipeline.synthetic.rasterizer import render
    from lato.edits import Expression, Intensity

    mesh = load_head()

    def make(seed):
        drawn = draw_person(np.random.default_rng((5, seed)), mesh)

        def picture(expression="neutral", intensity="plain", **pose):
            return render(mesh, drawn, Expression(expression), Intensity(intensity), Pose(**pose))[0]

        return picture

    return make


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """An MLflow database without a run."""
    from mlflow import MlflowClient

    from infra.tracking import default_uri

    folder = tmp_path_factory.mktemp("database")
    MlflowClient(default_uri(str(folder))).search_experiments()  # makes its tables, which takes seconds
    return folder / "mlflow.db"


@pytest.fixture
def uri(tmp_path, empty_database):
    """Tracking in the test's own folder."""
    from infra.tracking import default_uri

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return default_uri(str(tmp_path))


@pytest.fixture(scope="session")
def ray_session():
    """Ray on this machine, for the whole run."""
    from infra.runtime import RuntimeConfig, start_ray, stop_ray

    start_ray(RuntimeConfig(num_cpus=2))
    yield
    stop_ray()


@pytest.fixture(scope="session")
def synthetic_version(models, tmp_path_factory):
    """A small dataset of synthetic people, built and published."""
    from data_pipeline.build import build_dataset
    from tests.data_pipeline.small import config

    return build_dataset(config(12), str(tmp_path_factory.mktemp("synthetic")), models, [])
