"""How far a new measurement may lie above a few recorded ones, where the spread of its kind is known from elsewhere."""

from __future__ import annotations

import math
from statistics import stdev
from typing import TYPE_CHECKING

from pytest_llminfer.stats.noise import student_t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

PRIOR_DEGREES = 8
"""How many degrees of freedom a known spread counts for."""


def pooled_spread(values: Sequence[float], *, prior: float, prior_degrees: float = PRIOR_DEGREES) -> tuple[float, float]:
    """The standard deviation of a kind of measurement, and its degrees of freedom, from its known spread and ``values``.

    s_p**2 = (d s0**2 + (n - 1) s**2) / (d + n - 1), d the degrees of the known spread s0: the scale of a scaled inverse chi-squared
    posterior (Gelman et al., "Bayesian Data Analysis", 2.6). One value adds nothing.

    Raises:
        ValueError: no values, or a prior that is not positive.
    """
    if not values or prior <= 0 or prior_degrees <= 0:
        raise ValueError(f"no spread of {len(values)} values with a prior of {prior} and {prior_degrees} degrees of freedom")
    own = len(values) - 1
    square = prior_degrees * prior**2 + (own * stdev(values) ** 2 if own else 0.0)
    return math.sqrt(square / (prior_degrees + own)), prior_degrees + own


def distance_above(values: Sequence[float], *, prior: float, alpha: float, starts: int = 1, floor: float = 0.0) -> float:
    """How far above the centre of ``values`` the mean of ``starts`` new ones lies with probability ``alpha`` or less.

    t(1 - alpha, d + n - 1) s_p sqrt(1/starts + 1/n), at least ``floor``: a prediction bound (Hahn and Meeker, "Statistical
    Intervals", 4.8) that holds from one value on.

    Raises:
        ValueError: as :func:`pooled_spread`.
    """
    spread, degrees = pooled_spread(values, prior=prior)
    return max(student_t_quantile(1 - alpha, degrees) * spread * math.sqrt(1 / starts + 1 / len(values)), floor)
