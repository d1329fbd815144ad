"""How far repeated measurements spread, and where the next one should fall. Standard library only."""

from __future__ import annotations

import functools
import math
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_TINY = 1e-300
_ITERATIONS = 400


def median_and_mad(values: Sequence[float]) -> tuple[float, float]:
    """The median, and the median absolute deviation from it (not scaled to a standard deviation).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("the median of no values")
    centre = median(values)
    return centre, median(abs(value - centre) for value in values)


def lower_prediction_bound(values: Sequence[float], *, alpha: float, floor: float = 0.0) -> float:
    """The value that the next measurement of the same kind falls below with probability ``alpha``.

    mean - max(t(1 - alpha, n - 1) s sqrt(1 + 1/n), floor), s with n - 1 degrees of freedom (docs/methods.md#prediction-bound; Hahn
    and Meeker, "Statistical Intervals", 4.8). ``floor`` is the least distance from the mean, in the unit of the values.

    Raises:
        ValueError: fewer than two values.
    """
    n = len(values)
    if n < 2:  # noqa: PLR2004 - a standard deviation needs two
        raise ValueError(f"a prediction bound needs two values, got {n}")
    spread = student_t_quantile(1 - alpha, n - 1) * stdev(values) * math.sqrt(1 + 1 / n)
    return fmean(values) - max(spread, floor)


def student_t_cdf(t: float, degrees: float) -> float:
    """P(T <= t) of Student's distribution, through the incomplete beta function (Abramowitz and Stegun 26.7.1)."""
    square = t * t
    if square < degrees:  # near the middle, where degrees / (degrees + square) would round to 1
        centre = math.copysign(_incomplete_beta(square / (degrees + square), 0.5, degrees / 2), t)
        return (1 + centre) / 2
    tail = _incomplete_beta(degrees / (degrees + square), degrees / 2, 0.5) / 2
    return 1 - tail if t >= 0 else tail


@functools.cache
def student_t_quantile(probability: float, degrees: float) -> float:
    """The t below which a Student variable with ``degrees`` degrees of freedom falls with ``probability``.

    By bisection on the upper tail, which keeps its relative precision; relative error below 1e-8.

    Raises:
        ValueError: a probability outside (0, 1), or no degrees of freedom.
    """
    if not 0 < probability < 1 or degrees <= 0:
        raise ValueError(f"no quantile for probability {probability} with {degrees} degrees of freedom")
    if probability < 0.5:  # noqa: PLR2004 - the median
        return -student_t_quantile(1 - probability, degrees)
    tail = 1 - probability
    low, high = 0.0, 1.0
    while student_t_cdf(-high, degrees) > tail:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_cdf(-middle, degrees) > tail else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a / _beta_fraction(x, a, b)


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, _ITERATIONS):
        m = step // 2
        numerator = -(a + m) * (a + b + m) * x if step % 2 else m * (b - m) * x
        term = numerator / ((a + 2 * m) * (a + 2 * m + (1 if step % 2 else -1)))
        d = 1 / (1 + term * d or _TINY)
        c = 1 + term / c or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-15:  # noqa: PLR2004 - below the spacing of doubles
            break
    return value
