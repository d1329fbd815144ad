"""What the processor of the machine that runs the tests has."""

from __future__ import annotations

from pathlib import Path

AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
"""Whether vLLM loads its kernels for AVX-512: those for AVX2 alone have no product with 4-bit weights (``cpu_gemm_wna16``)."""
