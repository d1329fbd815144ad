from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pytest_llminfer.stats import sequential

BOUNDARIES = {
    0.01: (4.220, 3.549, 3.207, 2.984, 2.822, 2.697, 2.595, 2.509),
    0.001: (5.403, 4.543, 4.105, 3.820, 3.613, 3.452, 3.322, 3.213),
    0.05: (3.199, 2.690, 2.431, 2.262, 2.139, 2.044, 1.967, 1.902),
}
"""As docs/methods.md#looks prints them. The last digits stand for crossing probabilities up to one percent off."""

PINNED = ("q7", "q3", "q0", "q2", "q9", "q5", "q6", "q1", "q8", "q4")


@pytest.mark.parametrize("alpha", BOUNDARIES)
def test_the_boundaries_of_methods(alpha: float) -> None:
    ours = [sequential.boundary(alpha, look) for look in range(1, 9)]
    assert ours == pytest.approx(BOUNDARIES[alpha], rel=1e-3)
    assert sequential.crossing_probability(BOUNDARIES[alpha][-1]) == pytest.approx(alpha, rel=0.01)


def test_the_boundary_of_pocock() -> None:
    assert sequential.boundary(0.05, 1, shape=0.5) == sequential.boundary(0.05, 8, shape=0.5)
    assert sequential.boundary(0.05, 3, shape=0.5) == pytest.approx(2.226, abs=1e-3)


@pytest.mark.parametrize(("looks", "shape"), [(2, 0.25), (3, 0.5), (4, 0.0)])
def test_the_crossing_probability_is_that_of_the_gaussian_walk(looks: int, shape: float) -> None:
    """Against SciPy's distribution function of the looks' joint normal law."""
    alpha = 0.025
    times = np.arange(1, looks + 1)
    correlation = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    bounds = [sequential.boundary(alpha, look, looks=looks, shape=shape) for look in times.tolist()]
    law = stats.multivariate_normal(cov=correlation, allow_singular=True, maxpts=2_000_000, abseps=1e-8, releps=1e-8)
    assert 1 - law.cdf(bounds) == pytest.approx(alpha, abs=2e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01, 0.001, 1e-6])
def test_a_walk_without_drift_crosses_as_often_as_documented(alpha: float) -> None:
    constant = sequential.boundary(alpha, 8)
    assert sequential.crossing_probability(constant) == pytest.approx(alpha, rel=1e-9)


def test_simulated_walks_cross_in_one_percent() -> None:
    steps = np.random.default_rng(3).standard_normal((400_000, 8)).cumsum(axis=1) / np.sqrt(np.arange(1, 9))
    crossed = (steps >= [sequential.boundary(0.01, look) for look in range(1, 9)]).any(axis=1).mean()
    assert crossed == pytest.approx(0.01, abs=4 * np.sqrt(0.01 * 0.99 / 400_000))


@settings(deadline=None)
@given(ps=st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=8), alpha=st.sampled_from([0.2, 0.05, 0.01, 0.001]))
def test_the_sequential_p_value_is_the_alpha_that_is_just_crossed(ps: list[float], alpha: float) -> None:
    crossed = any(p <= stats.norm.sf(sequential.boundary(alpha, look)) for look, p in enumerate(ps, 1))
    p_value = sequential.sequential_p_value(ps)
    if abs(p_value - alpha) > 1e-9:
        assert (p_value < alpha) == crossed


@settings(deadline=None)
@given(ps=st.lists(st.floats(0.0, 1.0), max_size=7), last=st.floats(0.0, 1.0))
def test_a_further_look_never_takes_evidence_back(ps: list[float], last: float) -> None:
    assert sequential.sequential_p_value([*ps, last]) <= sequential.sequential_p_value(ps)


def test_one_planned_look_costs_nothing() -> None:
    assert sequential.sequential_p_value([0.01], looks=1) == 0.01
    assert sequential.sequential_p_value([1.0] * 7 + [0.01]) > 0.01
    assert sequential.boundary(0.01, 1, looks=1) == pytest.approx(stats.norm.isf(0.01))
    assert sequential.sequential_p_value([]) == sequential.sequential_p_value([1.0, 1.0]) == 1.0


@pytest.mark.parametrize("ps", [[0.5] * 9, [-0.1], [1.1]])
def test_impossible_p_values(ps: list[float]) -> None:
    with pytest.raises(ValueError, match="p-values"):
        sequential.sequential_p_value(ps)


@pytest.mark.parametrize(("alpha", "look"), [(0.0, 1), (1.0, 1), (0.01, 0), (0.01, 9)])
def test_impossible_boundaries(alpha: float, look: int) -> None:
    with pytest.raises(ValueError, match=r"alpha|look"):
        sequential.boundary(alpha, look)


@settings(deadline=None)
@given(n=st.integers(0, 3000), looks=st.integers(1, 12))
def test_chunks_are_equal_and_end_at_all(n: int, looks: int) -> None:
    ends = sequential.chunks(n, looks)
    sizes = np.diff([0, *ends])
    assert len(ends) == min(n, looks)
    assert n == 0 or (ends[-1] == n and sizes.min() >= 1 and sizes.max() - sizes.min() <= 1)


@given(ids=st.lists(st.text(), unique=True, max_size=50), seed=st.integers(0, 99))
def test_an_order_holds_every_question_wherever_it_stood(ids: list[str], seed: int) -> None:
    order = sequential.shuffled(ids, seed)
    assert sorted(order) == sorted(ids)
    assert sequential.shuffled(ids[::-1], seed) == order


def test_the_order_is_the_same_everywhere_and_another_for_another_seed() -> None:
    ids = [f"q{number}" for number in range(10)]
    assert sequential.shuffled(ids, 1) == PINNED
    assert sequential.shuffled(ids, 2) != PINNED


def test_the_order_does_not_follow_the_index() -> None:
    order = [int(name) for name in sequential.shuffled([str(number) for number in range(1000)], 7)]
    assert abs(stats.spearmanr(order, range(1000)).statistic) < 0.1
