"""vLLM that dies, hangs or wants more memory than there is: each ends in an error that says so, and the next request works."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.errors import BadInputError, EngineDiedError, EngineHungError, OutOfMemoryError
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec

MODEL = Model("reference")
POOL = 64 << 20
VARIABLES = {"OMP_NUM_THREADS": "2"}


def launch(folder: Path, python: str, *, tp: int = 1, **engine_args) -> Launch:
    spec = EngineSpec("vllm", environment=python, tp=tp)
    return Launch(spec, MODEL, {"kv_cache_memory_bytes": POOL, **engine_args}, VARIABLES, timeout=240, log=folder / "worker.log")


def members(engine: Engine) -> list[psutil.Process]:
    """Every live process of the engine's process group."""
    leader = os.getpgid(engine.ranks()[0].pid)
    return [process for process in psutil.process_iter() if group(process.pid) == leader]


def group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_killed_rank_is_named_the_next_request_starts_anew_and_a_stopped_one_is_a_hang(vllm_python, tmp_path):
    prompts = MODEL.prompts(4)
    engine = Engine(launch(tmp_path, vllm_python, tp=2))
    try:
        expected = [answer.token_ids for answer in engine.generate(prompts, max_tokens=24)]
        before = members(engine)
        assert len(before) >= 4
        lost = engine.ranks()[1].pid
        threading.Timer(0.5, os.kill, (lost, signal.SIGKILL)).start()
        started = time.monotonic()
        with pytest.raises(EngineDiedError, match=rf"VllmWorker-1 \(process {lost}\) of vllm died.* while generating"):
            engine.generate(prompts, max_tokens=1900, ignore_eos=True)
        assert time.monotonic() - started < 30
        assert not left(before)

        assert [answer.token_ids for answer in engine.generate(prompts, max_tokens=24)] == expected
        assert engine.loads == 2
        replica = engine._replicas[0]
        replica.launch = replace(replica.launch, timeout=6.0)
        before = members(engine)
        os.kill(engine.ranks()[1].pid, signal.SIGSTOP)
        with pytest.raises(EngineHungError, match="said nothing for 6 s during 'generate'"):
            engine.generate(prompts, max_tokens=24)
        assert not left(before)
    finally:
        engine.close()


def test_a_killed_engine_core_is_a_death_and_no_endless_wait(vllm_python, tmp_path):
    engine = Engine(launch(tmp_path, vllm_python))
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


def test_a_pool_larger_than_memory_says_so(vllm_python, tmp_path):
    with pytest.raises(
        OutOfMemoryError, match=r"(?s)Available memory .* is less than requested memory for kv.*kv_cache_memory_bytes"
    ):
        Engine(launch(tmp_path, vllm_python, kv_cache_memory_bytes=1 << 50))


def test_an_unknown_engine_argument_is_refused_with_the_closest_one(vllm_python, tmp_path):
    with pytest.raises(BadInputError, match=r"unknown engine argument 'max_model_length' .* Did you mean 'max_model_len'\?"):
        Engine(launch(tmp_path, vllm_python, max_model_length=256))
