"""The host machine of a worker: its processor's name, how many threads to use, and how fast its interpreter runs."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.worker.protocol.frames import ACCELERATOR, PROCESSOR

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOPS = 200_000
_LEAST_TIMES = 3


def processor_name() -> str:
    """The processor's exact name, as the process that started this worker has read it."""
    return os.environ.get(PROCESSOR) or platform.processor() or platform.machine()


def accelerator_name() -> str:
    """The exact name of this worker's first accelerator; empty where it has none."""
    return os.environ.get(ACCELERATOR, "")


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_bytes() -> int:
    """Memory that can be had without swapping; 0 where the kernel does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def median_seconds(action: Callable[[], object], *, budget_seconds: float = 0.3, most: int = 30) -> float:
    """The median time of ``action``, repeated for about ``budget_seconds`` after one run that does not count."""
    action()
    times: list[float] = []
    end = time.perf_counter() + budget_seconds
    while len(times) < _LEAST_TIMES or (time.perf_counter() < end and len(times) < most):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def mean_seconds(step: Callable[[], object], *, budget_seconds: float = 0.1, least: int = 5, warm_up: int = 3) -> float:
    """Mean seconds of ``step`` over about ``budget_seconds`` and ``least`` steps, after ``warm_up`` steps that do not count.

    The mean, as of the work beside which it is measured: what slows a share of the time slows both.
    """
    for _ in range(warm_up):
        step()
    start = now = time.perf_counter()
    done = 0
    while done < least or now - start < budget_seconds:
        step()
        done += 1
        now = time.perf_counter()
    return (now - start) / done


def python_loops_per_second() -> float:
    """Turns of a fixed interpreter loop: what bounds a small model, whose kernels are shorter than their calls."""

    def loop() -> int:
        total = 0
        for number in range(_LOOPS):
            total += number & 3
        return total

    return _LOOPS / median_seconds(loop, budget_seconds=0.2)
