from __future__ import annotations

import math

import pytest

from pytest_llminfer.stats.noise import student_t_quantile
from pytest_llminfer.stats.prior_bound import distance_above, pooled_spread


def test_one_value_has_the_known_spread() -> None:
    assert pooled_spread([5.0], prior=0.03) == (pytest.approx(0.03), 8)


def test_own_values_take_over_as_they_become_many() -> None:
    few, many = [0.0, 0.2], [0.0, 0.2] * 500
    assert pooled_spread(few, prior=0.03) == (pytest.approx(math.sqrt((8 * 0.03**2 + 0.02) / 9)), 9)
    assert pooled_spread(many, prior=0.03)[0] == pytest.approx(0.1, rel=0.01)


def test_the_distance_is_that_of_a_prediction_bound() -> None:
    expected = student_t_quantile(0.99, 8) * 0.03 * math.sqrt(1 / 2 + 1)
    assert distance_above([1.0], prior=0.03, alpha=0.01, starts=2) == pytest.approx(expected)
    assert distance_above([1.0], prior=0.03, alpha=0.01, starts=2, floor=1.0) == 1.0
    assert distance_above([1.0] * 100, prior=0.03, alpha=0.01) < distance_above([1.0], prior=0.03, alpha=0.01)


@pytest.mark.parametrize(("values", "prior"), [([], 0.03), ([1.0], 0.0), ([1.0], -1.0)])
def test_no_spread_without_values_or_a_known_one(values: list[float], prior: float) -> None:
    with pytest.raises(ValueError, match="no spread"):
        pooled_spread(values, prior=prior)
