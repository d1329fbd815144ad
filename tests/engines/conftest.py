"""The interpreters of real engines. A test that needs one fails where it cannot be made; it is never skipped."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ENVIRONMENTS = runpy.run_path(str(Path(__file__).with_name("environments.py")))


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The path of an interpreter that has vLLM for CPUs."""
    return ENVIRONMENTS["vllm"]()


@pytest.fixture(scope="session")
def llamacpp_python() -> str:
    """The path of an interpreter that has llama-cpp-python with its server, and gguf."""
    return ENVIRONMENTS["llamacpp"]()


@pytest.fixture(scope="session")
def sglang_python() -> str:
    """The path of an interpreter that has SGLang as it runs on a CPU."""
    return ENVIRONMENTS["sglang"]()
