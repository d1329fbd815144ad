"""Looks at a run while it is under way: boundaries that keep the false alarms of all looks together, and the order of questions.

The walk of a Gaussian sum over equal chunks crosses the boundary z_k = C (looks / k)^(1/2 - shape) at any of its looks with
probability alpha (Wang and Tsiatis (1987), Biometrics 43, p. 193). Shape 0.25, which spends little early, is used for FAIL
(docs/methods.md#looks). NumPy is imported where an array is needed.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOKS = 8
WANG_TSIATIS = 0.25

_NODES = 96
_BELOW = 7.0
"""Standard deviations under zero from where a walk practically never comes back to a boundary."""

_SMALLEST_P = 1e-300
_STEPS = 60


def boundary(alpha: float, look: int, *, looks: int = LOOKS, shape: float = WANG_TSIATIS) -> float:
    """The z that look ``look`` (1 … looks) must reach, so that all looks together are crossed with probability ``alpha``.

    Raises:
        ValueError: a look outside 1 … looks, or an alpha outside (0, 1).
    """
    if not 1 <= look <= looks:
        raise ValueError(f"look {look} of {looks} is none")
    return float(_constant(alpha, looks, shape) * _steepness(look, looks, shape))


def sequential_p_value(ps: Sequence[float], *, looks: int = LOOKS, shape: float = WANG_TSIATIS) -> float:
    """The smallest alpha at which the boundary would have been crossed at one of the looks so far; 1.0 without a look.

    ps: the exact p-value of each look so far, in order, each over all answers up to that look. Valid whenever the run stops.

    Raises:
        ValueError: more p-values than looks, or one outside [0, 1].
    """
    if len(ps) > looks:
        raise ValueError(f"{len(ps)} p-values for {looks} looks")
    if any(not 0 <= p <= 1 for p in ps):
        raise ValueError(f"p-values lie between 0 and 1, got {list(ps)}")
    if not ps or min(ps) == 1:
        return 1.0
    if looks == 1:
        return ps[0]
    return crossing_probability(max(constant_reached(p, look, looks, shape) for look, p in enumerate(ps, 1)), looks, shape)


def constant_reached(p: float, look: int, looks: int = LOOKS, shape: float = WANG_TSIATIS) -> float:
    """The constant C of the boundary that a p-value at this look just reaches; -inf for p = 1."""
    if p >= 1:
        return -math.inf
    return -NormalDist().inv_cdf(max(p, _SMALLEST_P)) / _steepness(look, looks, shape)


def chunks(n: int, looks: int = LOOKS) -> tuple[int, ...]:
    """How many of n questions are asked up to each look, strictly growing: ``looks`` of them, or n where that is fewer."""
    looks = min(looks, n)
    return tuple(math.ceil(n * look / looks) for look in range(1, looks + 1))


def shuffled(ids: Sequence[str], seed: int) -> tuple[str, ...]:
    """``ids`` in an order drawn by ``seed``: sorted by SHA-256 of seed and id, the same on every machine."""
    return tuple(sorted(ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()))


@lru_cache(maxsize=65536)
def crossing_probability(constant: float, looks: int = LOOKS, shape: float = WANG_TSIATIS) -> float:
    """The chance that a Gaussian walk without drift crosses the boundary with this constant at one of its looks.

    The density of the walk that has not crossed yet is carried from look to look by Gauss-Legendre quadrature (Armitage,
    McPherson and Rowe (1969), JRSS A 132, p. 235). Relative error below 1e-6 for probabilities of 1e-12 and more.
    """
    import numpy as np

    if constant == -math.inf:
        return 1.0
    limits = [constant * _steepness(look, looks, shape) * math.sqrt(look) for look in range(1, looks + 1)]
    crossed = _upper_tail(limits[0])
    x, weights = _nodes(limits[0], 1)
    mass = weights * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    for look in range(2, looks + 1):
        limit = limits[look - 1]
        crossed += float(mass @ np.array([_upper_tail(limit - value) for value in x.tolist()]))
        if look < looks:
            following, weights = _nodes(limit, look)
            step = following[:, None] - x[None, :]
            mass = weights * (np.exp(-step * step / 2) @ mass) / math.sqrt(2 * math.pi)
            x = following
    return min(1.0, crossed)


@lru_cache(maxsize=1024)
def _constant(alpha: float, looks: int, shape: float) -> float:
    """The constant whose boundary is crossed with probability alpha, by halving."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    if looks == 1:
        return -NormalDist().inv_cdf(alpha)
    low, high = -5.0, 40.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if crossing_probability(middle, looks, shape) > alpha else (low, middle)
    return (low + high) / 2


def _steepness(look: int, looks: int, shape: float) -> float:
    return float((looks / look) ** (0.5 - shape))


def _upper_tail(z: float) -> float:
    return math.erfc(z / math.sqrt(2)) / 2


def _nodes(limit: float, look: int) -> tuple[Any, Any]:
    """Gauss-Legendre nodes and weights from far below zero up to the boundary, in units of the walk."""
    x, weights = _legendre()
    low = min(-_BELOW * math.sqrt(look), limit - 1)
    half = (limit - low) / 2
    return low + half * (x + 1), half * weights


@lru_cache(maxsize=1)
def _legendre() -> tuple[Any, Any]:
    import numpy as np

    return np.polynomial.legendre.leggauss(_NODES)
