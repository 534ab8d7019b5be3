"""Places for ranks are looked for before the start: too many are refused, busy ones are waited for."""

import pytest

from infra.errors import UserError
from training import resources


def test_a_rank_must_fit_on_one_node_whole():
    each = {"CPU": 1.0, "GPU": 1.0}
    assert resources._places([{"CPU": 96, "GPU": 8}, {"CPU": 2}], each) == 8
    assert resources._places([{"CPU": 0.0}, {"CPU": 3, "GPU": 8}], each) == 3
    apart = resources._missing(4, {"CPU": 2.0}, 2, [{"CPU": 5}, {"CPU": 3}])
    assert "not together on single nodes" in apart
    assert "engine.workers=2" in apart


def test_more_ranks_than_this_machine_has_places_are_refused():
    with pytest.raises(
        UserError, match=r"engine\.workers=100000: the ranks need 1 .PU each, and \d+ of them find a place \(missing: \d+ .PU\)"
    ):
        resources.check_here(100_000)


@pytest.mark.parametrize(
    ("nodes", "grown", "has"),
    [
        ([{"CPU": 4.0}], {}, False),
        ([{"CPU": 0.0}, {"CPU": 96.0, "GPU": 8.0}], {}, True),
        ([{"CPU": 0.0}], {"CPU": 96.0, "GPU": 8.0}, True),  # nodes with GPUs are started when they are asked for
        ([{"CPU": 0.0}], {"CPU": 96.0}, False),
    ],
)
def test_gpus_are_those_of_the_cluster_not_of_the_machine_that_drives_it(monkeypatch, nodes, grown, has):
    monkeypatch.setattr(resources, "_cluster", lambda: (nodes, grown))
    assert resources.cluster_has_gpus() == has


def test_a_ray_that_runs_is_asked_for_its_gpus(monkeypatch):
    import ray
    from ray._private.state import state

    alive = {"Alive": True, "Resources": {"CPU": 96.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 0.0}}, alive])
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)
    assert resources.cluster_has_gpus()
    alive["Alive"] = False
    assert not resources.cluster_has_gpus()


@pytest.mark.slow
def test_places_that_other_jobs_hold_are_waited_for_and_then_told(ray_session):
    import ray

    resources.check_ray(2, {"CPU": 1.0})

    @ray.remote(num_cpus=1)
    class Holder:
        def ready(self):
            return True

    holder = Holder.remote()
    ray.get(holder.ready.remote())
    with pytest.raises(UserError, match=r"1 of the 2 places \(1 CPU each\) are free; other jobs hold the rest.*engine\.workers=1"):
        resources.check_ray(2, {"CPU": 1.0}, patience=0.0)
    ray.kill(holder)
    resources.check_ray(2, {"CPU": 1.0})  # waits until it is given back
