from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_llminfer.stats import flips


@settings(deadline=None)
@given(n=st.integers(1, 1500), share=st.floats(1e-4, 0.5), part=st.floats(0, 1))
def test_the_p_value_is_a_binomial_tail(n: int, share: float, part: float) -> None:
    """Below 1e-240 scipy is off, by half at 1e-290; there the exact sum tells."""
    count = round(n * part)
    assert flips.flips_p_value(count, n, share) == pytest.approx(stats.binom.sf(count - 1, n, share), rel=1e-7, abs=1e-230)


@settings(deadline=None)
@given(n=st.integers(1, 400), share=st.integers(1, 32), part=st.floats(0, 1))
@example(n=461, share=12, part=0.9375)
def test_the_p_value_is_the_exact_sum(n: int, share: int, part: float) -> None:
    count = round(n * part)
    exact = Fraction(sum(math.comb(n, k) * share**k * (64 - share) ** (n - k) for k in range(count, n + 1)), 64**n)
    assert flips.flips_p_value(count, n, share / 64) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


def test_the_limit_of_methods() -> None:
    assert flips.flagged_from(1319, 0.03) == 61
    assert stats.binom.sf(60, 1319, 0.06) > 0.98  # a doubled discordance is seen


@settings(deadline=None)
@given(n=st.integers(1, 400), share=st.floats(0.001, 0.9), alpha=st.sampled_from([0.05, 0.001]))
def test_the_limit_is_the_first_count_that_is_flagged(n: int, share: float, alpha: float) -> None:
    limit = flips.flagged_from(n, share, alpha)
    assert limit == n + 1 or flips.flips_p_value(limit, n, share) <= alpha
    assert flips.flips_p_value(limit - 1, n, share) > alpha


def test_what_is_expected() -> None:
    assert flips.expected_share(None, 1319) == 0.03
    assert flips.expected_share(0.05, 1319) == 0.05
    assert flips.expected_share(0.0, 1319) == flips.expected_share(0.009, 1319) == 0.01
    assert flips.expected_share(0.0, 40) == 1 / 40
    assert flips.flagged_from(1319, 0.01) == 27


@pytest.mark.parametrize(("count", "n", "share"), [(-1, 10, 0.1), (11, 10, 0.1), (1, 10, 1.5)])
def test_impossible(count: int, n: int, share: float) -> None:
    with pytest.raises(ValueError, match="impossible"):
        flips.flips_p_value(count, n, share)
