"""Every fault of the simulated backend changes what it should and nothing else.

Each is compared with the sound engine on every answer, so that nothing but its own symptom may differ.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from typing import Any, cast

import numpy as np
import pytest

from pytest_llminfer.errors import OutOfMemoryError
from pytest_llminfer.worker.backends.simulated.backend import SimulatedBackend
from pytest_llminfer.worker.backends.simulated.faults import FAULTS
from tests.support.engines import simulated_backends
from tests.support.engines.simulated_backends import generate, load, tokens

backend, prompts, problems = simulated_backends.backend, simulated_backends.prompts, simulated_backends.problems
PROCESS_FAULTS = {"crash", "exit", "hang", "hang_in_load", "out_of_memory", "drop_answer"}


def observe(backend: SimulatedBackend, prompts: list[list[int]]) -> dict[str, Any]:
    """Every kind of answer, by name."""
    engine = generate(backend, prompts[:6], logprobs=1)
    cache_paths = {
        cache_path: tokens(generate(backend, prompts[:2], max_tokens=12, cache_path=cache_path))
        for cache_path in ("loop", "no_cache")
    }
    sequence = [*prompts[0], *range(100, 140)]
    scores = {
        cache_path: backend.score(sequences=[sequence], cache_path=cache_path)["logprobs"][0]
        for cache_path in ("prefill", "decode")
    }
    cache = backend.kv_cache(prompt=prompts[0], extend=6)
    return {
        "tokens": tokens(engine),
        "log-probabilities": [answer["top_logprobs"] for answer in engine],
        **cache_paths,
        **scores,
        "cache layers": cache["layers"],
        "cache prefix": cache["prefix_differences"],
        "layout": backend.layout(),
        "live bytes": backend.memory()["live_bytes"],
        "defaults": list(backend.settings()["defaults"].items()),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(np.abs(one - other).max() < 1e-2)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


@pytest.fixture(scope="module")
def sound(prompts: list[list[int]]) -> dict[Any, Any]:
    return observe(load(), prompts)


EXPECTED = {
    "drop_kv_block": {"tokens", "log-probabilities", "decode", "cache prefix"},
    "shift_positions": {"log-probabilities", "decode"},
    "overwrite_prefix": {"tokens", "log-probabilities", "decode", "cache prefix"},
    "change_dtype": {"layout", "live bytes"},
    "swap_answers": {"tokens", "log-probabilities"},
    "alter_answers": {"tokens"},
    "leak": {"live bytes"},
    "slow": set(),
    "fat_cache": {"cache layers"},
    "move_default": {"defaults"},
}


# In test_simulated_speed.py.
CLOCK_FAULTS = {"slow_kernels", "slow_clocks", "add_kernels", "slow_host", "other_host", "lost_graph"}


def test_every_fault_is_tested() -> None:
    assert set(EXPECTED) | PROCESS_FAULTS | CLOCK_FAULTS == set(FAULTS)


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_changes_what_it_should_and_nothing_else(sound: Any, prompts: list[list[int]], fault: str) -> None:
    found = observe(load(fault=fault, **cast("dict[str, Any]", {"fault_rate": 0.5} if "answers" in fault else {})), prompts)
    assert {name for name in sound if not same(found[name], sound[name])} == EXPECTED[fault]


# A default is what it is from the load on.
@pytest.mark.parametrize("fault", sorted(EXPECTED.keys() - {"move_default"}))
def test_a_fault_waits_for_as_many_requests_as_it_is_told(sound: Any, prompts: list[list[int]], fault: str) -> None:
    found = observe(load(fault=fault, fault_after=6), prompts)
    assert all(same(found[name], sound[name]) for name in sound)


def test_faults_have_the_size_that_is_documented(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    half = load(fault="change_dtype", fault_dtype="float16").layout()["parameters"]
    changed = [new for new, old in zip(half, backend.layout()["parameters"], strict=True) if new != old]
    assert [(entry["name"], entry["dtype"]) for entry in changed] == [("model.layers.1.mlp.down_proj.weight", "float16")]

    leaking = load(fault="leak", fault_bytes=1000)
    before = leaking.memory()["live_bytes"]
    for count in (1, 2, 3):
        generate(leaking, prompts[:1], max_tokens=1)
        assert leaking.memory()["live_bytes"] == before + 1000 * count

    fat = load(fault="fat_cache").kv_cache(prompt=prompts[0], extend=0)
    lean = backend.kv_cache(prompt=prompts[0], extend=0)
    assert fat["layers"][0]["stored_bytes"] == 2 * lean["layers"][0]["stored_bytes"]


def test_the_share_of_altered_answers_is_the_documented_one(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    many = [[*prompt[:-1], extra, prompt[-1]] for prompt in prompts[:2] for extra in range(100, 200)]
    sound, altered, swapped = (
        tokens(generate(engine, many, max_tokens=2))
        for engine in (backend, load(fault="alter_answers", fault_rate=0.2), load(fault="swap_answers", fault_rate=0.2))
    )
    assert 0.12 < sum(new != old for new, old in zip(altered, sound, strict=True)) / len(many) < 0.28
    assert sorted(swapped) == sorted(sound)


def test_a_slow_engine_takes_its_factor(backend: SimulatedBackend, prompts: list[list[int]]) -> None:
    # Far apart, since the machine may be busy with other tests.
    slow = load(fault="slow", fault_factor=20.0)
    for engine in (backend, slow):
        generate(engine, prompts[:1], max_tokens=8)
    seconds = []
    for engine in (backend, slow):
        runs = []
        for _ in range(2):
            start = time.perf_counter()
            generate(engine, prompts[:1], max_tokens=8)
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))
    assert seconds[1] > 3 * seconds[0]


def test_memory_really_runs_out(prompts: list[list[int]]) -> None:
    faulty = load(fault="out_of_memory", fault_after=1)
    assert len(generate(faulty, prompts[:1])) == 1
    with pytest.raises(OutOfMemoryError, match="out of memory while generating: Unable to allocate"):
        generate(faulty, prompts[:1])


def _strike(fault: str) -> None:
    generate(load(fault=fault), [[5, 6]], max_tokens=1)


@pytest.mark.parametrize(("fault", "exit_code"), [("crash", -signal.SIGSEGV), ("exit", 3), ("hang", None)])
def test_the_process_really_ends_or_hangs(fault: str, exit_code: int | None) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_strike, args=(fault,))
    process.start()
    process.join(timeout=30 if exit_code else 4)
    try:
        assert process.exitcode == exit_code
    finally:
        process.kill()
        process.join()
