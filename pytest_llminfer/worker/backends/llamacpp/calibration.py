"""What the host can do right now: a matrix product in float32, and a copy."""

from __future__ import annotations

import numpy as np

from pytest_llminfer.worker.backends.host import median_seconds, python_loops_per_second

_SIZE = 1024
_COPY_BYTES = 64 << 20


def measure() -> dict[str, float]:
    """The fields of ``Calibration``, by NumPy: llama.cpp offers no kernels of its own. A copy counts bytes read and written."""
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((_SIZE, _SIZE), np.float32) for _ in range(2))
    product = np.empty_like(left)
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    return {
        "matmul_flops_per_second": 2 * _SIZE**3 / median_seconds(lambda: np.matmul(left, right, out=product)),
        "copy_bytes_per_second": 2 * _COPY_BYTES / median_seconds(lambda: np.copyto(target, source)),
        "python_loops_per_second": python_loops_per_second(),
    }
