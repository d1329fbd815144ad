from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from pytest_llminfer.stats.poisson_binomial import most_events, poisson_binomial


@pytest.mark.parametrize(("n", "share"), [(1, 0.3), (40, 0.06), (374, 0.06), (400, 0.5)])
def test_equal_probabilities_give_the_binomial_distribution(n: int, share: float) -> None:
    np.testing.assert_allclose(poisson_binomial([share] * n), binom.pmf(range(n + 1), n, share), rtol=1e-9, atol=1e-300)
    assert most_events([share] * n, level=0.99) == binom.ppf(0.99, n, share)


def test_certain_events_shift_the_others() -> None:
    np.testing.assert_allclose(poisson_binomial([1.0, 0.25, 0.0, 0.5]), [0, 0.375, 0.5, 0.125, 0], atol=1e-15)


def test_no_event_never_happens() -> None:
    assert poisson_binomial([]).tolist() == [1.0]
    assert most_events([], level=0.99) == most_events([0.0] * 3, level=0.99) == 0


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="a probability lies in"):
        poisson_binomial([0.5, 1.5])
