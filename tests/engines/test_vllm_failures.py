"""vLLM whose core dies, or that cannot be started as asked: each ends in an error that says so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pytest_llminfer.errors import BadInputError, EngineDiedError, OutOfMemoryError
from tests.support.engines.processes import left, members
from tests.support.engines.vllm_engines import MODEL, start


def test_a_killed_engine_core_is_a_death_and_no_endless_wait(vllm_python: str, tmp_path: Path) -> None:
    engine = start(tmp_path, vllm_python)
    try:
        before = members(engine)
        (core,) = (process for process in before if "EngineCore" in " ".join(process.cmdline()))
        core.kill()
        started = time.monotonic()
        with pytest.raises(EngineDiedError, match=rf"EngineCore.*\(process {core.pid}\).* while generating"):
            engine.generate(MODEL.prompts(2), max_tokens=8)
        assert time.monotonic() - started < 30
        assert not left(before)
    finally:
        engine.close()


def test_a_pool_larger_than_memory_says_so(vllm_python: str, tmp_path: Path) -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"(?s)Available memory .* is less than requested memory for kv.*kv_cache_memory_bytes"
    ):
        start(tmp_path, vllm_python, engine_args={"kv_cache_memory_bytes": 1 << 50})


def test_an_unknown_engine_argument_is_refused_with_the_closest_one(vllm_python: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"unknown engine argument 'max_model_length' .* Did you mean 'max_model_len'\?"):
        start(tmp_path, vllm_python, engine_args={"max_model_length": 256})
