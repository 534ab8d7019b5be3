"""What this machine has: one line a thing, and the command that mends what is missing."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

_DECODERS = ("h264", "hevc", "vp9", "libdav1d", "mpeg4")
"""What nearly all videos are in, by the names of FFmpeg's decoders; its own `av1` needs a GPU."""


@dataclass(frozen=True)
class Check:
    """One line."""

    name: str
    found: str
    ok: bool
    needed: bool = True
    mend: str = ""


def examine() -> list[Check]:
    """All checks; none of them changes anything."""
    return [_python(), *_machine(), *_gpu(), *_tools(), *_libraries(), *_packages(), *_assets()]


def _python() -> Check:
    right = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Check("Python", platform.python_version(), right, mend="install Python 3.11 or 3.12")


def _machine() -> list[Check]:
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    disk = shutil.disk_usage(".").free / 2**30
    cores = os.cpu_count() or 1
    return [
        Check("cores", str(cores), cores >= 2, mend="the demo needs 2"),
        Check("memory", f"{memory:.1f} GB", memory >= 7, mend="the demo needs 7 GB"),
        Check("disk", f"{disk:.1f} GB free here", disk >= 3, mend="free 3 GB"),
    ]


def _gpu() -> list[Check]:
    smi = shutil.which("nvidia-smi")
    names = ""
    if smi:
        listed = subprocess.run([smi, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        names = ", ".join(listed.stdout.split("\n")).strip(", ")
    mend = "not needed for the demo; install an NVIDIA driver to train at base or full size"
    cuda = importlib.metadata.version("torch").partition("+")[2] or "cpu"
    return [
        Check("GPU", names or "none", bool(names), needed=False, mend=mend),
        Check("CUDA of torch", cuda, cuda.startswith("cu"), needed=False, mend="install a CUDA build of torch"),
    ]


def _tools() -> list[Check]:
    compiler = shutil.which("g++") or shutil.which("clang++")
    npm = shutil.which("npm")
    return [
        Check(
            "C++ compiler",
            compiler or "none",
            bool(compiler),
            needed=False,
            mend="only for DeepSpeed's fused GPU kernels: apt-get install g++",
        ),
        Check("npm", npm or "none", bool(npm), needed=False, mend="only for optional clips: apt-get install npm"),
    ]


def _libraries() -> list[Check]:
    checks = []
    for name, library in (("EGL", "EGL"), ("GLES", "GLESv2")):
        found = ctypes.util.find_library(library)
        checks.append(Check(name, found or "none", bool(found), mend="apt-get install libegl1 libgles2"))
    try:
        import av

        ffmpeg = ".".join(str(part) for part in av.library_versions["libavcodec"])
    except ImportError as error:
        return [*checks, Check("FFmpeg libraries", str(error), False, mend="pip install -c constraints.txt av")]
    lacking = [name for name in _DECODERS if name not in av.codecs_available]
    return [
        *checks,
        Check("FFmpeg libraries", f"libavcodec {ffmpeg}, in the av wheel", True),
        Check(
            "video decoders",
            f"{', '.join(lacking)} missing" if lacking else ", ".join(_DECODERS),
            not lacking,
            mend="pip install -c constraints.txt av",
        ),
    ]


def _packages() -> list[Check]:
    checks = []
    for name in (
        "ray", "torch", "deepspeed", "webdataset", "decord2", "insightface", "mediapipe", "pyarrow", "mlflow", "transformers", "diffusers", "anny",
    ):  # fmt: skip
        try:
            checks.append(Check(name, importlib.metadata.version(name), True))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, "none", False, mend="pip install --no-deps -r constraints.txt"))
    return checks


def _assets() -> list[Check]:
    from infra import assets

    checks = []
    for name, asset in assets.load_catalog().items():
        state = assets.verify(name)
        checks.append(Check(f"asset {name}", state, state == "ok", asset.needed, f"lato assets fetch {name}"))
    return checks
