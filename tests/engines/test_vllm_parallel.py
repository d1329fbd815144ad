"""vLLM spread over two ranks, started once: what they answer and hold, and what is said when one of them dies or hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.errors import EngineDiedError, EngineHungError
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.verdict import Outcome
from tests.support.engines import vllm_engines
from tests.support.engines.processes import left, members
from tests.support.engines.vllm_engines import NORM, POOL, SHAPE, outcome, start, tokens
from tests.support.faults import ranks as rank_faults
from tests.support.paths import PROBES as FOLDER

PROBES = FOLDER / "vllm_model.py"
folder, prompts, reference = vllm_engines.folder, vllm_engines.prompts, vllm_engines.reference


@pytest.fixture(scope="module")
def engine(folder: Path, vllm_python: str) -> Iterator[Engine]:
    engine = start(folder, vllm_python, tp=2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def answers(engine: Engine, prompts: list[list[int]]) -> list[Generation]:
    """What the ranks answer before anything is done to them."""
    return engine.generate(prompts, max_tokens=120, logprobs=8)


def test_two_ranks_answer_as_one_and_hold_half_each(engine: Engine, answers: list[Generation], reference: Any) -> None:
    assert outcome(answers, reference[0]) is Outcome.PASS
    first, second = engine.ranks()
    assert first.pid != second.pid
    assert [(rank.tp_rank, rank.pp_rank, rank.device) for rank in (first, second)] == [(0, 0, "cpu"), (1, 0, "cpu")]
    norms = sum(weight.elements for weight in SHAPE.parameters() if "norm" in weight.name)
    share = 2 * (norms + (SHAPE.parameter_count - norms) // 2)
    assert first.weights_bytes == second.weights_bytes == share == engine.memory().weights_bytes
    assert engine.info.device_count == 2
    pool, a_token = engine.kv_pool(), SHAPE.kv_bytes_per_token("bf16")
    assert pool.bytes_per_token == a_token
    # POOL is what a rank may hold: half of each token.
    assert pool.num_blocks + 1 == 2 * (POOL // (a_token * pool.block_size))
    assert pool.stored_bytes == 2 * POOL
    assert engine.settings()["resolved"]["tensor_parallel_size"] == 2


def test_what_is_wrong_in_a_rank_is_seen(engine: Engine, answers: list[Generation], prompts: list[list[int]]) -> None:
    engine.run(f"{PROBES}::scale", name=NORM, factor=-1.0)
    assert outcome(engine.generate(prompts, max_tokens=120, logprobs=8), answers) is Outcome.FAIL
    assert rank_faults.check(engine).outcome is Outcome.PASS
    engine.run(f"{rank_faults.__file__}::store_otherwise")
    assert rank_faults.check(engine).details == rank_faults.SAID


def test_a_killed_rank_is_named_the_next_request_starts_anew_and_a_stopped_one_is_a_hang(
    engine: Engine, answers: list[Generation], prompts: list[list[int]]
) -> None:
    before = members(engine)
    assert len(before) >= 4
    lost = engine.ranks()[1].pid
    threading.Timer(0.5, os.kill, (lost, signal.SIGKILL)).start()
    started = time.monotonic()
    with pytest.raises(EngineDiedError, match=rf"VllmWorker-1 \(process {lost}\) of vllm died.* while generating"):
        engine.generate(prompts, max_tokens=1900, ignore_eos=True)
    assert time.monotonic() - started < 30
    assert not left(before)

    # The new ranks have the model's own weights.
    assert tokens(engine.generate(prompts, max_tokens=120, logprobs=8)) == tokens(answers)
    assert engine.loads == 2
    replica = engine._replicas[0]
    replica.launch = replace(replica.launch, timeout=6.0)
    before = members(engine)
    os.kill(engine.ranks()[1].pid, signal.SIGSTOP)
    with pytest.raises(EngineHungError, match="said nothing for 6 s during 'generate'"):
        engine.generate(prompts, max_tokens=24)
    assert not left(before)
