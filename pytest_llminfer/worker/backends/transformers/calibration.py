"""What the device can do right now: a matrix product in the cell's dtype, and a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pytest_llminfer.worker.backends.host import median_seconds, python_loops_per_second

_CUDA_SIZE, _CPU_SIZE = 8192, 1024
_CUDA_COPY_BYTES, _CPU_COPY_BYTES = 2 << 30, 64 << 20
_CUDA_BATCH = 4


@torch.inference_mode()
def measure(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of ``Calibration``: medians of repeated timings. A copy counts the bytes read and the bytes written."""
    cuda = device.type == "cuda"
    size, copy_bytes = (_CUDA_SIZE, _CUDA_COPY_BYTES) if cuda else (_CPU_SIZE, _CPU_COPY_BYTES)
    if cuda:
        copy_bytes = min(copy_bytes, torch.cuda.mem_get_info(device)[0] // 8)
    # Random values: a product of zeros draws less power and runs faster.
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matmul_seconds = _seconds(lambda: torch.mm(left, right, out=product), device)
    copy_seconds = _seconds(lambda: target.copy_(source), device)
    result = {
        "matmul_flops_per_second": 2 * size**3 / matmul_seconds,
        "copy_bytes_per_second": 2 * copy_bytes / copy_seconds,
        "python_loops_per_second": python_loops_per_second(),
    }
    del left, right, product, source, target
    if cuda:
        torch.cuda.empty_cache()
    return result


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        return median_seconds(action)

    def batch() -> None:
        for _ in range(_CUDA_BATCH):
            action()
        torch.cuda.synchronize(device)

    return median_seconds(batch) / _CUDA_BATCH
