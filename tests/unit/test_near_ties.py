from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.numerics.near_ties import first_divergence, measured_noise, rounding_step
from pytest_llminfer.observations.generation import Generation
from tests.support.present import present


@given(st.floats(1e-30, 1e30))
def test_the_step_of_fp32_is_numpys(value: float) -> None:
    assert rounding_step(value, "fp32") == pytest.approx(float(np.spacing(np.float32(value))), rel=0.51)


@given(st.floats(2.0**-20, 60000.0).map(lambda value: float(np.float16(value))))
def test_the_step_of_fp16_is_numpys(value: float) -> None:
    assert rounding_step(value, "fp16") == float(np.spacing(np.float16(value)))


@given(st.floats(1e-30, 1e30).map(lambda value: float(np.float32(value))))
def test_the_step_of_fp32_is_exactly_numpys_for_its_own_numbers(value: float) -> None:
    assert rounding_step(value, "float32") == float(np.spacing(np.float32(value)))


@pytest.mark.parametrize(
    ("value", "step"), [(1.0, 2**-7), (15.9, 0.0625), (16.0, 0.125), (31.9, 0.125), (32.0, 0.25), (-40.0, 0.25), (75776.0, 512.0)]
)
def test_the_step_of_bf16(value: float, step: float) -> None:
    assert rounding_step(value, "bf16") == step


@pytest.mark.parametrize(("dtype", "step"), [("fp32", 2.0**-149), ("fp16", 2.0**-24), ("bf16", 2.0**-133)])
def test_zero_has_the_step_of_subnormal_numbers(dtype: str, step: float) -> None:
    assert rounding_step(0.0, dtype) == step


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(InvalidSpecError, match="unknown dtype"):
        rounding_step(1.0, "fp8")


def answer(
    tokens: list[Any], top: list[int] | None = None, logprobs: list[float] | None = None, logit: float | None = 20.0
) -> Generation:
    steps = len(tokens)
    return Generation(
        token_ids=tuple(tokens),
        finish_reason="length",
        top_ids=None if top is None else np.array([top] * steps, dtype=np.int32),
        top_logprobs=None if logprobs is None else np.array([logprobs] * steps, dtype=np.float32),
        max_logit=None if logit is None else np.array([logit] * steps, dtype=np.float32),
    )


def test_equal_answers_do_not_part() -> None:
    assert first_divergence(answer([1, 2]), answer([1, 2]), dtype="bf16") is None


def test_the_margins_of_both_sides_are_read() -> None:
    found = first_divergence(answer([5, 7], [7, 5], [-0.5, -0.75]), answer([5, 5], [5, 7], [-0.5, -1.5]), dtype="bf16")
    assert found is not None
    assert (found.position, found.candidate_token, found.reference_token) == (1, 7, 5)
    assert found.margins == pytest.approx((0.25, 1.0))
    assert (found.tolerance, found.is_tie, found.is_unresolved) == (0.25, False, False)


@pytest.mark.parametrize(("dtype", "tie"), [("bf16", True), ("fp16", False), ("fp32", False)])
def test_a_tie_in_one_format_is_none_in_a_finer_one(dtype: str, tie: bool) -> None:
    found = first_divergence(answer([7], [7, 5], [-0.5, -0.625]), answer([5], [5, 7], [-0.5, -0.75]), dtype=dtype)
    assert found is not None
    assert found.is_tie is tie


def test_one_side_that_was_sure_is_no_tie() -> None:
    found = first_divergence(answer([7], [7, 5], [0.0, -9.0]), answer([5], [5, 7], [-0.5, -0.5]), dtype="bf16")
    assert found is not None
    assert not found.is_tie


def test_a_token_outside_the_list_is_at_least_as_far_as_the_list_is_long() -> None:
    near = first_divergence(answer([7], [7, 8], [-0.5, -0.6]), answer([5], [5, 7], [-0.5, -0.5]), dtype="bf16")
    assert near is not None
    assert (near.margins[0], near.is_tie, near.is_unresolved) == (None, False, True)
    assert near.at_least[0] == pytest.approx(0.1)
    far = first_divergence(answer([7], [7, 8], [-0.5, -3.0]), answer([5], [5, 7], [-0.5, -0.5]), dtype="bf16")
    assert far is not None
    assert (far.is_tie, far.is_unresolved) == (False, False)


@pytest.mark.parametrize(
    "candidate", [answer([7]), answer([7], [7, 5]), answer([7], [8, 5], [0.0, 0.0]), answer([7], [7, 5], [math.nan, 0.0])]
)
def test_nothing_known_is_no_tie(candidate: Generation) -> None:
    found = first_divergence(candidate, answer([5], [5, 7], [-0.5, -0.5]), dtype="bf16")
    assert found is not None
    assert not found.is_tie
    assert not found.is_unresolved


def test_an_answer_that_stops_early_parts_where_it_stops() -> None:
    found = first_divergence(answer([5], [5, 7], [-0.5, -0.5]), answer([5, 6], [5, 6], [-0.5, -0.5]), dtype="bf16")
    assert found is not None
    assert (found.position, found.candidate_token, found.reference_token, found.is_tie) == (1, None, 6, False)


def test_the_larger_logit_of_the_two_sets_the_tolerance() -> None:
    found = first_divergence(answer([7], [7, 5], [0.0, 0.0], logit=3.0), answer([5], [5, 7], [0.0, 0.0], logit=-40.0), dtype="bf16")
    assert found is not None
    assert found.tolerance == 0.5


def test_an_unknown_logit_is_taken_as_sixteen() -> None:
    found = first_divergence(answer([7], [7, 5], [0.0, 0.0], logit=None), answer([5], [5, 7], [0.0, 0.0], logit=None), dtype="bf16")
    assert found is not None
    assert found.tolerance == 0.25


def noisy(tokens: list[int], logprobs: list[list[float]], ids: list[list[int]]) -> Generation:
    return Generation(
        token_ids=tuple(tokens),
        finish_reason="length",
        top_ids=np.array(ids, dtype=np.int32),
        top_logprobs=np.array(logprobs, dtype=np.float32),
        max_logit=np.full(len(tokens), 4.0, dtype=np.float32),
    )


def test_noise_is_the_largest_difference_of_rivals_up_to_the_divergence() -> None:
    first = noisy([1, 2, 3], [[-1.0, -1.1, -9.0], [-1.0, -1.3, -9.0], [-1.0, -9.0, -9.5]], [[1, 2, 7], [2, 1, 7], [3, 4, 7]])
    second = noisy([1, 2, 9], [[-1.05, -1.1, -5.0], [-1.0, -1.1, -9.0], [-4.0, -4.5, -5.0]], [[1, 2, 7], [2, 1, 7], [9, 3, 4]])
    # Position 0: 0.05 (the third token, far from winning, does not count); position 1: 0.2; position 2 is where they part.
    assert measured_noise([first], [second], dtype="bf16") == pytest.approx(0.2, abs=1e-6)


def test_what_is_judged_does_not_widen_its_own_tolerance() -> None:
    ours = noisy([1], [[-0.5, -0.9]], [[1, 2]])
    theirs = noisy([2], [[-0.5, -0.9]], [[2, 1]])
    assert measured_noise([ours], [theirs], dtype="bf16") == 0.0


def test_noise_widens_a_tie_to_twice_itself_and_no_further() -> None:
    ours = noisy([1], [[-1.0, -1.3]], [[1, 2]])
    theirs = noisy([2], [[-1.0, -1.3]], [[2, 1]])
    assert not present(first_divergence(ours, theirs, dtype="bf16")).is_tie
    assert present(first_divergence(ours, theirs, dtype="bf16", noise=0.16)).is_tie
    assert not present(first_divergence(ours, theirs, dtype="bf16", noise=0.14)).is_tie


def test_noise_of_a_fault_is_capped() -> None:
    ours = noisy([5, 1], [[-0.1, -9.0], [-0.1, -19.0]], [[5, 1], [1, 2]])
    theirs = noisy([5, 2], [[-3.0, -9.0], [-0.1, -19.0]], [[5, 1], [2, 1]])
    for dtype, most in (("bf16", 0.5), ("fp16", 0.1), ("fp32", 0.001)):
        assert measured_noise([ours], [theirs], dtype=dtype) == most
        assert not present(first_divergence(ours, theirs, dtype=dtype, noise=most)).is_tie
