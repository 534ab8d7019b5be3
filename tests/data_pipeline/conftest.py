"""Fixtures of the data builder's tests."""

import shutil
import types
from pathlib import Path

import pytest

from data_pipeline.subset import make_view
from infra import backoff
from tests.data_pipeline.range_server import RangeServer
from tests.data_pipeline.small import build


@pytest.fixture(scope="session")
def built(models, tmp_path_factory):
    """`(work folder, version)` of the small build, built once; a test leaves its `v1` and its labels as they were."""
    work = tmp_path_factory.mktemp("built")
    return work, build(work, models)


@pytest.fixture
def work(synthetic_version, tmp_path):
    """A build's folder of its own, with a view `left`."""
    folder = tmp_path / "work"
    shutil.copytree(Path(synthetic_version.uri).parents[1], folder, ignore=shutil.ignore_patterns("renders", "left"))
    make_view(str(folder / "versions/v1"), "left", "expression in happy,sad,angry")
    return folder


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `tmp_path/served`; nobody waits for it, and copies are staged in `tmp_path/scratch`."""
    monkeypatch.setattr(backoff, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("LATO_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "served").mkdir()
    served = RangeServer(tmp_path / "served")
    yield served
    served.close()
