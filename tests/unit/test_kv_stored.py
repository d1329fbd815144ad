"""Checks of what a KV cache stores: shapes and bytes, and how far a quantized cache errs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.families.kv_equivalence.diagnosis import Kind
from pytest_llminfer.families.kv_equivalence.stored import check_cached_tensors, check_quantized_cache, format_error, normal_range
from pytest_llminfer.models.cut import CacheSizes
from pytest_llminfer.observations.cache_paths import CachedTensors
from pytest_llminfer.verdict import Outcome, Verdict
from pytest_llminfer.worker.protocol.cache_paths import CachePath
from tests.support.kv_comparisons import DECODE, DIM, FULL, HEADS, LAYERS, SLIDING, TOKENS, WINDOW, Bug


def test_the_range_of_normal_numbers_is_that_of_the_tables() -> None:
    # Tippett 1925, table of the mean range: 2, 10 and 100 numbers.
    assert normal_range(2) == pytest.approx(1.12838, abs=1e-4)
    assert normal_range(10) == pytest.approx(3.07751, abs=1e-4)
    assert normal_range(100) == pytest.approx(5.01519, abs=1e-4)


def test_rounding_to_three_bits_errs_as_much_as_is_said() -> None:
    numbers = 2.0 ** np.random.default_rng(1).uniform(0, 1, 200_000)
    rounded = np.round(numbers * 8) / 8
    measured = np.sqrt(((rounded - numbers) ** 2).mean() / (numbers**2).mean())
    assert format_error("fp8", FULL) == pytest.approx(measured, rel=0.01)


def test_rounding_to_the_steps_of_a_group_errs_as_much_as_is_said() -> None:
    values = np.random.default_rng(2).standard_normal((4000, 64))
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    step = (high - low) / 15
    error = np.sqrt(((np.round((values - low) / step) * step + low - values) ** 2).mean())
    assert format_error("int4", FULL) == pytest.approx(error, rel=0.05)


def quantized(dtype: str, ratio: float, **cache: Any) -> Any:
    bug = Bug()
    bug.dtype = dtype
    size = ratio * format_error(dtype, FULL)
    bug.keys[0] = bug.values[0] = size
    bug.kl[16:] = 0.05
    shape = (1, HEADS, TOKENS, DIM)
    fields = {"dtypes": (dtype,) * LAYERS, "stored_bytes": (0,) * LAYERS, "sliding": (0,) * LAYERS, **cache}
    tensors = CachedTensors(key_shapes=(shape,) * LAYERS, value_shapes=(shape,) * LAYERS, **fields)
    return bug, bug.compared(DECODE, tensors)


@pytest.mark.parametrize("dtype", ["fp8", "int4", "int2"])
@pytest.mark.parametrize(
    ("ratio", "outcome"),
    [(0.01, Outcome.FAIL), (0.45, Outcome.FAIL), (0.55, Outcome.PASS), (1.4, Outcome.PASS), (1.6, Outcome.FAIL)],
)
def test_a_quantized_cache_errs_neither_too_much_nor_too_little(dtype: str, ratio: float, outcome: Outcome) -> None:
    _, entry = quantized(dtype, ratio)
    found = check_quantized_cache(compared=[entry], sizes=FULL, claim="c")
    assert found.outcome is outcome
    if ratio < 0.5:
        assert "was not quantized" in found.details[0]
    if outcome is Outcome.FAIL:
        assert found.key == Kind.SCALE


def test_a_scale_that_was_not_measured_is_told() -> None:
    measured = {"largest": ((4.0, 3.0),) * LAYERS, "scales": ((4.0 / 448, 3.0 / 448),) * LAYERS}
    assert check_quantized_cache(compared=[quantized("fp8", 1, **measured)[1]], sizes=FULL, claim="c").outcome is Outcome.PASS
    measured["scales"] = ((4.0 / 448, 3.0 / 448), (1.0, 1.0), (4.0 / 448, 3.0 / 448))
    found = check_quantized_cache(compared=[quantized("fp8", 1, **measured)[1]], sizes=FULL, claim="c")
    assert found.key == Kind.SCALE
    assert found.details[0].startswith("cache scale: in layer 1, keys up to 4 have the scale 1,")


def test_a_quantized_cache_with_swapped_heads_is_not_taken_for_its_scales() -> None:
    bug, _ = quantized("int4", 1)
    bug.keys[0, :2, 16:] = 1.4
    bug.heads[0, 0, 16:], bug.heads[0, 1, 16:] = 1, 0
    entry = bug.compared(DECODE, quantized("int4", 1)[1].found.cache)
    found = check_quantized_cache(compared=[entry], sizes=FULL, claim="c")
    assert found.key == Kind.HEADS


@pytest.mark.parametrize(("times", "outcome"), [(3.9, Outcome.PASS), (4.1, Outcome.FAIL)])
def test_a_deeper_layer_may_lose_what_those_before_it_lost_and_no_more(times: float, outcome: Outcome) -> None:
    bug, entry = quantized("int4", 1)
    bug.values[2] = times * math.sqrt(3) * format_error("int4", FULL)
    found = check_quantized_cache(compared=[bug.compared(DECODE, entry.found.cache)], sizes=FULL, claim="c")
    assert found.outcome is outcome
    if outcome is Outcome.FAIL:
        assert found.key == Kind.ATTENTION
        assert "layer 2, values of int4 err by" in found.details[0]


def test_the_pass_that_sees_no_quantized_tokens_must_be_exact() -> None:
    bug, entry = quantized("fp8", 1)
    bug.kl[3] = 1e-6
    found = check_quantized_cache(compared=[bug.compared(DECODE, entry.found.cache)], sizes=FULL, claim="c")
    assert found.outcome is Outcome.FAIL
    assert "sees no quantized tokens" in found.details[0]


def tensors(
    *,
    sizes: CacheSizes = FULL,
    rows: int = 1,
    lengths: tuple[int, ...] = (TOKENS,) * LAYERS,
    dtype: str = "fp32",
    item: int = 4,
    heads: int = HEADS,
    **changed: Any,
) -> CachedTensors:
    shapes = tuple((rows, heads, length, DIM) for length in lengths)
    stored = tuple(2 * rows * heads * length * DIM * item for length in lengths)
    cache = CachedTensors(shapes, shapes, (dtype,) * LAYERS, stored, sizes.windows)
    return replace(cache, **changed)


def sized(cache: CachedTensors, cache_path: CachePath = DECODE, sizes: CacheSizes = FULL) -> Verdict:
    return check_cached_tensors(compared=[Bug().compared(cache_path, cache)], sizes=sizes, dtype="fp32", claim="c")


def test_a_cache_has_exactly_its_shape_and_bytes() -> None:
    assert sized(tensors()).outcome is Outcome.PASS
    assert sized(tensors(rows=6), CachePath(batch=2, beams=3)).outcome is Outcome.PASS
    assert sized(tensors(lengths=(TOKENS + 5,) * LAYERS), CachePath(pads_left=2, pads_right=3)).outcome is Outcome.PASS
    assert sized(tensors(lengths=(TOKENS + 7,) * LAYERS), CachePath(cache="static", spare=7)).outcome is Outcome.PASS
    for wrong in (
        tensors(heads=2 * HEADS),
        tensors(lengths=(TOKENS, TOKENS - 1, TOKENS)),
        tensors(dtype="bf16"),
        tensors(item=2),
        tensors(stored_bytes=(tensors().stored_bytes[0] + 1, *tensors().stored_bytes[1:])),
        replace(tensors(), key_shapes=tensors().key_shapes[:2]),
    ):
        assert sized(wrong).outcome is Outcome.FAIL


def test_a_window_keeps_one_token_less_than_itself_and_all_of_it_where_it_is_static() -> None:
    assert sized(tensors(lengths=(WINDOW - 1, TOKENS, WINDOW - 1)), sizes=SLIDING).outcome is Outcome.PASS
    static = CachePath(cache="static", spare=4)
    assert sized(tensors(lengths=(WINDOW, TOKENS + 4, WINDOW)), static, SLIDING).outcome is Outcome.PASS
    found = sized(tensors(lengths=(WINDOW, TOKENS, WINDOW)), sizes=SLIDING)
    assert found.outcome is Outcome.FAIL
    assert found.key == Kind.WINDOW


def test_a_quantized_cache_has_the_bytes_of_its_codes_and_scales() -> None:
    heads, residual = HEADS, 5
    packed = heads * (TOKENS - residual) * DIM
    stored = 2 * (packed // 2 + 2 * 4 * packed // 64 + heads * residual * DIM * 4)
    cache_path = CachePath(cache="quantized", residual=8, chunks=DECODE.chunks)
    int4 = tensors(dtype="int4", stored_bytes=(stored,) * LAYERS, residual=(residual,) * LAYERS)
    assert sized(int4, cache_path).outcome is Outcome.PASS
    assert sized(replace(int4, residual=(0,) * LAYERS), cache_path).outcome is Outcome.FAIL
    fp8 = tensors(dtype="fp8", stored_bytes=(2 * (heads * TOKENS * DIM + 4),) * LAYERS)
    assert sized(fp8, CachePath(cache="fp8")).outcome is Outcome.PASS
