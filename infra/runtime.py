"""Ray: started quietly on this machine, or joined where a cluster is given."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from infra.config import Config
from infra.errors import UserError


class RuntimeConfig(Config):
    """Where Ray runs."""

    address: str | None = None
    """Address of a running Ray head; None joins the cluster that started this job, or else starts Ray on this machine."""
    num_cpus: int | None = None
    """CPUs for a Ray of our own; None takes all."""
    object_store_mb: int = 500
    """Object store of a Ray of our own, in MB. Images pass through it in small pieces."""


_QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "GLOG_minloglevel": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
    "OPENCV_IO_MAX_IMAGE_PIXELS": str(1 << 28),
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DS_BUILD_OPS": "0",
    "DS_ACCELERATOR_LOG": "error",
    "PYTHONWARNINGS": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
"""Environment of every worker: one thread a process (Ray places by CPU), no picture above 268 megapixels (0.8 GB), no chatter, no calls to a hub."""


def quieten() -> None:
    """Sets the environment of `_QUIET` here; before the libraries it speaks to are imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)  # it says that there is no GPU


_WATCH = 0.02
"""Seconds between two looks whether Ray has started."""
_wanted = RuntimeConfig()


def prepare_ray(config: RuntimeConfig) -> None:
    """Says where Ray is to run; it starts when first there is work for it, so that what stands already is recognised without it."""
    global _wanted
    _wanted = config


def start_ray(config: RuntimeConfig | None = None) -> None:
    """Joins or starts Ray, once a process.

    Args:
        config: Where; None as `prepare_ray` said.
    """
    config = config or _wanted
    quieten()
    import ray

    if ray.is_initialized():
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.ERROR)
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        common["runtime_env"] = {"env_vars": {name: os.environ[name] for name in _QUIET}}
    else:  # its workers have this process' environment; a `runtime_env` of the same makes each start twice as dear, and idle ones begin in vain
        common |= {"num_cpus": config.num_cpus, "include_dashboard": False, "object_store_memory": config.object_store_mb * 1024 * 1024}
    try:
        _beside(lambda: ray.init(address=address or "local", **common))
    except Exception as error:  # Ray raises plain exceptions when its processes do not come up in time
        where = f"at {address}" if address else "on this machine (is it very busy, or out of memory?)"
        raise UserError(f"Ray did not start {where}: {error}. What was done stands; run the same command again.") from error


def _beside(start: Callable[[], object]) -> None:
    """Starts Ray in a thread of its own and waits for it here, where signals arrive: a job that is told to end meanwhile ends as at any other time. In this
    thread Ray would take SIGTERM for itself (and end with 15); its core does so in any (a trace of itself, and 134), so that the usual way is set anew.
    """
    if threading.current_thread() is not threading.main_thread():
        start()
        return
    usual, started = signal.getsignal(signal.SIGTERM), Future[None]()

    def run() -> None:
        try:
            start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        threading.Event().wait()  # Linux ends Ray's processes with the thread that began them, not with the process

    threading.Thread(target=run, daemon=True, name="ray").start()
    while not started.done():
        wait([started], timeout=_WATCH)
        signal.signal(signal.SIGTERM, usual)
    started.result()


def stop_ray() -> None:
    """Leaves Ray; a Ray of our own ends."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
