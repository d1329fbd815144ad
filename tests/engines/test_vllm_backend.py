"""The vLLM backend on the reference model, with one engine, against transformers in the same dtype."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import BadInputError, EngineError, UnsupportedError
from pytest_llminfer.families.execution_modes.observe import ExecutionModes
from pytest_llminfer.families.execution_modes.preemption import check_preempted
from pytest_llminfer.families.execution_modes.prefix_answers import PrefixAnswers
from pytest_llminfer.families.execution_modes.prefixes import check_prefix_hits
from pytest_llminfer.families.execution_modes.resynchronised import check_resynchronised_tokens
from pytest_llminfer.families.execution_modes.unrounded import Unrounded
from pytest_llminfer.families.execution_modes.variants import KVVariants
from pytest_llminfer.families.kv_cache.pool import maximum_concurrency
from pytest_llminfer.families.layout.check import check_layout
from pytest_llminfer.families.memory.check import check_no_growth, check_weights, predict_weights
from pytest_llminfer.families.memory.profile import check_profile, pinned_capacity, profile_lines
from pytest_llminfer.families.tokens.observe import Greedy
from pytest_llminfer.observations.generation import Generation, Sampling
from pytest_llminfer.verdict import Outcome
from suites.test_execution_modes import VARIANTS
from tests.support.engines import beside as of_the_tests
from tests.support.engines import vllm_engines
from tests.support.engines.vllm_engines import (
    MODEL,
    NORM,
    POOL,
    SHAPE,
    fp32_flops_per_second,
    outcome,
    start,
    tokens,
)
from tests.support.paths import PROBES as FOLDER
from tests.support.present import present

folder, prompts, reference = vllm_engines.folder, vllm_engines.prompts, vllm_engines.reference
beside = of_the_tests.beside
PROBES = FOLDER / "vllm_model.py"

AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text()
"""Whether vLLM hands linears to oneDNN and computes in bf16; on other x86 processors bf16 is emulated, many times slower."""


@pytest.fixture(scope="module")
def told() -> list[Any]:
    return []


@pytest.fixture(scope="module")
def engine(folder: Path, vllm_python: str, told: Any) -> Iterator[Engine]:
    engine = start(folder, vllm_python, progress=lambda *step: told.append(step))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def answers(engine: Engine, prompts: list[list[int]]) -> list[Generation]:
    return engine.generate(prompts, max_tokens=120, logprobs=8)


def test_tokens_are_those_of_transformers(answers: list[Generation], reference: Any) -> None:
    assert outcome(answers, reference[0]) is Outcome.PASS
    assert {answer.finish_reason for answer in answers} == {"stop"}
    assert all(answer.token_ids[-1] == 2 for answer in answers)


def test_log_probabilities_are_sorted_and_those_of_transformers(answers: list[Generation], reference: Any) -> None:
    for answer, other in zip(answers, reference[0], strict=True):
        assert present(answer.top_ids).shape == present(answer.top_logprobs).shape == (len(answer.token_ids), 8)
        assert (present(answer.top_ids).dtype, present(answer.top_logprobs).dtype) == (np.dtype(np.int32), np.dtype(np.float32))
        assert (np.diff(present(answer.top_logprobs)) <= 0).all()
        np.testing.assert_array_equal(present(answer.top_ids)[:, 0], answer.token_ids)
        if answer.token_ids == other.token_ids:
            np.testing.assert_allclose(present(answer.top_logprobs)[:, 0], present(other.top_logprobs)[:, 0], atol=0.25)


def test_without_the_cache_the_tokens_are_the_same_and_nothing_was_cached(engine: Engine, prompts: list[list[int]]) -> None:
    for _ in range(2):
        anew = engine.generate(prompts[:4], max_tokens=24, logprobs=8, cache_path="no_cache")
        assert [answer.cached_tokens for answer in anew] == [0] * 4
    cut = engine.generate(prompts[:4], max_tokens=24, logprobs=8)
    assert outcome(anew, cut) is Outcome.PASS
    assert [present(answer.top_ids).shape for answer in anew] == [present(answer.top_ids).shape for answer in cut]


def test_cached_tokens_are_told(engine: Engine, prompts: list[list[int]]) -> None:
    prompt = (prompts[0] * 4)[:300]
    first, second = (engine.generate([prompt], max_tokens=2)[0].cached_tokens for _ in range(2))
    assert (first, second) == (0, 256)


def test_answers_come_back_in_the_order_of_their_prompts(engine: Engine, prompts: list[list[int]], told: Any) -> None:
    shuffled = [prompts[number] for number in (5, 1, 7, 0, 3)]
    told.clear()
    together = engine.generate(shuffled, max_tokens=32)
    assert told[-1] == ("generating", 5, 5)
    assert tokens(together) == [tokens(engine.generate([prompt], max_tokens=32))[0] for prompt in shuffled]
    assert len(set(tokens(together))) == 5


def test_generation_ends_at_an_end_token_or_at_the_limit(
    engine: Engine, prompts: list[list[int]], answers: list[Generation]
) -> None:
    full = answers[0].token_ids
    (cut,) = engine.generate(prompts[:1], max_tokens=3)
    assert (cut.token_ids, cut.finish_reason) == (full[:3], "length")
    (teacher_forced,) = engine.generate(prompts[:1], max_tokens=len(full) + 5, ignore_eos=True)
    assert (len(teacher_forced.token_ids), teacher_forced.finish_reason) == (len(full) + 5, "length")
    sampling = Sampling(max_tokens=50, stop_token_ids=(full[4],), ignore_eos=True)
    (stopped,) = engine.generate(prompts[:1], sampling)
    assert (stopped.token_ids, stopped.finish_reason) == (full[: full.index(full[4]) + 1], "stop")


def test_sampling_follows_its_seed(engine: Engine, prompts: list[list[int]]) -> None:
    first, again, other = (
        tokens(engine.generate(prompts[:3], Sampling(max_tokens=48, temperature=2.0, top_p=0.999, seed=seed))) for seed in (1, 1, 2)
    )
    assert first == again != other
    only = Sampling(max_tokens=24, temperature=1.0, top_k=1)
    assert tokens(engine.generate(prompts[:1], only)) == tokens(engine.generate(prompts[:1], max_tokens=24))


def test_requests_that_cannot_be_answered_are_refused(engine: Engine, prompts: list[list[int]]) -> None:
    with pytest.raises(UnsupportedError, match="hand-written loop"):
        engine._replicas[0].ask(
            "generate", {"prompts": prompts[:1], "sampling": Sampling(max_tokens=2).to_dict(), "cache_path": "loop"}
        )
    with pytest.raises(BadInputError, match=r"21 log-probabilities a step .* max_logprobs=20"):
        engine.generate(prompts[:1], max_tokens=2, logprobs=21)
    with pytest.raises(BadInputError, match=r"temperature must be in \[0, 2\], got 4.0"):
        engine.generate(prompts[:1], Sampling(max_tokens=2, temperature=4.0))
    with pytest.raises(BadInputError, match="2048 positions"):
        engine.generate([[5] * 2040], max_tokens=9)
    assert not {"kv_cache", "generate:loop"} & set(engine.info.capabilities)


def test_scores_are_as_far_from_fp32_as_those_of_transformers(engine: Engine, prompts: list[list[int]], reference: Any) -> None:
    """Rounding is that of the processor, which may have no bf16 of its own: fp32 tells how much of it there is here."""
    found = vllm_engines.beside_fp32(engine, prompts, reference)
    assert found.pop("scores of the tokens beside").outcome is Outcome.FAIL
    assert Outcome.FAIL not in {verdict.outcome for verdict in found.values()}, "\n".join(map(str, found.values()))


def test_every_parameter_is_stored_as_the_model_implies(engine: Engine) -> None:
    layout = engine.layout()
    verdict = check_layout(
        parameters=layout.parameters, shape=SHAPE, dtype="bf16", quantization="none", tied=layout.tied, engine=profile("vllm")
    )
    assert verdict.outcome is Outcome.PASS, verdict.details
    packings = {parameter.name.split(".")[-2]: parameter.packing for parameter in layout.parameters}
    linears = dict.fromkeys(("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), "onednn" if AVX512 else "")
    assert packings == linears | dict.fromkeys(
        ("embed_tokens", "input_layernorm", "post_attention_layernorm", "norm", "lm_head"), ""
    )


def test_memory_is_that_of_weights_and_pool_and_does_not_grow(engine: Engine, prompts: list[list[int]]) -> None:
    stored = predict_weights(shape=SHAPE, dtype="bf16", quantization="none", engine=profile("vllm"))
    report = engine.memory(reset_peak=True)
    assert check_weights(report=report, predicted=stored).outcome is Outcome.PASS
    assert report.weights_bytes == sum(parameter.stored_bytes for parameter in engine.layout().parameters) == stored
    assert report.kv_pool_bytes == engine.kv_pool().stored_bytes
    assert 0 <= report.live_bytes - stored - report.kv_pool_bytes - report.buffers_bytes < 8 << 20
    lives = []
    for _ in range(6):
        engine.generate(prompts[:2], max_tokens=8)
        lives.append(engine.memory().live_bytes)
    assert check_no_growth(live_bytes=lives).outcome is Outcome.PASS
    assert engine.memory().run_peak_bytes > report.live_bytes


def test_the_pool_is_what_was_asked_for(engine: Engine) -> None:
    pool = engine.kv_pool()
    a_token = SHAPE.kv_bytes_per_token("bf16")
    blocks = POOL // (a_token * pool.block_size)
    assert (pool.num_blocks, pool.capacity_tokens) == (blocks - 1, (blocks - 1) * pool.block_size)
    assert (pool.bytes_per_token, pool.stored_bytes) == (a_token, blocks * pool.block_size * a_token)
    assert (pool.dtype, pool.max_model_len) == ("bfloat16", 2048)
    # vLLM counts the block that it keeps to itself.
    assert pool.max_concurrency == maximum_concurrency(num_blocks=blocks, block_size=pool.block_size, max_model_len=2048)
    # A pool a tenth smaller than the one that was pinned is a line outside its gate.
    of: dict[str, Any] = {"report": engine.memory(), "weights": 7_344_640, "buffers": 0, "pool": pool, "bytes_per_token": a_token}
    for asked, expected in ((POOL, Outcome.PASS), (POOL * 10 // 9, Outcome.FAIL)):
        capacity = pinned_capacity(resolved={"kv_cache_memory_bytes": asked}, pool=pool, rank_bytes_per_token=a_token)
        assert check_profile(lines=profile_lines(**of, capacity=capacity)).outcome is expected


def test_the_loaded_model_is_reported(engine: Engine) -> None:
    info = engine.info
    assert (info.dtype, info.kv_dtype, info.device, info.device_count, info.end_token_ids) == ("bf16", "bf16", "cpu", 1, (2,))
    assert info.device_name
    assert {"engine", "torch", "python", "transformers"} <= set(info.versions)
    assert set(info.load_seconds) == {"import", "load"}


def test_settings_are_plain_and_about_no_machine(engine: Engine, folder: Path) -> None:
    settings = engine.settings()
    resolved, defaults = settings["resolved"], settings["defaults"]
    expected = {
        "max_model_len": 2048, "dtype": "bfloat16", "quantization": None, "load_format": "auto", "enforce_eager": True, "seed": 0,
        "kv_cache_memory_bytes": POOL, "kv_cache_dtype": "auto", "enable_prefix_caching": True, "enable_chunked_prefill": True,
        "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1, "scheduling_policy": "fcfs",
        "attention_backend": "CPU_ATTN", "cudagraph_mode": "NONE", "num_gpu_blocks": engine.kv_pool().num_blocks + 1,
    }  # fmt: skip
    assert {name: resolved[name] for name in expected} == expected
    assert {"max_num_seqs", "max_num_batched_tokens", "block_size", "compilation_mode", "async_scheduling"} <= set(resolved)
    assert 0 < defaults["gpu_memory_utilization"] < 1
    assert {"max_logprobs", "seed", "block_size", "enable_prefix_caching"} <= set(defaults)
    assert not {"model", "tokenizer", "download_dir", "master_port", "hf_token"} & set(defaults)
    text = json.dumps(settings)
    assert not [place for place in (MODEL.path, str(folder), str(os.getpid())) if f'"{place}' in text]
    assert engine.settings() == settings


def test_the_one_rank_is_a_process_of_its_own(engine: Engine) -> None:
    (rank,) = engine.ranks()
    assert (rank.device, rank.tp_rank, rank.pp_rank) == ("cpu", 0, 0)
    assert rank.weights_bytes == engine.memory().weights_bytes
    assert "Worker" in rank.name
    assert Path(f"/proc/{rank.pid}").exists()


def test_the_device_is_measured(engine: Engine) -> None:
    calibration = engine.calibrate()
    # Where the processor has no bf16 of its own, each product is many in fp32.
    assert calibration.matmul_flops_per_second > fp32_flops_per_second() / 1000
    assert calibration.copy_bytes_per_second > 1e8
    assert calibration.python_loops_per_second > 1e5


def test_a_probe_changes_the_live_model_and_the_comparison_sees_it(
    engine: Engine, prompts: list[list[int]], answers: list[Generation], reference: Any
) -> None:
    before = engine.run(f"{PROBES}::row", name="model.embed_tokens.weight", number=7)
    assert (before.shape, before.dtype) == ((256,), np.float32)
    assert engine.run(f"{PROBES}::scale", name=NORM, factor=-1.0) == NORM
    # What the cache holds was computed by the right weights.
    engine.generate(prompts[:1], max_tokens=1, cache_path="no_cache")
    assert outcome(engine.generate(prompts, max_tokens=120, logprobs=8), reference[0]) is Outcome.FAIL
    engine.run(f"{PROBES}::scale", name=NORM, factor=-1.0)
    engine.generate(prompts[:1], max_tokens=1, cache_path="no_cache")
    assert tokens(engine.generate(prompts, max_tokens=120)) == tokens(answers)
    with pytest.raises(EngineError, match=r"(?s)fails in .*KeyError: 'no such layer'.*vllm_model.py\", line 16"):
        engine.run(f"{PROBES}::fails")
    with pytest.raises(BadInputError, match="no function 'missing'; it has: fails, lose_cached_values, row, scale"):
        engine.run(f"{PROBES}::missing")


def test_a_damaged_prefix_is_caught_though_it_is_found(engine: Engine, beside: Callable[..., Engine]) -> None:
    unrounded = Unrounded(engine, beside)
    modes = ExecutionModes.ask(engine, unrounded)

    def outcomes() -> Any:
        found = PrefixAnswers.ask(engine)
        distributions = found.of_repeated(modes).judged("the answers are the same")
        return check_prefix_hits(found=found.cached, block=engine.kv_pool().block_size), distributions

    assert [verdict.outcome for verdict in outcomes()] == [Outcome.PASS, Outcome.PASS]
    probe = f"{PROBES}::lose_cached_values"
    assert engine.run(probe, on=True)[1:] == [2, engine.kv_pool().block_size, 128]
    counts, distributions = outcomes()
    engine.run(probe, on=False)
    engine.reset_prefix_cache()
    assert counts.outcome is Outcome.PASS
    assert distributions.outcome is Outcome.FAIL, str(distributions)


def test_a_tiny_pool_preempts_and_gives_the_same_answers(engine: Engine, folder: Path, vllm_python: str) -> None:
    """Its counters are those of an engine that counts; the one that does not says so."""
    with pytest.raises(UnsupportedError, match="cache_counters"):
        engine.cache_counters()
    greedy = Greedy.ask(engine)

    def launch(spec: Any, _model: Any, engine_args: Any, _variables: Any) -> Engine:
        pool = {"kv_cache_memory_bytes": None, **engine_args}
        return start(folder, vllm_python, engine_args=pool, kv_dtype=spec.kv_dtype)

    (tiny,) = [variant for variant in VARIANTS if variant.preempts]
    found = KVVariants(engine, greedy, launch, asked_for=True).ask(tiny)
    assert check_preempted(counters=present(found.counters), requests=8).outcome is Outcome.PASS
    assert present(present(found.counters).prefix_queries) > present(present(found.counters).prefix_hits)
    verdict = check_resynchronised_tokens(
        candidate=found.batched,
        reference=greedy.batched,
        teacher_forced=found.teacher_forced,
        dtype="bf16",
        claim="the same tokens",
    )
    assert verdict.outcome is Outcome.PASS, str(verdict)
