from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, norm

from pytest_llminfer.stats.paired import (
    drop_upper_bound,
    mcnemar_p_value,
    questions_to_detect,
    smallest_detectable_drop,
    tango_z,
    wilson_interval,
)


@given(lost=st.integers(0, 400), won=st.integers(0, 400))
def test_mcnemar_is_scipys_binomial_test(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won, 0.5, alternative="greater").pvalue if lost + won else 1.0
    assert mcnemar_p_value(lost=lost, won=won) == pytest.approx(expected, rel=1e-9)


def test_seven_pure_losses_are_the_fewest_below_one_percent() -> None:
    assert mcnemar_p_value(lost=6, won=0) > 0.01 > mcnemar_p_value(lost=7, won=0)


@given(lost=st.integers(0, 100), won=st.integers(0, 100))
def test_one_more_loss_never_raises_the_p_value(lost: int, won: int) -> None:
    assert mcnemar_p_value(lost=lost + 1, won=won) <= mcnemar_p_value(lost=lost, won=won)
    assert mcnemar_p_value(lost=lost, won=won + 1) >= mcnemar_p_value(lost=lost, won=won)


@pytest.mark.parametrize(("lost", "won"), [(-1, 0), (0, -1)])
def test_negative_counts_are_refused(lost: int, won: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        mcnemar_p_value(lost=lost, won=won)


def test_a_large_experiment_stays_exact() -> None:
    assert mcnemar_p_value(lost=30_000, won=30_000) == pytest.approx(0.5, abs=0.01)


@given(n=st.integers(1, 3000), share=st.floats(0, 1))
def test_wilson_is_scipys_interval(n: int, share: float) -> None:
    successes = round(share * n)
    expected = binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(successes=successes, n=n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson_interval(successes=0, n=0) == (0.0, 1.0)


@given(lost=st.integers(0, 40), won=st.integers(0, 40), margin=st.floats(0.001, 0.2))
def test_tango_uses_the_likeliest_shares_at_the_margin(lost: int, won: int, margin: float) -> None:
    n = 500

    def unlikeliness(wins: Any) -> Any:
        losses, ties = wins + margin, 1 - 2 * wins - margin
        terms = ((lost, losses), (won, wins), (n - lost - won, ties))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in terms if count)

    likeliest = minimize_scalar(unlikeliness, bounds=(0.0, (1 - margin) / 2), method="bounded", options={"xatol": 1e-12}).x
    variance = n * (2 * likeliest + margin * (1 - margin))
    expected = (n * margin - (lost - won)) / variance**0.5
    assert tango_z(lost=lost, won=won, n=n, margin=margin) == pytest.approx(expected, abs=2e-3)


@given(lost=st.integers(0, 60), won=st.integers(0, 60), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_the_upper_bound_is_where_tangos_statistic_meets_the_quantile(lost: int, won: int, confidence: float) -> None:
    n = 400
    bound = drop_upper_bound(lost=lost, won=won, n=n, confidence=confidence)
    expected = brentq(
        lambda margin: tango_z(lost=lost, won=won, n=n, margin=margin) - norm.ppf(confidence), (lost - won) / n + 1e-9, 0.999
    )
    assert bound == pytest.approx(expected, abs=1e-9)
    assert bound > (lost - won) / n


def test_no_change_in_ten_questions_rules_little_out() -> None:
    assert drop_upper_bound(lost=0, won=0, n=10) > 0.2
    assert drop_upper_bound(lost=0, won=0, n=0) == 1.0
    assert drop_upper_bound(lost=0, won=0, n=1000) < 0.003


def test_all_lost_is_the_largest_drop() -> None:
    assert drop_upper_bound(lost=50, won=0, n=50) == pytest.approx(1.0)


def test_the_bound_covers_a_true_drop_as_often_as_it_says() -> None:
    rng, n, covered, runs = random.Random(7), 600, 0, 1500
    for _ in range(runs):
        draws = [rng.random() for _ in range(n)]
        lost, won = sum(draw < 0.035 for draw in draws), sum(0.035 <= draw < 0.05 for draw in draws)
        covered += drop_upper_bound(lost=lost, won=won, n=n) >= 0.02
    assert 0.93 <= covered / runs <= 0.975


@pytest.mark.parametrize(("discordance", "points"), [(0.01, 1.33), (0.03, 1.94), (0.06, 2.55), (0.10, 3.16)])
def test_the_smallest_detectable_drop_is_that_of_methods(discordance: float, points: float) -> None:
    assert 100 * smallest_detectable_drop(n=1319, discordance=discordance) == pytest.approx(points, abs=0.006)


def test_the_promised_power_is_real() -> None:
    rng, n, discordance = random.Random(11), 1000, 0.03
    drop = smallest_detectable_drop(n=n, discordance=discordance)
    losses, changed, failed, runs = discordance / 2 + drop, discordance + drop, 0, 600
    for _ in range(runs):
        draws = [rng.random() for _ in range(n)]
        lost, won = sum(draw < losses for draw in draws), sum(losses <= draw < changed for draw in draws)
        failed += mcnemar_p_value(lost=lost, won=won) < 0.01
    assert 0.70 <= failed / runs <= 0.88


@given(n=st.integers(1, 5000), discordance=st.floats(0, 0.5))
def test_more_questions_see_more(n: int, discordance: float) -> None:
    seen = smallest_detectable_drop(n=n, discordance=discordance)
    assert 0 < seen <= 1
    assert smallest_detectable_drop(n=2 * n, discordance=discordance) <= seen


def test_nothing_is_detectable_without_questions() -> None:
    assert smallest_detectable_drop(n=0, discordance=0.03) == 1.0
    assert questions_to_detect(drop=0.0, discordance=0.03) == float("inf")


def test_three_hundred_questions_with_one_percent_discordance() -> None:
    bounds = {(lost, 3 - lost): drop_upper_bound(lost=lost, won=3 - lost, n=300) for lost in range(4)}
    assert [pair for pair, bound in bounds.items() if bound < 0.02] == [(0, 3), (1, 2), (2, 1)]
    assert list(itertools.pairwise(bounds.values())) == sorted(itertools.pairwise(bounds.values()))
