"""Fixtures of the data builder's tests."""

import pytest

from tests.data_pipeline.small import build


@pytest.fixture(scope="session")
def built(ray_session, models, tmp_path_factory):
    """`(work folder, version)` of the small build, built once; a test leaves its `v1` and its labels as they were."""
    work = tmp_path_factory.mktemp("built")
    return work, build(work, models)
