"""Execution modes beside the same weights without rounding: benign ones pass at any depth and sharpness, faults do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_llminfer.families.execution_modes.rounding import GROSS_FACTOR, Errors, check_rounding
from pytest_llminfer.numerics.squared_error import squared_errors
from pytest_llminfer.observations.generation import Scores
from pytest_llminfer.verdict import Outcome, Verdict

PROMPTS, POSITIONS, TOP = 20, 20, 5
UNIT = 2.0**-8
"""Of bf16."""


class Session:
    """Logits of a network of ``layers`` with a standard deviation of ``sigma``: rounding walks as the square root of the depth."""

    def __init__(self, seed: int, *, layers: int, sigma: float, prompts: int = PROMPTS) -> None:
        self.rng = np.random.default_rng(seed)
        self.error = 1.8 * sigma * UNIT * np.sqrt(layers)
        # How much a text amplifies rounding differs from text to text, and is the same for all modes.
        self.scales = self.error * np.exp(self.rng.normal(0, 0.4, prompts))

    def mode(self, *, ratio: float = 1.0) -> list[np.ndarray]:
        """Squared errors of a mode, with ``ratio`` times those of a benign one."""
        found = []
        for scale in self.scales:
            # The tokens of a position share most of their errors with those of its neighbours.
            shared = self.rng.standard_normal((1, TOP)) * 0.5 + self.rng.standard_normal((POSITIONS, TOP)) * np.sqrt(0.75)
            errors = scale * np.sqrt(ratio) * shared
            found.append(np.square(errors - errors.mean(axis=1, keepdims=True)).mean(axis=1))
        return found

    def judged(self, *, ratio: float = 1.0) -> Verdict:
        return judged(self.mode(ratio=ratio), self.mode())


def judged(candidate: Any, reference: Any, dtype: str = "bf16") -> Verdict:
    return check_rounding(errors=Errors(candidate, reference, "beside fp32"), dtype=dtype, claim="the same")


@pytest.mark.parametrize("layers", [2, 12, 32, 80])
@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_benign_rounding_passes_at_every_depth_and_sharpness(layers: int, sigma: float) -> None:
    """No false alarm in 40 sessions of each; at most one in twenty is undecided."""
    found = [Session(seed, layers=layers, sigma=sigma).judged().outcome for seed in range(40)]
    assert found.count(Outcome.FAIL) == 0
    assert found.count(Outcome.PASS) >= 38


def test_eight_prompts_keep_the_level_at_the_limit_itself() -> None:
    """At a true R of 1.5 a FAIL and a PASS are each to be seen once in a hundred: 600 sessions, at most 2.2 % of either."""
    found = [Session(seed, layers=32, sigma=3.0, prompts=8).judged(ratio=1.5).outcome for seed in range(600)]
    assert max(found.count(Outcome.FAIL), found.count(Outcome.PASS)) <= 13


@pytest.mark.parametrize("ratio", [3.5, 13.0, 750.0])
def test_faults_of_the_size_that_was_measured_fail(ratio: float) -> None:
    """One wrong block in the middle of 32 layers, a cache of e4m3, positions off by one."""
    found = [Session(seed, layers=32, sigma=3.0).judged(ratio=ratio).outcome for seed in range(20)]
    assert set(found) == {Outcome.FAIL}


def test_equal_modes_pass_without_any_spread() -> None:
    mode = Session(0, layers=4, sigma=1.0).mode()
    verdict = judged(mode, mode)
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "R 1.00")
    assert judged([np.zeros(4)] * 8, [np.zeros(4)] * 8, "fp32").outcome is Outcome.PASS


def test_in_fp32_kernels_sum_in_their_own_order() -> None:
    session = Session(0, layers=4, sigma=1e-4)
    assert judged(session.mode(ratio=2.0), session.mode(), "fp32").outcome is Outcome.PASS
    assert judged(session.mode(ratio=1e3), session.mode(), "fp32").outcome is Outcome.FAIL
    assert judged(session.mode(ratio=2.0), session.mode(), "bf16").outcome is not Outcome.PASS


def test_one_prompt_that_is_grossly_off_is_enough() -> None:
    session = Session(0, layers=4, sigma=1.0)
    candidate, reference = session.mode(), session.mode()
    candidate[3] = candidate[3] * 3 * GROSS_FACTOR
    verdict = judged(candidate, reference)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details[0].startswith("1 of 20 prompts have more than 100 times")


def test_a_fault_in_both_modes_does_not_hide_itself() -> None:
    """Positions that are off in prefill and in decode: R is 1, and rounding is never that large."""
    session = Session(0, layers=32, sigma=3.0)
    both = [values * 750 for values in session.mode()]
    verdict = judged(both, [values * 750 for values in session.mode()])
    assert verdict.outcome is Outcome.FAIL
    assert any("the reference mode itself is" in line for line in verdict.details)


def test_few_prompts_are_no_pass() -> None:
    mode = Session(0, layers=4, sigma=1.0, prompts=7).mode()
    assert judged(mode, mode).outcome is Outcome.INCONCLUSIVE
    assert judged(mode[:1], mode[:1]).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("candidate", "reference", "line"),
    [
        ([], [], "nothing was compared"),
        ([np.zeros(0)], [np.zeros(3)], "nothing was compared"),
        ([np.ones(3), np.array([np.nan])], [np.ones(3)] * 2, "1 of 4 positions hold no probabilities"),
        ([np.ones(3)], [np.ones(3)] * 2, "1 prompts, 2 in the reference mode"),
    ],
)
def test_nothing_and_nonsense_fail(candidate: Any, reference: Any, line: str) -> None:
    verdict = judged(candidate, reference)
    assert verdict.outcome is Outcome.FAIL
    assert any(line in detail for detail in verdict.details)


def test_errors_are_those_of_logits() -> None:
    """What the rest of the vocabulary does moves all log-probabilities of a position alike."""
    exact = np.log([[0.5, 0.3, 0.1]])
    ids = np.array([[4, 5, 6]], np.int32)
    shifted = Scores(np.zeros(1), ids, (exact - 0.25).astype(np.float32))
    np.testing.assert_allclose(squared_errors(shifted, exact), [0], atol=1e-13)
    moved = Scores(np.zeros(1), ids, (exact + np.array([0.3, 0, 0])).astype(np.float32))
    np.testing.assert_allclose(squared_errors(moved, exact), [(0.2**2 + 0.1**2 + 0.1**2) / 3], rtol=1e-5)
    one = Scores(np.zeros(1), ids[:, :1], (exact[:, :1] + 0.3).astype(np.float32))
    np.testing.assert_allclose(squared_errors(one, exact[:, :1]), [0.09], rtol=1e-5)
