"""What a result was made with: commit, versions, lock file, hardware, hosts. Kept with every run."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.storage import sha256_file

COMMIT_VARIABLE = "LATO_COMMIT"
"""`lato submit` sends the code without `.git`, and what it was at in this variable."""
_ROOT = Path(__file__).parents[1]
_LIBRARIES = ("torch", "deepspeed", "ray", "transformers", "diffusers", "mlflow")


def git_state() -> str:
    """Commit of the code that runs, and whether it was changed: `0123456789ab (changed)`; `unknown` outside a checkout."""
    try:
        commit_id = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT_VARIABLE, "unknown")
    return commit_id + (" (changed)" if changed else "")


def describe_environment() -> dict[str, str]:
    """Where and with what this process runs, as short texts by name; of the whole cluster where Ray runs here."""
    commit_id, _, changed = git_state().partition(" ")
    lock = _ROOT / "constraints.txt"
    described = {
        "git.commit": commit_id,
        "git.dirty": "yes" if changed else "unknown" if commit_id == "unknown" else "no",
        "version.python": platform.python_version(),
        **{f"version.{name}": _version(name) for name in _LIBRARIES},
        "lock.sha256": sha256_file(str(lock)) if lock.exists() else "unknown",
        "host.names": socket.gethostname(),
        "host.system": platform.platform(terse=True),
        "host.cpu": _processor(),
        "host.cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "host.memory_gb": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f}",
        "host.gpus": _gpus(),
    }
    return described | _cluster()


@functools.cache
def describe_machine(libraries: tuple[str, ...]) -> dict[str, str]:
    """What may change the last bits of a result: the processor, the system, versions of these packages. Without names of hosts; looked up once a process."""
    return {
        "version.python": platform.python_version(),
        **{f"version.{name}": _version(name) for name in libraries},
        "host.system": platform.platform(terse=True),
        "host.cpu": _processor(),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def _cluster() -> dict[str, str]:
    """Hosts and sums of a Ray that this process is part of."""
    if "ray" not in sys.modules:
        return {}
    import ray

    if not ray.is_initialized():
        return {}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    have = ray.cluster_resources()
    kinds = sorted(name.removeprefix("accelerator_type:") for name in have if name.startswith("accelerator_type:"))
    return {
        "host.names": ", ".join(sorted({node["NodeManagerHostname"] for node in nodes})),
        "cluster.nodes": str(len(nodes)),
        "cluster.cores": f"{have.get('CPU', 0):g}",
        "cluster.gpus": f"{have.get('GPU', 0):g}" + (f" ({', '.join(kinds)})" if kinds else ""),
        "cluster.memory_gb": f"{have.get('memory', 0) / 2**30:.0f}",
    }
