"""Environment variables that vLLM and its processes read. What the user has set stays as it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.worker.backends.host import available_cores

if TYPE_CHECKING:
    from collections.abc import MutableMapping

SHIM = Path(__file__).resolve().parent / "shim"
"""The only folder of this package that vLLM's processes get on their path."""

_ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    # Otherwise a sampling kernel is compiled for minutes when a GPU sees it for the first time.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


def set_before_import(environment: MutableMapping[str, str], *, local: bool) -> None:
    """What must be there before vllm is imported. local: the model is a folder, so nothing needs to be fetched."""
    for name, value in _ALWAYS.items():
        environment.setdefault(name, value)
    if local:
        environment.setdefault("HF_HUB_OFFLINE", "1")
    paths = [str(SHIM), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if str(SHIM) not in sys.path:
        sys.path.append(str(SHIM))


def set_for_gpu(environment: MutableMapping[str, str]) -> None:
    """A forked process cannot use CUDA once its parent has."""
    environment.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def set_for_cpu(environment: MutableMapping[str, str], *, ranks: int, eager: bool = False) -> None:
    """Which cores the OpenMP threads of each rank may use: more threads than cores spin, and crawl.

    eager: vLLM compiles a counting step of log-probabilities even then, which takes a C++ compiler 20 seconds.
    """
    if eager:
        environment.setdefault("TORCHDYNAMO_DISABLE", "1")
    if environment.get("VLLM_CPU_OMP_THREADS_BIND"):
        return
    if ranks == 1:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        return
    cores = usable_cores()
    share = min(len(cores) // ranks, int(environment.get("OMP_NUM_THREADS") or len(cores)))
    if share:
        groups = [cores[rank * share : (rank + 1) * share] for rank in range(ranks)]
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, group)) for group in groups)
    else:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        environment["OMP_NUM_THREADS"] = "1"


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(available_cores()))
