"""Two execution modes of one engine, judged by measured noise: what passes, what fails, and what is said of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_llminfer.families.execution_modes.check import FLOOR, MOST_NOISE, check_execution_modes
from pytest_llminfer.families.execution_modes.divergences import decoded, given, k3, k3_of_answers, kl_of_answers, same_context
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.verdict import Outcome, Verdict

PROMPTS, POSITIONS = 16, 50


def drawn(mean: float, seed: int = 0, prompts: int = PROMPTS) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).exponential(mean, (prompts, POSITIONS)))


def judged(mean: float, noise: float = 1e-6, **more: Any) -> Verdict:
    arguments = {"dtype": "bf16", "claim": "same", **more}
    candidate, benign = arguments.pop("candidate", drawn(mean, 1)), arguments.pop("benign", drawn(noise, 2))
    return check_execution_modes(candidate=candidate, noise=benign, **arguments)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "bfloat16"])
def test_the_limit_is_four_times_the_noise_whatever_the_dtype(dtype: str) -> None:
    noise = MOST_NOISE["float16" if dtype == "fp16" else "bfloat16"] / 2
    assert judged(2 * noise, noise, dtype=dtype).outcome is Outcome.PASS
    assert judged(8 * noise, noise, dtype=dtype).outcome is Outcome.FAIL
    assert judged(4 * noise, noise, dtype=dtype).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("unit", ["KL", "k3"])
def test_in_fp32_a_fault_is_far_from_any_rounding(unit: str) -> None:
    for noise in (0.0, 1e-12):
        assert judged(FLOOR["float32"] / 2, noise, dtype="fp32", unit=unit).outcome is Outcome.PASS
        assert judged(1e-5, noise, dtype="fp32", unit=unit).outcome is Outcome.FAIL


def test_without_noise_only_what_rounding_never_makes_fails() -> None:
    assert judged(0.0, 0.0).outcome is Outcome.PASS
    verdict = judged(1e-3, 0.0)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert any("equal to the bit" in line for line in verdict.details)
    assert judged(0.1, 0.0).outcome is Outcome.FAIL


def test_beyond_the_noise_and_within_what_rounding_may_make_is_no_verdict() -> None:
    verdict = judged(1e-4, 1e-6)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert any("within 0.0005 nats" in line for line in verdict.details)
    assert any("prompt " in line for line in verdict.details)
    assert judged(2e-3, 1e-6).outcome is Outcome.FAIL


def test_k3_has_no_floor_of_kl() -> None:
    """Of flat predictions a k3 of 1e-3 is a KL of 4e-6: it is compared with a k3 alone."""
    assert judged(1e-3, 5e-4, unit="k3").outcome is Outcome.PASS
    assert judged(1e-4, 1e-6, unit="k3").outcome is Outcome.FAIL


def test_a_fault_in_both_benign_schedules_does_not_hide_itself() -> None:
    """Padding that is not masked moves every batch: it would be noise of its own."""
    verdict = judged(0.1, 0.1)
    assert verdict.outcome is Outcome.FAIL
    assert any("of which 0.0071 are taken as noise" in line for line in verdict.details)
    assert MOST_NOISE["bfloat16"] == 7.1e-3


def test_a_difference_that_grows_with_the_position_is_told() -> None:
    growing = [values * np.linspace(0, 2, POSITIONS) for values in drawn(1e-2, 3)]
    verdict = judged(0.0, candidate=growing)
    assert any("grows with the position" in line for line in verdict.details)
    (slope,) = (measurement for measurement in verdict.measurements if measurement.name == "slope")
    assert slope.value == pytest.approx(1e-2 * 2 / POSITIONS * 100, rel=0.3)
    assert not any("grows" in line for line in judged(1e-2).details)


def test_prompts_of_different_lengths_have_no_slope_of_their_own() -> None:
    constant = [np.full(length, 1e-4) for length in (3, 40, 7, 25)]
    verdict = judged(0.0, candidate=constant)
    (slope,) = (measurement for measurement in verdict.measurements if measurement.name == "slope")
    assert slope.value == pytest.approx(0, abs=1e-12)


def test_one_prompt_that_is_grossly_off_is_enough() -> None:
    one = drawn(1e-6, 4)
    one[3] = np.full(POSITIONS, 0.06)
    verdict = judged(0.0, candidate=one)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details[0] == "1 of 16 prompts are off by more than 0.05 nats"
    one[3] = np.full(POSITIONS, 1e-3)
    assert judged(0.0, candidate=one).outcome is Outcome.INCONCLUSIVE
    one[3] = np.full(POSITIONS, 1e-4)
    assert judged(0.0, candidate=one).outcome is Outcome.PASS


def test_a_kernel_for_one_row_that_rounds_otherwise_than_that_of_a_batch_is_no_fault() -> None:
    """bitsandbytes in NF4, decode alone beside a batch: 48 times the noise between two batches, one prompt 580 times."""
    one = drawn(1e-4, 5)
    one[3] = drawn(4.68e-3, 6)[3]
    verdict = judged(0.0, noise=8.07e-6, candidate=one)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "1 of 16 prompts are off by more than 100 times the limit, which rounding may make" in verdict.details
    # The same from a fault: what it does to every prompt is beyond the floor.
    assert judged(0.0, noise=8.07e-6, candidate=[10 * values for values in one]).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("candidate", "line"),
    [
        ([], "nothing was compared"),
        ([np.zeros(0)] * 4, "nothing was compared"),
        ([np.zeros(0), np.zeros(5)], "1 prompts have no position"),
        ([np.array([0.0, np.nan])], "1 of 2 positions hold no probabilities"),
    ],
)
def test_nothing_and_nonsense_fail(candidate: Any, line: str) -> None:
    verdict = judged(0.0, candidate=candidate)
    assert verdict.outcome is Outcome.FAIL
    assert any(line in detail for detail in verdict.details)
    assert judged(0.0, benign=candidate).outcome is Outcome.FAIL


@pytest.mark.parametrize(("kv_dtype", "within", "beyond"), [("fp8", 2e-3, 1e-2), ("q8_0", 5e-3, 0.02), ("q4_0", 0.03, 0.12)])
def test_a_quantized_cache_has_the_limit_of_its_format(kv_dtype: str, within: float, beyond: float) -> None:
    assert judged(within, kv_dtype=kv_dtype).outcome is Outcome.PASS
    assert judged(beyond, kv_dtype=kv_dtype).outcome is Outcome.FAIL


@pytest.mark.parametrize("mean", [0.0, 1e-7])
def test_a_cache_that_differs_too_little_was_not_quantized(mean: float) -> None:
    verdict = judged(mean, kv_dtype="fp8")
    assert verdict.outcome is Outcome.FAIL
    assert "was not quantized to fp8" in str(verdict)
    assert judged(mean).outcome is Outcome.PASS


def test_a_cache_that_may_differ_too_little_is_no_pass() -> None:
    same = drawn(1e-6, 5)
    assert judged(0.0, candidate=same, benign=drawn(1e-6, 6), kv_dtype="fp8").outcome is Outcome.INCONCLUSIVE
    # An engine without any noise of its own, and a cache that changes nothing.
    assert judged(0.0, 0.0, kv_dtype="fp8").outcome is Outcome.FAIL


def test_k3_is_half_the_squared_difference_of_small_ones() -> None:
    difference = np.array([0.0, 1e-3, -1e-3, 0.5, 1000.0])
    (found,) = k3([difference - 3], [np.full(5, -3.0)])
    np.testing.assert_allclose(found[:4], [0, 5e-7, 5e-7, np.exp(0.5) - 1.5], rtol=1e-3)
    assert np.isfinite(found).all()
    assert np.isnan(k3([np.array([np.nan])], [np.zeros(1)])[0]).all()


def answer(tokens: list[int], probability: float = 0.9) -> Generation:
    ids = np.array([[token, 99] for token in tokens], np.int32)
    return Generation(tuple(tokens), "length", top_ids=ids, top_logprobs=np.log([[probability, 1 - probability]] * len(tokens)))


def test_answers_are_compared_up_to_and_with_the_first_other_token() -> None:
    assert same_context(answer([1, 2, 3, 4]), answer([1, 2, 9, 4])) == 3
    assert same_context(answer([1, 2]), answer([1, 2, 3])) == 2
    same, other = kl_of_answers([answer([1, 2, 3]), answer([1, 7, 3])], [answer([1, 2, 3]), answer([1, 2, 3])])
    np.testing.assert_allclose(same, np.zeros(3), atol=1e-12)
    assert len(other) == 2
    assert other[1] > 1


def test_the_divergence_is_that_of_two_coins() -> None:
    (found,) = kl_of_answers([answer([1], 0.8)], [answer([1], 0.9)])
    assert found[0] == pytest.approx(0.9 * np.log(0.9 / 0.8) + 0.1 * np.log(0.1 / 0.2), rel=1e-6)


def test_equal_answers_are_at_no_distance_at_all() -> None:
    """Whatever is left by arithmetic would be a difference, and a quantized cache must have one."""
    rng = np.random.default_rng(0)
    logprobs = np.log(rng.dirichlet(np.ones(6) / 4, 400))[:, :5].astype(np.float32)
    same = Generation((1,) * 400, "length", top_ids=np.tile(np.arange(1, 6), (400, 1)), top_logprobs=logprobs)
    assert not kl_of_answers([same], [same])[0].any()


def test_rounding_of_float32_probabilities_is_far_below_the_floor() -> None:
    """A tail of 1e-6, with what a float32 log-probability can be off by."""
    sure = np.float32(np.log1p(-1e-6))
    pair = [
        Generation((1,), "length", top_ids=np.array([[1]]), top_logprobs=np.array([[value]], np.float32))
        for value in (sure, sure + np.float32(1.2e-7))
    ]
    assert 0 <= kl_of_answers(pair[:1], pair[1:])[0][0] < 1e-10


def test_an_answer_without_probabilities_has_no_divergence() -> None:
    assert not len(decoded(Generation((1, 2), "length")).logprobs)
    assert np.isnan(kl_of_answers([Generation((1, 2), "length")], [answer([1, 2])])[0]).all()


def test_k3_of_two_answers_is_that_of_their_common_tokens() -> None:
    ours, theirs = answer([1, 2, 3], 0.8), answer([1, 7, 3], 0.9)
    (found,) = k3_of_answers([ours], [theirs])
    ratio = np.log(0.8 / 0.9)
    np.testing.assert_allclose(found, [np.exp(ratio) - 1 - ratio], rtol=1e-5)
    assert given(np.array([-1.0, -2.0]), [4, 5]).top_ids.tolist() == [[4], [5]]


def test_clean_engines_do_not_fail() -> None:
    """Both sides drawn alike, in 200 sessions of 20 texts: never FAIL, nearly always PASS."""
    outcomes = [
        check_execution_modes(candidate=drawn(2e-4, 2 * n, 20), noise=drawn(2e-4, 2 * n + 1, 20), dtype="bf16", claim="").outcome
        for n in range(200)
    ]
    assert set(outcomes) == {Outcome.PASS}


def test_clean_engines_of_heavy_tails_fail_at_most_once_in_a_hundred() -> None:
    """A prompt's mean of a benign mode varies by e, and so does the noise: 400 sessions of 8 prompts."""

    def of_session(seed: int) -> list[np.ndarray]:
        scales = 1e-3 * np.exp(np.random.default_rng(seed).normal(0, 1, 8))
        return [scale * values for scale, values in zip(scales, drawn(1.0, seed, 8), strict=True)]

    found = [
        check_execution_modes(candidate=of_session(2 * n), noise=of_session(2 * n + 1), dtype="bf16", claim="").outcome
        for n in range(400)
    ]
    assert found.count(Outcome.FAIL) <= 4
