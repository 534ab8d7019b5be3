"""Trains on a Ray of three nodes, tells that the one with the ranks will be taken away, and takes it. Run by test_preemption.py, as a process of its own."""

import json
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from infra.tracking import default_uri
from training import checkpoint
from training.data import Dataset
from training.launch import train
from training.stage_factory import Job


def _take_away(cluster, job, told):
    """Once the ranks have done a few steps, drains their node; once they have saved, ends it."""
    folder = Path(job.folder)
    _wait_until(lambda: (folder / "metrics.jsonl").is_file() and '"step": 5' in (folder / "metrics.jsonl").read_text())
    first = json.loads((folder / "ranks" / "rank-00000.json").read_text())["pid"]
    node = next(node for node in cluster.worker_nodes if _is_below(first, node))
    until = int((time.time() + 60) * 1000)  # what `ray drain-node` asks for, without a second Python that starts while the ranks step on
    assert GcsClient(address=cluster.address).drain_node(node.node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "test", until)[0]
    _wait_until(lambda: checkpoint.markers(job.checkpoint_folder))
    told["saved"] = [marker["step"] for marker in checkpoint.markers(job.checkpoint_folder).values()]
    cluster.remove_node(node, allow_graceful=False)


def _wait_until(is_so, seconds=300):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_below(pid, node):
    """Whether a process belongs to a node: its raylet is among its parents."""
    return any(parent.pid == node.all_processes["raylet"][0].process.pid for parent in psutil.Process(pid).parents())


def main(job_file, scratch):
    job = Job.model_validate_json(Path(job_file).read_text())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=job.engine.workers)
    ray.init(address=cluster.address, log_to_driver=False)
    told = {}
    thief = threading.Thread(target=_take_away, args=(cluster, job, told))
    thief.start()
    started = time.monotonic()
    train(job, {source.uri: Dataset.open(source.uri).digest for source in job.data}, default_uri(scratch), "preemption")
    thief.join()
    (Path(scratch) / "told.json").write_text(json.dumps(told | {"seconds": time.monotonic() - started}))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
