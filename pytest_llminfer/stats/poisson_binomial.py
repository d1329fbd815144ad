"""How many of several events happen, each with a probability of its own: the Poisson-binomial distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def poisson_binomial(probabilities: Sequence[float] | np.ndarray) -> np.ndarray:
    """P(X = 0 … n), float64 (n + 1,), of the number X of independent events that happen.

    By convolution, one event at a time, which only ever adds positive numbers (Hong, "On computing the distribution function for
    the Poisson binomial distribution", 2013, section 2.5).

    Raises:
        ValueError: a probability outside [0, 1].
    """
    events = np.asarray(probabilities, np.float64)
    if not ((events >= 0) & (events <= 1)).all():
        raise ValueError("a probability lies in [0, 1]")
    found = np.zeros(len(events) + 1)
    found[0] = 1.0
    for number, event in enumerate(events):
        found[1 : number + 2] = found[1 : number + 2] * (1 - event) + found[: number + 1] * event
        found[0] *= 1 - event
    return found


def most_events(probabilities: Sequence[float] | np.ndarray, *, level: float) -> int:
    """The least number that X exceeds with a probability of at most 1 - ``level``."""
    below = np.cumsum(poisson_binomial(probabilities))
    return int(np.argmax(below >= level)) if (below >= level).any() else len(below) - 1
