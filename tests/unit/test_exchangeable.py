from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_llminfer.stats import exchangeable, paired

RUNS = st.integers(1, 6)


@st.composite
def tables(draw: Any) -> Any:
    runs = draw(RUNS)
    counts = st.lists(st.integers(0, 12), min_size=runs + 1, max_size=runs + 1)
    return draw(counts), draw(counts)


def test_a_tally_sums_up_questions() -> None:
    counts = exchangeable.tally([4, 4, 2, 0, 1, 3], 4, [True, False, True, False, True, False])
    assert counts == exchangeable.Tally(missed=(1, 0, 0, 1, 1), held=(0, 1, 1, 0, 1))
    assert (counts.n, counts.runs, counts.by_wrong) == (6, 4, (1, 1, 2, 1, 0, 1))
    assert (counts.wrong_now, counts.right_before, counts.right_now, counts.lost, counts.won) == (2, 14, 3, 2, 1)
    assert counts.changes == {3: 1, 4: 1, -3: 1, -2: 1}
    assert counts.squares == pytest.approx((9 + 16 + 9 + 4) / 16)
    assert counts.informative == 4
    assert counts.expected == pytest.approx((1 + 2 + 2 + 3) / 5)
    assert counts.variance == pytest.approx((4 + 6 + 6 + 6) / 25)


@pytest.mark.parametrize(
    ("right_counts", "runs", "now"), [([1], 0, [True]), ([5], 4, [True]), ([-1], 4, [True]), ([1, 2], 4, [True])]
)
def test_what_cannot_be_tallied(right_counts: list[int], runs: int, now: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"impossible|paired|recorded run"):
        exchangeable.tally(right_counts, runs, now)


@settings(deadline=None)
@given(lost=st.integers(0, 60), won=st.integers(0, 60), same=st.integers(1, 500))
def test_one_run_is_mcnemar(lost: int, won: int, same: Any) -> None:
    counts = exchangeable.from_counts([0, lost], [won, same])
    expected = stats.binomtest(lost, lost + won, 0.5, "greater").pvalue if lost + won else 1.0
    assert exchangeable.p_value(counts) == paired.mcnemar_p_value(lost=lost, won=won) == pytest.approx(expected, rel=1e-9)
    assert (counts.lost, counts.won) == (lost, won)
    assert exchangeable.z_below(counts, 0.02) == paired.tango_z(lost=lost, won=won, n=counts.n, margin=0.02)
    assert exchangeable.drop(counts) == pytest.approx(((lost - won) / counts.n, math.sqrt(lost + won) / counts.n))


@settings(deadline=None)
@given(table=tables())
def test_the_p_value_is_the_tail_of_a_sum_of_binomials(table: Any) -> None:
    counts = exchangeable.from_counts(*table)
    total = counts.runs + 1
    density = np.ones(1)
    for w in range(1, total):
        density = np.convolve(density, stats.binom.pmf(np.arange(counts.by_wrong[w] + 1), counts.by_wrong[w], w / total))
    assert exchangeable.p_value(counts) == pytest.approx(density[counts.wrong_now :].sum(), rel=1e-9)


def test_the_p_value_is_right_for_every_order_of_the_runs() -> None:
    """By enumeration: which of the K + 1 outcomes of each question is the new run's, all equally likely."""
    wrong, runs = [1, 2, 1, 3, 2], 3
    outcomes = [
        exchangeable.tally([runs - w + new for w, new in zip(wrong, taken, strict=True)], runs, [not new for new in taken])
        for taken in itertools.product([True, False], repeat=len(wrong))
    ]
    chances = [
        math.prod(w / 4 if new else 1 - w / 4 for w, new in zip(wrong, taken, strict=True))
        for taken in itertools.product([True, False], repeat=len(wrong))
    ]
    assert math.fsum(chances) == pytest.approx(1)
    for counts in outcomes:
        tail = math.fsum(c for c, other in zip(chances, outcomes, strict=True) if other.wrong_now >= counts.wrong_now)
        assert exchangeable.p_value(counts) == pytest.approx(tail, rel=1e-12)
    mean = math.fsum(c * counts.wrong_now for c, counts in zip(chances, outcomes, strict=True))
    square = math.fsum(c * counts.wrong_now**2 for c, counts in zip(chances, outcomes, strict=True))
    assert (mean, square - mean**2) == pytest.approx((outcomes[0].expected, outcomes[0].variance))


def test_nothing_changed_says_nothing() -> None:
    counts = exchangeable.tally([4, 0, 4], 4, [True, False, True])
    assert (counts.informative, exchangeable.p_value(counts)) == (0, 1.0)
    assert exchangeable.drop(counts) == (0.0, 0.0)


def test_losses_of_certain_questions() -> None:
    """Three losses of questions that four runs had right: (1/5)^3; two are no evidence at one percent."""
    assert exchangeable.p_value(exchangeable.tally([4] * 10, 4, [False] * 3 + [True] * 7)) == pytest.approx(0.2**3 * 1, rel=1e-9)
    counts = exchangeable.tally([4] * 10, 4, [False] * 2 + [True] * 8)
    assert exchangeable.p_value(counts) == pytest.approx(0.2**2)


@settings(deadline=None)
@given(table=tables(), margin=st.floats(0.001, 0.5))
def test_the_upper_bound_is_the_margin_that_just_passes(table: Any, margin: float) -> None:
    counts = exchangeable.from_counts(*table)
    if not counts.n:
        assert exchangeable.drop_upper_bound(counts) == 1.0
        return
    bound, z = exchangeable.drop_upper_bound(counts), stats.norm.ppf(0.95)
    estimate, error = exchangeable.drop(counts)
    assert bound >= estimate - 1e-12
    if margin > bound + 1e-9:
        assert exchangeable.z_below(counts, margin) >= z
    if 1e-6 < bound < 1:
        assert exchangeable.z_below(counts, bound) == pytest.approx(z, abs=1e-6)
    elif bound < 0:
        assert bound == pytest.approx(estimate + z * error) or counts.runs == 1


def test_the_upper_bound_where_nothing_changed() -> None:
    """As many questions as it takes: z^2 / (n + z^2), and nothing like zero, however equal the runs."""
    counts = exchangeable.from_counts([0] * 5, [0, 0, 0, 0, 300])
    square = stats.norm.ppf(0.95) ** 2
    assert exchangeable.drop_upper_bound(counts) == pytest.approx(square / (300 + square))


def test_the_pass_statistic_of_four_runs() -> None:
    counts = exchangeable.from_counts([0, 2, 3, 4, 5], [190, 5, 5, 8, 778])
    estimate, error = exchangeable.drop(counts)
    expected = (0.03 - estimate) * 1000 / math.sqrt((1000 * error) ** 2 + 1000 * 0.03 * 0.97)
    assert exchangeable.z_below(counts, 0.03) == pytest.approx(expected)
    assert error == pytest.approx(max(5 / 4 * math.sqrt(counts.variance), math.sqrt(counts.squares)) / 1000)


def test_the_error_is_that_of_what_the_new_run_differs_in_where_that_is_more() -> None:
    """Equal recorded runs, of which the new one differs in forty questions: V is (4/25) a question, D squared is 1."""
    counts = exchangeable.from_counts([0, 0, 0, 0, 20], [20, 0, 0, 0, 960])
    assert exchangeable.drop(counts) == pytest.approx((0.0, math.sqrt(40) / 1000))


@settings(deadline=None)
@given(runs=st.integers(2, 8), seed=st.integers(0, 1000))
def test_self_discordance_is_the_mean_over_pairs_of_runs(runs: int, seed: int) -> None:
    outcomes = np.random.default_rng(seed).random((runs, 30)) < 0.7
    pairs = [np.mean(a != b) for a, b in itertools.combinations(outcomes, 2)]
    assert exchangeable.self_discordance(outcomes.sum(axis=0).tolist(), runs) == pytest.approx(np.mean(pairs))


def test_one_run_has_no_self_discordance() -> None:
    with pytest.raises(ValueError, match="two recorded runs, got 1"):
        exchangeable.self_discordance([1, 0], 1)


@pytest.mark.parametrize(("discordance", "points"), [(0.01, 1.33), (0.03, 1.94), (0.06, 2.55), (0.10, 3.16)])
def test_smallest_detectable_drops_of_methods(discordance: float, points: float) -> None:
    assert 100 * exchangeable.smallest_detectable_drop(1319, 1, discordance) == pytest.approx(points, abs=0.005)
    assert exchangeable.smallest_detectable_drop(1319, 1, discordance) == pytest.approx(
        paired.smallest_detectable_drop(n=1319, discordance=discordance)
    )


@pytest.mark.parametrize("discordance", [0.03, 0.06, 0.10])
def test_four_runs_detect_four_fifths_of_the_drop(discordance: float) -> None:
    """A factor of 0.79 from the variance alone (docs/methods.md#sizes); certain losses count for more where those are few."""
    one, four = (exchangeable.smallest_detectable_drop(1319, runs, discordance) for runs in (1, 4))
    assert 0.70 < four / one < 0.79


def test_few_questions_show_no_drop_below_the_fewest_losses() -> None:
    assert exchangeable.smallest_detectable_drop(100, 1, 0.0) >= 0.07
    assert exchangeable.smallest_detectable_drop(100, 4, 0.0) >= 0.03
    assert exchangeable.smallest_detectable_drop(2, 4, 0.0) == exchangeable.smallest_detectable_drop(0, 4, 0.0) == 1.0
