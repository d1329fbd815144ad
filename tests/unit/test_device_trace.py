"""Traces of a GPU, read: events as torch's profiler writes them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.worker.backends.speed.trace import summarise, union_length


def event(category: str, name: str, start: float, duration: float) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "pid": 0, "tid": 7}


EAGER = [
    event("cuda_runtime", "cudaLaunchKernel", 0, 5),
    event("cuda_driver", "cuLaunchKernelEx", 6, 5),
    event("cuda_runtime", "cudaMemcpyAsync", 12, 4),
    event("cuda_runtime", "cudaStreamSynchronize", 16, 9),
    event("cuda_runtime", "cudaEventQuery", 26, 1),
    event("kernel", "gemm", 10, 20),
    event("kernel", "triton_norm", 25, 10),  # on another stream: 5 microseconds together with gemm
    event("gpu_memset", "Memset (Device)", 40, 2),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 50, 100),
    {"ph": "M", "cat": "kernel", "name": "process_name"},
    {"ph": "f", "cat": "ac2g", "name": "ac2g", "ts": 10},
]


def test_an_eager_step_is_counted_and_its_kernels_are_united() -> None:
    found = summarise(EAGER, steps=1)
    assert found["busy_seconds"] == pytest.approx(27e-6)
    assert (found["kernels"], found["copies"], found["synchronisations"], found["launches"], found["replays"]) == (2, 2, 1, 3, 0)
    assert found["names"] == {"gemm": 1, "triton_norm": 1}


def test_a_replay_is_one_launch_of_all_its_kernels() -> None:
    events = [event("cuda_runtime", "cudaGraphLaunch", 0, 9), *[event("kernel", "gemm", 10 * n, 8) for n in range(30)]]
    found = summarise(events, steps=1)
    assert (found["kernels"], found["launches"], found["replays"]) == (30, 1, 1)
    assert found["busy_seconds"] == pytest.approx(240e-6)


def test_a_copy_within_the_device_keeps_it_busy() -> None:
    assert summarise([event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 0, 7)], steps=1)["busy_seconds"] == pytest.approx(7e-6)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20))))
def test_a_union_is_what_is_covered_by_any(spans: list[tuple[int, int]]) -> None:
    covered = {point for start, length in spans for point in range(start, start + length)}
    assert union_length([(start, start + length) for start, length in spans]) == len(covered)
