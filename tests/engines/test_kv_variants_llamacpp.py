"""Quantized caches of llama.cpp: as far off as their format, and red where the cache was not quantized after all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.families.execution_modes.check import check_execution_modes
from pytest_llminfer.families.execution_modes.divergences import kl_of_answers
from pytest_llminfer.families.execution_modes.variants import KVVariants, Variant
from pytest_llminfer.families.kv_cache.pool import check_kv_pool
from pytest_llminfer.families.tokens.observe import Greedy
from pytest_llminfer.verdict import Outcome
from tests.support.engines import llamacpp_engines
from tests.support.present import present

model, cache, start = llamacpp_engines.model, llamacpp_engines.cache, llamacpp_engines.start


@pytest.fixture(scope="module")
def cell(start: Callable[..., Engine]) -> Engine:
    return start(dtype="fp16")


@pytest.fixture(scope="module")
def greedy(cell: Engine) -> Greedy:
    return Greedy.ask(cell)


def test_a_quantized_cache_is_told_from_one_that_is_not(start: Callable[..., Engine], cell: Engine, greedy: Greedy) -> None:
    shape = cell.model.shape

    def verdicts(arguments: dict[Any, Any], **cache: Any) -> Any:
        def launch(spec: Any, _model: Any, engine_args: Any, _variables: Any) -> Engine:
            return start(dtype=spec.dtype, engine_args=engine_args, **cache)

        variant = Variant("kv-q8_0", {"llamacpp": arguments}, kv_dtype="q8_0")
        found = KVVariants(cell, greedy, launch, asked_for=True).ask(variant)
        noise, candidate = kl_of_answers(greedy.one_by_one, greedy.batched), kl_of_answers(found.batched, found.reference)
        pool = check_kv_pool(
            pool=present(found.pool), layers=shape.layers, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype="q8_0"
        )
        return pool, check_execution_modes(candidate=candidate, noise=noise, dtype="fp16", kv_dtype="q8_0", claim="quantized")

    assert [verdict.outcome for verdict in verdicts({"flash_attn": True}, kv_dtype="q8_0")] == [Outcome.PASS] * 2
    # The argument is lost: the same engine once more, and one whose kernels alone differ.
    pool, distributions = verdicts({})
    assert [pool.outcome, distributions.outcome] == [Outcome.FAIL] * 2
    assert "was not quantized to q8_0" in str(distributions)
    pool, distributions = verdicts({"flash_attn": True})
    assert (pool.outcome, distributions.outcome is Outcome.PASS) == (Outcome.FAIL, False)
