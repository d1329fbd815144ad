"""What SGLang cannot be started with, each told in words before it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.errors import BadInputError, OutOfMemoryError, UnsupportedError
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec
from tests.support.paths import ASSETS


def start(folder: Path, interpreter: str, model: str = "reference", quantization: str = "none", **engine_args: Any) -> Engine:
    spec = EngineSpec("sglang", environment=interpreter, model=model, quantization=quantization)
    return Engine(Launch(spec, Model(model), engine_args, {}, timeout=240, log=folder / "worker.log"))


def test_an_argument_that_the_installed_version_lacks_is_refused(sglang_python: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"'atention_backend'.*Did you mean 'attention_backend'"):
        start(tmp_path, sglang_python, atention_backend="triton")


def test_a_pool_larger_than_memory_is_named(sglang_python: str, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"max_total_tokens=10000000000 was asked for.*memory for a pool of \d+"):
        start(tmp_path, sglang_python, max_total_tokens=10**10, mem_fraction_static=0.05)


def test_quantized_weights_that_it_could_load_and_not_compute_with_are_refused_before_they_are_loaded(
    sglang_python: str, tmp_path: Path
) -> None:
    if "amx_tile" in Path("/proc/cpuinfo").read_text():
        pytest.skip("SGLang has kernels for this processor")
    with pytest.raises(UnsupportedError, match=r"^sglang has no kernels for awq weights on this processor: [^\n]+$"):
        start(tmp_path, sglang_python, str(ASSETS / "awq"), "awq")
