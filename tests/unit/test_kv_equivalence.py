"""Checks of ways through a KV cache, on comparisons that are built here: what passes, and from where on it fails."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_llminfer.families.kv_equivalence.check import Compared, check_cache_paths, check_first_layer
from pytest_llminfer.families.kv_equivalence.diagnosis import Kind
from pytest_llminfer.families.kv_equivalence.receptive_field import check_reach
from pytest_llminfer.families.kv_equivalence.stored import check_cached_tensors, check_quantized_cache
from pytest_llminfer.observations.cache_paths import CachePathComparisons
from pytest_llminfer.verdict import Outcome
from tests.support.kv_comparisons import DECODE, FULL, HEADS, LAYERS, TOKENS, Bug, assert_told, verdict


def test_what_agrees_passes_and_says_how_well() -> None:
    found = verdict(Bug())
    assert found.outcome is Outcome.PASS
    assert found.key == "KL 1e-12"
    assert "1e-08 nats" in found.threshold


def test_noise_up_to_the_limit_passes_in_every_layer_and_beyond_it_fails() -> None:
    bug = Bug()
    limits = 40 * 6e-8 * np.sqrt(np.arange(LAYERS) + 1)  # docs/methods.md#rounding-limits
    bug.keys[:] = bug.values[:] = (0.99 * limits)[:, None, None]
    assert verdict(bug).outcome is Outcome.PASS
    bug.values[2, 1, 7] = 1.01 * limits[2]
    assert verdict(bug).outcome is Outcome.FAIL


@pytest.mark.parametrize("harm", ["kl", "nan", "top1"])
def test_predictions_are_judged_by_themselves(harm: str) -> None:
    bug = Bug()
    if harm == "top1":
        bug.top1[5] = False
    else:
        bug.kl[5] = np.nan if harm == "nan" else 1.1e-8 * TOKENS
    assert verdict(bug).outcome is Outcome.FAIL


def test_one_wrong_sequence_of_several_fails() -> None:
    good, bad = Bug().compared(), Bug().from_layer(0, 20).compared()
    assert check_cache_paths(compared=[good, bad, good], sizes=FULL, claim="c").outcome is Outcome.FAIL
    together = Compared(DECODE, CachePathComparisons((Bug().one(), Bug().from_layer(0, 20).one()), None))
    assert "numbered 1" in str(check_cache_paths(compared=[together], sizes=FULL, claim="c"))


def test_nothing_compared_is_no_pass() -> None:
    for check in (
        lambda **asked: check_cache_paths(**asked, sizes=FULL),
        check_first_layer,
        lambda **asked: check_quantized_cache(**asked, sizes=FULL),
    ):
        found = check(compared=[], claim="c")
        assert found.outcome is Outcome.FAIL
        assert "nothing was compared" in found.details[0]
    assert check_cached_tensors(compared=[], sizes=FULL, dtype="fp32", claim="c").outcome is Outcome.FAIL
    assert check_reach(changes={}, position=1, reach=2, claim="c").outcome is Outcome.FAIL
    nothing = Bug()
    nothing.keys[:] = nothing.values[:] = np.nan
    one = replace(nothing.one(), key_ulps=np.full((HEADS, TOKENS), np.nan), value_ulps=np.full((HEADS, TOKENS), np.nan))
    found = check_first_layer(compared=[Compared(DECODE, CachePathComparisons((one,), None))], claim="c")
    assert "nothing was compared" in found.details[0]


def test_another_dtype_than_fp32_is_no_fair_comparison() -> None:
    bug = Bug()
    bug.dtype = "bf16"
    assert verdict(bug).outcome is Outcome.INVALID


def test_the_first_layer_passes_up_to_one_ulp() -> None:
    one = replace(Bug().one(), dtype="bf16", key_ulps=np.full((HEADS, TOKENS), 1.0))
    found = check_first_layer(compared=[Compared(DECODE, CachePathComparisons((one,), None))], claim="c")
    assert found.outcome is Outcome.PASS
    assert "1 ulp of bf16" in found.threshold


@pytest.mark.parametrize(("part", "kind"), [("keys", Kind.POSITION), ("both", Kind.TOKEN)])
def test_the_first_layer_tells_positions_from_tokens(part: str, kind: Kind) -> None:
    bug = Bug()
    bug.dtype = "bf16"
    bug.keys[0, :, 20:] = 0.9
    if part == "both":
        bug.values[0, :, 20:] = 0.9
    assert_told(check_first_layer(compared=[bug.compared()], claim="c"), kind, "tokens 20 to 47")


def test_noise_of_later_layers_says_nothing_about_the_first() -> None:
    bug = Bug().from_layer(1, 0, size=0.02)
    bug.top1[3] = False
    assert check_first_layer(compared=[bug.compared()], claim="c").outcome is Outcome.PASS
