"""Ray: started quietly on this machine, or joined where a cluster is given."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings

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
    runtime_env = {"env_vars": {name: os.environ[name] for name in _QUIET}}
    logging.getLogger("ray").setLevel(logging.ERROR)
    common = {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": runtime_env}
    usual = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(
                address="local",
                num_cpus=config.num_cpus,
                include_dashboard=False,
                object_store_memory=config.object_store_mb * 1024 * 1024,
                **common,
            )
    except Exception as error:  # Ray raises plain exceptions when its processes do not come up in time
        where = f"at {address}" if address else "on this machine (is it very busy, or out of memory?)"
        raise UserError(f"Ray did not start {where}: {error}. What was done stands; run the same command again.") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, usual)  # Ray's own shows a trace of itself and ends with 15


def stop_ray() -> None:
    """Leaves Ray; a Ray of our own ends."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
