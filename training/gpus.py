"""The kinds of GPU that plans are made for and utilisation is measured against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    names: tuple[str, ...]
    """Parts of the name that its driver gives it, any of them."""
    memory_gb: float
    """Gigabytes (10^9 bytes)."""
    teraflops: float
    """Peak of dense bf16 matrix products."""
    source: str


GPUS: dict[str, Gpu] = {
    "l40s": Gpu(("L40S",), 48.0, 362.05, "NVIDIA L40S data sheet: 48 GB, 362.05 TFLOPS bf16, 733 with sparsity"),
    "l4": Gpu(("L4",), 24.0, 121.0, "NVIDIA L4 data sheet: 24 GB, 242 TFLOPS bf16 with sparsity, half of it without"),
    "rtx4090": Gpu(("4090",), 24.0, 165.2, "NVIDIA Ada GPU architecture, appendix A: 24 GB, 165.2 TFLOPS bf16 with fp32 accumulation"),
    "a100-40": Gpu(("A100-SXM4-40", "A100-PCIE-40"), 40.0, 312.0, "NVIDIA A100 data sheet: 40 GB, 312 TFLOPS bf16"),
    "a100": Gpu(("A100", "A800"), 80.0, 312.0, "NVIDIA A100 data sheet: 80 GB, 312 TFLOPS bf16"),
    "h100": Gpu(("H100", "H800"), 80.0, 989.4, "NVIDIA H100 SXM data sheet: 80 GB, 1,979 TFLOPS bf16 with sparsity, half of it without"),
    "h200": Gpu(("H200",), 141.0, 989.4, "NVIDIA H200 SXM data sheet: 141 GB, 1,979 TFLOPS bf16 with sparsity, half of it without"),
    "b200": Gpu(("B200",), 180.0, 2250.0, "NVIDIA HGX B200 specifications: 180 GB, 4.5 PFLOPS bf16 with sparsity, half of it without"),
}
"""By the name that `lato train plan --gpu` takes. The first whose name fits a device is it: an L40S before an L4."""


def gpu_of(device_name: str) -> Gpu | None:
    """The kind of a device, by the name its driver gives it; None where it is not in the table (an L40 is no L4)."""
    words = device_name.replace("-", " ").split()
    for gpu in GPUS.values():
        if any(name in words or ("-" in name and name in device_name) for name in gpu.names):
            return gpu
    return None
