"""PASS by betting: what it costs, that it is never too sure, and the margin that a record supports."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.stats import betting, exchangeable


def equal(n: int, runs: int = 4) -> exchangeable.Tally:
    return exchangeable.from_counts([0] * (runs + 1), [0] * runs + [n])


@pytest.mark.parametrize(("margin", "fewest"), [(0.02, 200), (0.03, 134), (0.06, 68)])
def test_so_many_equal_answers_rule_a_margin_out(margin: float, fewest: int) -> None:
    assert betting.log_wealth(equal(fewest), margin) >= betting.NEEDED > betting.log_wealth(equal(fewest - 1), margin)


def test_the_wealth_is_the_product_of_the_bets() -> None:
    counts = exchangeable.from_counts([1, 0, 2], [3, 4, 90])
    drops = [0.0] + [1.0] * 2 + [-1.0] * 3 + [-0.5] * 4 + [0.0] * 90
    wealth = sum(weight * math.prod(1 + stake * (0.03 - drop) for drop in drops) for stake, weight in betting.STAKES)
    assert betting.log_wealth(counts, 0.03) == pytest.approx(math.log(wealth))


def test_the_stakes_are_one_fortune_and_never_all_of_it() -> None:
    assert sum(weight for _, weight in betting.STAKES) == pytest.approx(1.0)
    assert max(stake for stake, _ in betting.STAKES) < 1


@given(
    drop=st.floats(0.0, 1.0),
    missed=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3),
    before=st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3),
)
def test_a_bet_gains_nothing_in_the_mean_where_the_drop_is_the_margin(
    drop: float, missed: list[float], before: list[float]
) -> None:
    """One question of any kind with K = 2: the expected factor of a stake is 1 + stake (m - E[D])."""
    weights = [value / sum(before) for value in before]
    mean = sum(w * (s / 2 - (1 - p)) for s, (w, p) in enumerate(zip(weights, missed, strict=True)))
    for stake, _ in betting.STAKES:
        factor = sum(
            w * (p * (1 + stake * (drop - s / 2)) + (1 - p) * (1 + stake * (drop - s / 2 + 1)))
            for s, (w, p) in enumerate(zip(weights, missed, strict=True))
        )
        assert factor == pytest.approx(1 + stake * (drop - mean))
        assert factor <= 1 + 1e-9 or mean < drop


@given(missed=st.lists(st.integers(0, 9), min_size=5, max_size=5), held=st.lists(st.integers(0, 40), min_size=5, max_size=5))
def test_the_largest_drop_is_the_margin_that_just_passes(missed: list[int], held: list[int]) -> None:
    counts = exchangeable.from_counts(missed, held)
    bound = betting.largest_drop(counts)
    if 0 < bound < 1:
        assert betting.log_wealth(counts, bound) == pytest.approx(betting.NEEDED, abs=1e-6)
        assert bound >= exchangeable.drop(counts)[0]
    elif bound == 1:
        assert betting.log_wealth(counts, 1 - 1e-9) < betting.NEEDED


def test_a_record_supports_less_where_it_is_smaller_or_noisier() -> None:
    margins = [betting.smallest_margin(n, 4, 0.01) for n in (300, 1000, 1319)]
    assert margins == sorted(margins, reverse=True)
    assert margins[0] == pytest.approx(0.0294, abs=2e-4)
    assert margins[1] < 0.02
    noisier = [betting.smallest_margin(1000, runs, d) for runs, d in ((4, 0.01), (4, 0.03), (1, 0.03), (1, 0.1))]
    assert noisier == sorted(noisier)
    # Copies do not show what another kernel flips: 1 % is planned for.
    assert betting.smallest_margin(300, 4, 0.0) == margins[0]
    assert betting.smallest_margin(0, 4, 0.0) == 1.0
