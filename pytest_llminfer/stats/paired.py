"""Two runs over the same questions: what the questions that changed sides say. Standard library only.

Of n questions, ``lost`` were right before and are wrong now, ``won`` the other way round; the rest say nothing
about a difference. ``discordance`` is the share (lost + won) / n.
"""

from __future__ import annotations

import math
from statistics import NormalDist

_STEPS = 80
"""Halvings of an interval of length 2: below the spacing of doubles."""


def mcnemar_p_value(*, lost: int, won: int) -> float:
    """The chance of at least ``lost`` losses among the changed questions if losses and wins were equally likely.

    Exact and one-sided: P(X >= lost), X ~ Binomial(lost + won, 1/2); 1.0 where nothing changed.
    McNemar (1947), Psychometrika 12; the same as scipy.stats.binomtest(lost, lost + won, 0.5, "greater").

    Raises:
        ValueError: a negative count.
    """
    _require_counts(lost, won, lost + won)
    changed = lost + won
    ways, term = 0, 1  # of k = changed losses, then of one fewer, down to k = lost
    for wins in range(won + 1):
        ways += term
        term = term * (changed - wins) // (wins + 1)
    return ways / (1 << changed)


def wilson_interval(*, successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided score interval of a proportion, as two proportions; (0, 1) for n = 0.

    Wilson (1927), JASA 22, p. 209.
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def tango_z(*, lost: int, won: int, n: int, margin: float) -> float:
    """How many standard errors the observed drop lies below a drop of ``margin`` (a share, -1 < margin < 1).

    The score statistic with the variance at the margin, so that it is defined with no changed question at all.
    Tango (1998), Statistics in Medicine 17, eq. 8: with q the likeliest share of wins at that margin,
    Z = (n margin - (lost - won)) / sqrt(n (2 q + margin (1 - margin))).
    """
    variance = n * score_variance(lost / n, won / n, margin)
    distance = n * margin - (lost - won)
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def drop_upper_bound(*, lost: int, won: int, n: int, confidence: float = 0.95) -> float:
    """The largest drop in accuracy (a share) that the paired outcomes do not rule out, one-sided.

    The limit of Tango's score interval: the margin whose :func:`tango_z` equals the normal quantile. 1.0 for n = 0.

    Raises:
        ValueError: a negative count, or more changed questions than questions.
    """
    _require_counts(lost, won, n)
    if n == 0:
        return 1.0
    z = NormalDist().inv_cdf(confidence)
    low, high = (lost - won) / n, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if tango_z(lost=lost, won=won, n=n, margin=middle) >= z else (middle, high)
    return high


def smallest_detectable_drop(*, n: int, discordance: float, alpha: float = 0.01, power: float = 0.8) -> float:
    """The drop (a share) that the exact test at ``alpha`` reports with probability ``power``; 1.0 where none is.

    Model A (docs/methods.md#model-a): benign changes in both directions, ``discordance`` / 2 each way, plus pure losses. Normal
    approximation: z_alpha sqrt(d) + z_power sqrt(d - drop^2) = drop sqrt(n) with d = discordance + drop (Miettinen 1968).
    Never less than the fewest pure losses whose p-value is below alpha (7 questions at 1 %).
    """
    if n == 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        needed = questions_to_detect(drop=middle, discordance=discordance, alpha=alpha, power=power)
        low, high = (low, middle) if needed <= n else (middle, high)
    fewest = math.floor(-math.log2(alpha)) + 1
    return min(1.0, max(high, fewest / n))


def questions_to_detect(*, drop: float, discordance: float, alpha: float = 0.01, power: float = 0.8) -> float:
    """How many questions the exact test needs to report ``drop``: the inverse of :func:`smallest_detectable_drop`."""
    if drop <= 0:
        return math.inf
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)
    changed = discordance + drop
    root = z_alpha * math.sqrt(changed) + z_power * math.sqrt(max(0.0, changed - drop * drop))
    return (root / drop) ** 2


def score_variance(lost: float, won: float, margin: float) -> float:
    """Variance per question of (loss - win) at the likeliest shares with losses - wins = margin."""
    b = -lost - won + (2 - lost + won) * margin
    c = -won * margin * (1 - margin)
    wins = (math.sqrt(max(0.0, b * b - 8 * c)) - b) / 4
    return 2 * wins + margin * (1 - margin)


def _require_counts(lost: int, won: int, n: int) -> None:
    if min(lost, won) < 0 or lost + won > n:
        raise ValueError(f"{lost} lost and {won} won of {n} questions is impossible")
