"""What the device can do right now: a matrix product in the cell's dtype, and a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.worker.backends.host import median_seconds, python_loops_per_second

if TYPE_CHECKING:
    from collections.abc import Callable

_CUDA_SIZE, _CPU_SIZE = 8192, 1024
_CUDA_COPY_BYTES, _CPU_COPY_BYTES = 2 << 30, 64 << 20
_CUDA_BATCH = 4


def measure(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of ``Calibration``: medians of repeated timings. A copy counts the bytes read and the bytes written."""
    rates = {
        "matmul_flops_per_second": _matmul_flops_per_second(device, dtype),
        "copy_bytes_per_second": _copy_bytes_per_second(device),
        "python_loops_per_second": python_loops_per_second(),
    }
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rates


def _matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    size = _CUDA_SIZE if device.type == "cuda" else _CPU_SIZE
    # Random values: a product of zeros draws less power and runs faster.
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    return 2 * size**3 / _seconds(lambda: torch.mm(left, right, out=product), device)


def _copy_bytes_per_second(device: torch.device) -> float:
    size = min(_CUDA_COPY_BYTES, torch.cuda.mem_get_info(device)[0] // 8) if device.type == "cuda" else _CPU_COPY_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        return median_seconds(action)

    def batch() -> None:
        for _ in range(_CUDA_BATCH):
            action()
        torch.cuda.synchronize(device)

    return median_seconds(batch) / _CUDA_BATCH
