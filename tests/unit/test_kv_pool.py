"""The paged cache: blocks, tokens, bytes, and what does not fit together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.kv_cache.pool import check_kv_pool, maximum_concurrency
from pytest_llminfer.observations.kv_cache import KVPool
from pytest_llminfer.verdict import Outcome

SHAPE = {"layers": 4, "kv_heads": 2, "head_dim": 64}
POOL = KVPool(100, 16, 1600, "bfloat16", 100 * 16 * 2048, 2048, 512)


def test_a_pool_that_fits_its_shape() -> None:
    verdict = check_kv_pool(pool=POOL, **SHAPE, dtype="bf16")
    assert verdict.outcome is Outcome.PASS
    assert "3.12 sequences of 512" in str(verdict)


def test_one_reserved_block_is_allowed() -> None:
    with_reserve, with_two = (replace(POOL, stored_bytes=(100 + extra) * 16 * 2048) for extra in (1, 2))
    assert check_kv_pool(pool=with_reserve, **SHAPE, dtype="bf16").outcome is Outcome.PASS
    assert check_kv_pool(pool=with_two, **SHAPE, dtype="bf16").outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bytes_per_token": 4096}, "4,096 bytes a token instead of 2,048"),
        ({"stored_bytes": 100 * 16 * 1024}, "1,638,400 bytes instead of 3,276,800"),
        ({"capacity_tokens": 800}, "a capacity of 800 tokens"),
        ({"capacity_tokens": 1584}, "a capacity of 1,584 tokens"),
        ({"dtype": "float16"}, "stored as float16 instead of bfloat16"),
        ({"max_model_len": 4096}, "a sequence may have 4,096 tokens"),
        ({"num_blocks": 0}, "no blocks"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], line: str) -> None:
    verdict = check_kv_pool(pool=replace(POOL, **change), **SHAPE, dtype="bf16")
    assert verdict.outcome is Outcome.FAIL
    assert any(line in detail for detail in verdict.details)


@pytest.mark.parametrize(("dtype", "per_token"), [("fp32", 4096), ("fp8", 1024), ("q8_0", 1088), ("q4_0", 576)])
def test_bytes_follow_the_dtype(dtype: str, per_token: int) -> None:
    pool = replace(POOL, dtype="float32", bytes_per_token=per_token, stored_bytes=1600 * per_token)
    assert check_kv_pool(pool=pool, **SHAPE, dtype=dtype).outcome is Outcome.PASS
    assert check_kv_pool(pool=pool, **SHAPE, dtype="bf16").outcome is Outcome.FAIL


def test_heads_that_ranks_share_are_held_several_times() -> None:
    pool = replace(POOL, bytes_per_token=4096, stored_bytes=1600 * 4096)
    assert check_kv_pool(pool=pool, **SHAPE, dtype="bf16", copies=2).outcome is Outcome.PASS


def test_blocks_of_a_real_log_give_its_maximum_concurrency() -> None:
    """25,626 blocks of 16 tokens and sequences of 32,768: vLLM logged 12.51."""
    assert f"{maximum_concurrency(num_blocks=25_626, block_size=16, max_model_len=32_768):.2f}" == "12.51"
    # A sequence takes whole blocks.
    assert maximum_concurrency(num_blocks=100, block_size=16, max_model_len=17) == 50


@pytest.mark.parametrize(("told", "outcome"), [(100 / 32, Outcome.PASS), (101 / 32, Outcome.PASS), (99 / 32, Outcome.FAIL)])
def test_the_engines_own_concurrency_is_that_of_its_blocks(told: float, outcome: Outcome) -> None:
    verdict = check_kv_pool(pool=replace(POOL, max_concurrency=told), **SHAPE, dtype="bf16")
    assert verdict.outcome is outcome
    assert f"maximum concurrency: {told:.6g} sequences" in str(verdict)
    assert any("counts on 3.09 sequences" in line for line in verdict.details) is (outcome is Outcome.FAIL)


def test_an_unknown_dtype_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="auto"):
        check_kv_pool(pool=POOL, **SHAPE, dtype="auto")
