"""A Ray of our own: what its workers are given."""

import os

import pytest
import ray

from infra.runtime import _QUIET


@pytest.mark.slow
def test_its_workers_have_the_quiet_environment_without_one_that_is_made_for_the_job(ray_session):
    def given():
        return {name: os.environ.get(name) for name in _QUIET}, ray.get_runtime_context().runtime_env.to_dict()

    assert ray.get(ray.remote(given).remote()) == ({name: os.environ[name] for name in _QUIET}, {})
