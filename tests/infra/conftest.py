"""Fixtures of infra's tests: an empty MLflow database."""

import shutil

import pytest

from infra.tracking import default_uri


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("database")
    MlflowClient(default_uri(str(folder))).search_experiments()  # makes its tables, which takes seconds
    return folder / "mlflow.db"


@pytest.fixture
def uri(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return default_uri(str(tmp_path))
