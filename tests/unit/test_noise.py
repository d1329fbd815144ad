from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation
from scipy.stats import t as student

from pytest_llminfer.stats.noise import lower_prediction_bound, median_and_mad, student_t_cdf, student_t_quantile

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(values)
def test_median_and_mad_are_those_of_scipy(numbers: list[float]) -> None:
    centre, deviation = median_and_mad(numbers)
    assert centre == pytest.approx(statistics.median(numbers))
    assert deviation == pytest.approx(median_abs_deviation(numbers), abs=1e-9)


def test_the_median_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        median_and_mad([])


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 9, 19, 39, 100, 1000])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 0.0001, 0.05])
def test_quantiles_are_those_of_scipy(probability: float, degrees: int) -> None:
    assert student_t_quantile(probability, degrees) == pytest.approx(student.ppf(probability, degrees), rel=1e-8, abs=1e-8)


@given(t=st.floats(-50, 50), degrees=st.integers(1, 300))
@example(t=4.41e-8, degrees=1)
def test_the_distribution_is_that_of_scipy(t: float, degrees: int) -> None:
    # Below 1e-5 scipy itself is off, by 1.9e-10 at 4.4e-8 and one degree of freedom, where it is 0.5 + atan(t)/pi; there the
    # density at 0 is exact to 1e-15.
    expected = student.cdf(t, degrees) if abs(t) > 1e-5 else 0.5 + t * student.pdf(0, degrees)
    assert student_t_cdf(t, degrees) == pytest.approx(expected, abs=1e-10)


@given(probability=st.floats(0.001, 0.999), degrees=st.integers(1, 100))
def test_the_quantile_inverts_the_distribution(probability: float, degrees: int) -> None:
    assert student_t_cdf(student_t_quantile(probability, degrees), degrees) == pytest.approx(probability, abs=1e-9)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.5, 0), (1.5, 3)])
def test_an_impossible_quantile_is_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        student_t_quantile(probability, degrees)


def test_the_prediction_bound_is_its_formula() -> None:
    numbers = [1.0, 1.1, 0.9, 1.05, 0.97]
    expected = statistics.fmean(numbers) - student.ppf(0.95, 4) * statistics.stdev(numbers) * math.sqrt(1.2)
    assert lower_prediction_bound(numbers, alpha=0.05) == pytest.approx(expected)


def test_the_floor_is_the_least_distance_from_the_mean() -> None:
    assert lower_prediction_bound([2.0] * 8, alpha=0.05, floor=0.01) == pytest.approx(1.99)
    assert lower_prediction_bound([1.0, 3.0], alpha=0.05, floor=0.01) < 0


def test_one_value_predicts_nothing() -> None:
    with pytest.raises(ValueError, match="two values"):
        lower_prediction_bound([1.0], alpha=0.05)


def test_the_bound_is_crossed_as_often_as_it_says() -> None:
    rng, crossed, runs = random.Random(5), 0, 1500
    for _ in range(runs):
        *past, new = (rng.gauss(0, 1) for _ in range(7))
        crossed += new < lower_prediction_bound(past, alpha=0.05)
    assert 0.035 <= crossed / runs <= 0.065
