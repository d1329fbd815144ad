"""PASS by betting: whether a drop as large as the margin is ruled out, whenever one looks (docs/methods.md#pass).

D_i = s_i / K - Y_i lies in [-1, 1], and its mean over the questions is the drop. Whoever bets the share lambda of his wealth
against a drop of m has prod (1 + lambda (m - D_i)) after the questions asked so far, in an order drawn at random; if the drop is m
or more, he is ever twenty times as rich with a chance of at most 1/20 (Ville). The stakes are a fixed mixture. Waudby-Smith and
Ramdas (2024), "Estimating means of bounded random variables by betting", JRSS B 86, p. 1. Standard library only.

Their form for draws without replacement is not used: it passes a true drop of 3 points in 20 % of runs, because it takes the
record's own luck for the truth about the questions that are left.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llminfer.stats.exchangeable import Tally

PASS_ALPHA = 0.05
NEEDED = math.log(1 / PASS_ALPHA)
"""The logarithm of the wealth that rules a drop out."""

STAKES = ((0.15, 0.1), (0.3, 0.15), (0.5, 0.2), (0.7, 0.25), (0.97, 0.3))
"""lambda, and the share of the first wealth that is bet so. All below 1 / (1 - m), so that wealth stays positive for every m >=
0."""

LOOK_EVERY = 32
"""Questions between two looks."""

LEAST_DISCORDANCE = 0.01
"""What is planned for where recorded runs differ in less: they do not show what another kernel flips."""

_SUPPORTED = NormalDist().inv_cdf(0.97)
"""A margin is supported if a run without a drop passes in 97 of 100 cases."""

_STEPS = 50


def log_wealth(counts: Tally, margin: float) -> float:
    """The logarithm of the mixture's wealth after these questions, of bets against a drop of ``margin`` (a share, 0 to 1) or
    more.
    """
    gains: dict[float, int] = {}
    for before, (wrong, right) in enumerate(zip(counts.missed, counts.held, strict=True)):
        gain = margin - before / counts.runs
        gains[gain] = gains.get(gain, 0) + wrong
        gains[gain + 1] = gains.get(gain + 1, 0) + right
    return _mixture([sum(count * math.log1p(stake * gain) for gain, count in gains.items() if count) for stake, _ in STAKES])


def largest_drop(counts: Tally) -> float:
    """The largest drop (a share) that is not ruled out with 95 % confidence, one-sided and at all looks together; 1.0 where none
    is.
    """
    low, high = 0.0, 1.0
    if log_wealth(counts, low) >= NEEDED:
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if log_wealth(counts, middle) >= NEEDED else (middle, high)
    return high


@lru_cache(maxsize=4096)
def smallest_margin(n: int, runs: int, discordance: float) -> float:
    """The smallest margin (a share) that a run without a drop over n questions passes in 97 of 100 cases; 1.0 for n = 0.

    Model A (docs/methods.md#model-a) at a discordance of at least 1 %: of the 3d questions that change, right in s of K runs with
    probability 1 / (K + 1), the next run has one right with probability (s + 1) / (K + 2). The growth of the mixture's wealth over
    n questions is taken as normal at every stake. Looks before the last are left out, so that slightly more pass.
    """
    if n == 0:
        return 1.0
    flippy = min(1.0, 3 * max(discordance, LEAST_DISCORDANCE))
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if _pessimistic(n, runs, flippy, middle) >= NEEDED else (middle, high)
    return high


def _pessimistic(n: int, runs: int, flippy: float, margin: float) -> float:
    """The logarithm of the wealth that all but 3 of 100 runs without a drop exceed."""
    logs = []
    for stake, _ in STAKES:
        outcomes = [(1 - flippy, math.log1p(stake * margin))]
        for before in range(runs + 1):
            gain, share, right = margin - before / runs, flippy / (runs + 1), (before + 1) / (runs + 2)
            outcomes += [
                (share * (1 - right), math.log1p(stake * gain)),
                (share * right, math.log1p(stake * (gain + 1))),
            ]
        mean = sum(weight * value for weight, value in outcomes)
        variance = sum(weight * (value - mean) ** 2 for weight, value in outcomes)
        logs.append(n * mean - _SUPPORTED * math.sqrt(n * variance))
    return _mixture(logs)


def _mixture(logs: list[float]) -> float:
    terms = [value + math.log(weight) for value, (_, weight) in zip(logs, STAKES, strict=True)]
    top = max(terms)
    return top + math.log(math.fsum(math.exp(term - top) for term in terms))
