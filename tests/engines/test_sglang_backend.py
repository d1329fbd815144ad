"""The SGLang backend on the reference model, with the real engine on a CPU, against transformers in the same dtype."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.errors import BadInputError, EngineDiedError, EngineError, OutOfMemoryError, UnsupportedError
from pytest_llminfer.families.execution_modes.observe import ExecutionModes
from pytest_llminfer.families.execution_modes.prefix_answers import PrefixAnswers
from pytest_llminfer.families.execution_modes.prefixes import check_prefix_hits
from pytest_llminfer.families.execution_modes.unrounded import Unrounded
from pytest_llminfer.families.kv_cache.pool import check_kv_pool
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.models.model import Model
from pytest_llminfer.observations.generation import Generation, Sampling
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.engines import beside as of_the_tests
from tests.support.faults import ranks as rank_faults
from tests.support.paths import PROBES as FOLDER
from tests.support.present import present

beside = of_the_tests.beside
MODEL = Model("reference")
MAX_TOKENS, TOP = 48, 20
POOL_TOKENS = 4096
BYTES_PER_TOKEN = 2 * 4 * 2 * 64 * 2
WEIGHTS_BYTES = 7_344_640
PROBES = FOLDER / "sglang_model.py"


def start(folder: Path, cell: str, interpreter: str = "", **engine_args: Any) -> Engine:
    spec = EngineSpec.parse(f"{cell}@{interpreter}" if interpreter else cell)
    return Engine(Launch(spec, MODEL, engine_args, {}, timeout=240, log=folder / f"{cell}.log"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sglang")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return MODEL.prompts(6)


@pytest.fixture(scope="module")
def reference(folder: Path, prompts: list[list[int]]) -> dict[Any, Any]:
    """What transformers answers and scores, in bf16."""
    engine = start(folder, "transformers-bf16")
    answers = engine.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP)
    sequences = [[*prompt, *answer.token_ids] for prompt, answer in zip(prompts, answers, strict=True)]
    scores = engine.score(sequences)
    engine.close()
    return {"answers": answers, "sequences": sequences, "scores": scores}


@pytest.fixture(scope="module")
def single(folder: Path, sglang_python: str) -> Iterator[Engine]:
    engine = start(folder, "sglang-bf16", sglang_python, max_total_tokens=POOL_TOKENS)
    yield engine
    engine.close()


def same_tokens(candidate: list[Generation], reference: Any) -> Verdict:
    return check_same_greedy_tokens(candidate=candidate, reference=reference, dtype="bf16", claim="the tokens are the same")


def test_the_loaded_model_is_reported(single: Engine) -> None:
    info = single.info
    assert (info.dtype, info.kv_dtype, info.device, info.device_count, info.end_token_ids) == ("bf16", "bf16", "cpu", 1, (2,))
    assert info.device_name
    assert {"engine", "sglang", "torch", "python"} <= set(info.versions)
    assert set(info.load_seconds) == {"import", "load"}


def test_tokens_are_those_of_transformers(single: Engine, prompts: list[list[int]], reference: Any) -> None:
    answers = single.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP)
    verdict = same_tokens(answers, reference["answers"])
    assert verdict.outcome is Outcome.PASS, str(verdict)
    for answer in answers:
        assert present(answer.top_ids).shape == present(answer.top_logprobs).shape == (len(answer.token_ids), TOP)
        assert (present(answer.top_ids).dtype, present(answer.top_logprobs).dtype) == (np.dtype(np.int32), np.dtype(np.float32))
        np.testing.assert_array_equal(present(answer.top_ids)[:, 0], answer.token_ids)


def test_a_wrong_weight_is_seen_in_the_tokens(single: Engine, prompts: list[list[int]], reference: Any) -> None:
    probe = f"{PROBES}::scale"
    right = single.run(probe, factor=1.0)
    assert single.run(probe, factor=4.0) == 4 * right
    forget = single.score(reference["sequences"][:1])  # the prefixes that the right weights computed
    wrong = single.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP)
    assert single.run(probe, factor=0.25) == right
    again = single.score(reference["sequences"][:1])
    assert same_tokens(wrong, reference["answers"]).outcome is Outcome.FAIL
    assert np.abs(forget[0] - again[0]).max() > 1
    with pytest.raises(EngineError, match=r"(?s)fails in .*KeyError: 'no such layer'"):
        single.run(f"{PROBES}::fails")


def test_a_stale_prefix_is_caught_by_its_counts_and_by_its_answers(single: Engine, beside: Callable[..., Engine]) -> None:
    unrounded = Unrounded(single, beside)
    modes = ExecutionModes.ask(single, unrounded)

    def outcomes() -> Any:
        found = PrefixAnswers.ask(single)
        distributions = found.of_changed(modes).judged("the answers are the same")
        return check_prefix_hits(found=found.cached, block=single.kv_pool().block_size), distributions

    assert [verdict.outcome for verdict in outcomes()] == [Outcome.PASS, Outcome.PASS]
    probe = f"{PROBES}::ignore_one_token"
    single.run(probe, on=True)
    counts, distributions = outcomes()
    single.run(probe, on=False)
    single.reset_prefix_cache()
    assert counts.outcome is Outcome.FAIL
    assert "with token 95 changed: 96 tokens found instead of 95" in str(counts)
    assert distributions.outcome is Outcome.FAIL, str(distributions)


def test_answers_come_in_the_order_of_the_prompts(single: Engine, prompts: list[list[int]]) -> None:
    order = [4, 0, 5, 2, 1, 3]
    answers = single.generate(prompts, max_tokens=8)
    shuffled = single.generate([prompts[number] for number in order], max_tokens=8)
    assert len({answer.token_ids for answer in answers}) > 4
    assert [answer.token_ids for answer in shuffled] == [answers[number].token_ids for number in order]


def test_answers_end_as_asked(single: Engine, prompts: list[list[int]]) -> None:
    answers = single.generate(prompts, max_tokens=100)
    for answer in answers:
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == 2 else "length")
        assert 2 not in answer.token_ids[:-1]
    stopped = next(answer for answer in answers if answer.finish_reason == "stop")
    prompt = prompts[answers.index(stopped)]
    (going,) = single.generate([prompt], max_tokens=100, ignore_eos=True)
    assert (going.finish_reason, len(going.token_ids)) == ("length", 100)
    assert going.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    third = stopped.token_ids[2]
    (cut,) = single.generate([prompt], Sampling(max_tokens=100, stop_token_ids=(third,), ignore_eos=True))
    assert (cut.finish_reason, cut.token_ids) == ("stop", stopped.token_ids[: stopped.token_ids.index(third) + 1])


def test_the_prefix_cache_serves_a_prompt_the_second_time(single: Engine) -> None:
    prompt = list(range(300, 400))
    first, second = (single.generate([prompt], max_tokens=4)[0] for _ in range(2))
    assert (first.cached_tokens, second.cached_tokens) == (0, len(prompt) - 1)
    assert first.token_ids == second.token_ids


def test_without_a_cache_the_tokens_are_the_same(single: Engine, prompts: list[list[int]]) -> None:
    cached = single.generate(prompts[:3], max_tokens=12, logprobs=TOP)
    anew = single.generate(prompts[:3], max_tokens=12, logprobs=TOP, cache_path="no_cache")
    assert [answer.cached_tokens for answer in anew] == [0, 0, 0]
    verdict = same_tokens(cached, anew)
    assert verdict.outcome is Outcome.PASS, str(verdict)


def test_scores_are_those_of_transformers(single: Engine, reference: Any) -> None:
    for ours, theirs in zip(single.score(reference["sequences"]), reference["scores"], strict=True):
        assert (ours.dtype, ours.shape) == (np.dtype(np.float32), theirs.shape)
        assert np.abs(ours - theirs).max() < 1.5
        assert np.abs(ours - theirs).mean() < 0.1
        # One position off is the mistake that this would hide otherwise.
        assert np.abs(ours[1:] - theirs[:-1]).mean() > 1


def test_the_pool_is_what_was_asked_for(single: Engine) -> None:
    pool = single.kv_pool()
    assert (pool.capacity_tokens, pool.block_size, pool.dtype) == (POOL_TOKENS, 1, "bfloat16")
    assert (pool.bytes_per_token, pool.stored_bytes) == (BYTES_PER_TOKEN, (POOL_TOKENS + 1) * BYTES_PER_TOKEN)
    verdict = check_kv_pool(pool=pool, layers=4, kv_heads=2, head_dim=64, dtype="bf16")
    assert verdict.outcome is Outcome.PASS, str(verdict)


def test_weights_are_counted_alike_everywhere(single: Engine) -> None:
    layout, memory, (rank,) = single.layout(), single.memory(), single.ranks()
    assert sum(parameter.stored_bytes for parameter in layout.parameters) == WEIGHTS_BYTES
    assert memory.weights_bytes == rank.weights_bytes == WEIGHTS_BYTES
    assert memory.kv_pool_bytes == single.kv_pool().stored_bytes
    assert memory.live_bytes >= WEIGHTS_BYTES + memory.kv_pool_bytes
    assert {parameter.dtype for parameter in layout.parameters} == {"bfloat16"}
    assert (rank.name, rank.device, rank.tp_rank) == ("sglang::scheduler", "cpu", 0)


def test_settings_are_plain_and_name_no_place(single: Engine) -> None:
    settings = single.settings()
    resolved, defaults = settings["resolved"], settings["defaults"]
    assert (resolved["max_total_tokens"], resolved["tp_size"], resolved["attention_backend"]) == (POOL_TOKENS, 1, "torch_native")
    assert (resolved["context_length"], resolved["dtype"], resolved["random_seed"]) == (2048, "bfloat16", 0)
    assert defaults["max_total_tokens"] is None
    assert len(defaults) > 100
    assert not {"model_path", "port", "nccl_port", "api_key"} & (set(resolved) | set(defaults))
    assert MODEL.path not in str(settings)


def test_the_device_is_measured(single: Engine) -> None:
    rates = single.calibrate()
    assert min(rates.matmul_flops_per_second, rates.copy_bytes_per_second, rates.python_loops_per_second) > 1e6


def test_what_it_cannot_do_is_refused_in_words(single: Engine, prompts: list[list[int]]) -> None:
    with pytest.raises(UnsupportedError, match="cannot answer 'generate:loop'"):
        single.generate(prompts[:1], cache_path="loop")
    with pytest.raises(BadInputError, match="token id 1024; the vocabulary has the ids 0 to 1023"):
        single.generate([[5, 1024]])
    with pytest.raises(BadInputError, match="2045 tokens and 64 may follow"):
        single.generate([[5] * 2045])


def test_two_tensor_parallel_ranks_answer_as_one(
    folder: Path, sglang_python: str, prompts: list[list[int]], reference: Any
) -> None:
    engine = start(folder, "sglang-bf16-tp2", sglang_python)
    try:
        ranks = engine.ranks()
        verdict = same_tokens(engine.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP), reference["answers"])
        pool = engine.kv_pool()
        anew = engine.generate(prompts[:1], max_tokens=4, cache_path="no_cache")
        stored = rank_faults.check(engine)
        engine.run(f"{rank_faults.__file__}::store_otherwise")
        faulty = rank_faults.check(engine)
    finally:
        engine.close()
    assert verdict.outcome is Outcome.PASS, str(verdict)
    assert (stored.outcome, stored.details) == (Outcome.PASS, ())
    assert faulty.details == rank_faults.SAID
    assert [(rank.name, rank.tp_rank) for rank in ranks] == [("sglang::scheduler_TP0", 0), ("sglang::scheduler_TP1", 1)]
    assert all(WEIGHTS_BYTES / 2 <= rank.weights_bytes < 0.6 * WEIGHTS_BYTES for rank in ranks)
    assert pool.bytes_per_token == BYTES_PER_TOKEN
    assert anew[0].token_ids == reference["answers"][0].token_ids[:4]


def test_two_native_replicas_answer_in_order(folder: Path, sglang_python: str, prompts: list[list[int]], reference: Any) -> None:
    engine = start(folder, "sglang-bf16-dp2-native", sglang_python)
    try:
        ranks = engine.ranks()
        verdict = same_tokens(engine.generate(prompts, max_tokens=MAX_TOKENS, logprobs=TOP), reference["answers"])
    finally:
        engine.close()
    assert verdict.outcome is Outcome.PASS, str(verdict)
    assert [(rank.name, rank.dp_rank) for rank in ranks] == [("sglang::scheduler_DP0", 0), ("sglang::scheduler_DP1", 1)]
    assert [rank.weights_bytes for rank in ranks] == [WEIGHTS_BYTES] * 2


def test_a_killed_scheduler_is_told_and_the_next_request_starts_anew(single: Engine, prompts: list[list[int]]) -> None:
    (rank,) = single.ranks()
    family = psutil.Process(psutil.Process(rank.pid).ppid()).children(recursive=True)
    threading.Timer(1, os.kill, (rank.pid, signal.SIGKILL)).start()
    begun = time.monotonic()
    with pytest.raises(EngineDiedError, match=rf"sglang::scheduler \(pid {rank.pid}, signal 9\) of sglang ended while generating"):
        single.generate([prompts[0]] * 200, max_tokens=1500, ignore_eos=True)
    assert time.monotonic() - begun < 30
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert single.generate(prompts[:1], max_tokens=4)[0].token_ids
    assert single.loads == 2


def test_a_scheduler_that_fails_says_why(single: Engine, prompts: list[list[int]]) -> None:
    single.run(f"{PROBES}::run_out_of_memory")
    begun = time.monotonic()
    with pytest.raises(OutOfMemoryError, match=r"while generating for 1 prompts: .*tried to allocate 20.00 GiB"):
        single.generate(prompts[:1])
    with pytest.raises(EngineDiedError, match=r"the engine has ended before: out of memory"):
        single.generate(prompts[:1])
    assert time.monotonic() - begun < 30
