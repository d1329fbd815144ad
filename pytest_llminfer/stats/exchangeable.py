"""One new run against K recorded runs of the same questions: the exact test, the drop and what it can show
(docs/methods.md#exact-test).

Question i was right in ``s_i`` of the K recorded runs. If nothing regressed, the K + 1 runs are exchangeable question by
question: of the ``w_i`` wrong answers among them, the new run holds one with probability w_i / (K + 1). Questions that all
K + 1 runs answer alike say nothing. With K = 1 this is McNemar's test.

NumPy is imported where an array is needed, not with the module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pytest_llminfer.stats import paired, sequential

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEPS = 80
"""Halvings of an interval of length 2: below the spacing of doubles."""

_SUPPORTED = NormalDist().inv_cdf(0.9)
"""A margin is supported if a run without a drop passes in nine of ten cases."""

_ABOVE = 1 + 1e-9
"""Equal runs reach a boundary exactly or not at all: the factor keeps rounding from deciding."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcomes of one new run beside K recorded ones, as the sums that the statistics need.

    Attributes:
        n: Questions.
        runs: Recorded runs, K; at least 1.
        by_wrong: (K + 2,) how many questions have w wrong answers among the K + 1 runs, for w = 0 … K + 1.
        wrong_now: Wrong answers of the new run to the questions with 0 < w < K + 1.
        right_before: Right answers of all K recorded runs together, 0 … K n.
        right_now: Right answers of the new run, 0 … n.
        lost: Questions that most recorded runs have right and the new one has wrong; a tie among the recorded runs does not count.
        won: Questions that most recorded runs have wrong and the new one has right; a tie does not count.
    """

    n: int
    runs: int
    by_wrong: tuple[int, ...]
    wrong_now: int
    right_before: int
    right_now: int
    lost: int
    won: int

    @property
    def informative(self) -> int:
        """Questions that the K + 1 runs do not all answer alike."""
        return self.n - self.by_wrong[0] - self.by_wrong[-1]

    @property
    def expected(self) -> float:
        """E: the wrong answers that exchangeability leaves to the new run, in the informative questions."""
        return sum(w * count for w, count in enumerate(self.by_wrong[:-1])) / (self.runs + 1)

    @property
    def variance(self) -> float:
        """V: of :attr:`wrong_now` around :attr:`expected`."""
        total = self.runs + 1
        return sum(w * (total - w) * count for w, count in enumerate(self.by_wrong)) / total**2


def tally(right_counts: Sequence[int], runs: int, right_now: Sequence[bool]) -> Tally:
    """Sum up ``right_counts`` (of each question, in ``runs`` recorded runs) beside ``right_now``, in the same order.

    Raises:
        ValueError: no runs, a count outside 0 … runs, or sequences of different lengths.
    """
    if runs < 1:
        raise ValueError(f"a comparison needs a recorded run, got {runs}")
    if len(right_counts) != len(right_now):
        raise ValueError(f"{len(right_counts)} recorded questions and {len(right_now)} new outcomes cannot be paired")
    missed, held = [0] * (runs + 1), [0] * (runs + 1)
    for count, right in zip(right_counts, right_now, strict=True):
        if not 0 <= count <= runs:
            raise ValueError(f"{count} right answers in {runs} runs is impossible")
        (held if right else missed)[count] += 1
    return from_counts(missed, held)


def from_counts(missed: Sequence[int], held: Sequence[int]) -> Tally:
    """The tally from how many questions with s = 0 … K recorded right answers the new run has wrong (missed), and right (held)."""
    runs = len(missed) - 1
    by_wrong = [0] * (runs + 2)
    for right_before, (wrong, right) in enumerate(zip(missed, held, strict=True)):
        by_wrong[runs - right_before + 1] += wrong
        by_wrong[runs - right_before] += right
    return Tally(
        n=sum(missed) + sum(held),
        runs=runs,
        by_wrong=tuple(by_wrong),
        wrong_now=sum(missed[1:]),
        right_before=sum(s * (missed[s] + held[s]) for s in range(runs + 1)),
        right_now=sum(held),
        lost=sum(count for s, count in enumerate(missed) if 2 * s > runs),
        won=sum(count for s, count in enumerate(held) if 2 * s < runs),
    )


def p_value(counts: Tally) -> float:
    """The chance of at least as many wrong answers in the new run if it were exchangeable with the recorded ones.

    Exact: the upper tail of the sum over w of Binomial(n_w, w / (K + 1)), by convolution; 1.0 with no informative question.
    With K = 1 it is :func:`paired.mcnemar_p_value`.
    """
    if counts.runs == 1:
        changed = counts.by_wrong[1]
        return paired.mcnemar_p_value(lost=counts.wrong_now, won=changed - counts.wrong_now)
    import numpy as np

    total = counts.runs + 1
    density = np.ones(1)
    for w in range(1, total):
        if counts.by_wrong[w]:
            density = np.convolve(density, _binomial(counts.by_wrong[w], w / total))
    return min(1.0, float(density[counts.wrong_now :].sum()))


def z_fail(counts: Tally) -> float:
    """(T - E) / sqrt(V): standard errors of wrong answers above what exchangeability leaves; 0.0 with none informative."""
    variance = counts.variance
    return (counts.wrong_now - counts.expected) / math.sqrt(variance) if variance else 0.0


def drop(counts: Tally) -> tuple[float, float]:
    """The drop in accuracy and its standard error, both as shares: mean(s / K - Y), ((K + 1) / K) sqrt(V) / n.

    Raises:
        ValueError: no questions.
    """
    if not counts.n:
        raise ValueError("the drop over no questions")
    estimate = (counts.right_before / counts.runs - counts.right_now) / counts.n
    return estimate, (counts.runs + 1) / counts.runs * math.sqrt(counts.variance) / counts.n


def z_pass(counts: Tally, margin: float) -> float:
    """How many standard errors the drop lies below ``margin`` (a share), with the variance that the margin adds (0 < margin < 1).

    (m n - sum D) / sqrt(((K + 1) / K)^2 V + n m (1 - m)); with K = 1 Tango's score, :func:`paired.tango_z`.
    """
    if counts.runs == 1:
        lost, won = counts.wrong_now, counts.by_wrong[1] - counts.wrong_now
        return paired.tango_z(lost=lost, won=won, n=counts.n, margin=margin)
    estimate, error = drop(counts)
    variance, distance = (counts.n * error) ** 2 + counts.n * margin * (1 - margin), counts.n * (margin - estimate)
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def drop_upper_bound(counts: Tally, confidence: float = 0.95) -> float:
    """The largest drop (a share) that is not ruled out, one-sided: every margin above it passes; 1.0 for n = 0.

    The greater root of :func:`z_pass` = the normal quantile, a quadratic equation in the margin; with K = 1 Tango's limit.
    Where the run is so much better that no drop is left, the negative limit estimate + z SE.
    """
    if not counts.n:
        return 1.0
    if counts.runs == 1:
        lost, won = counts.wrong_now, counts.by_wrong[1] - counts.wrong_now
        return paired.drop_upper_bound(lost=lost, won=won, n=counts.n, confidence=confidence)
    n, z = counts.n, NormalDist().inv_cdf(confidence)
    estimate, error = drop(counts)
    square, middle = n + z * z, 2 * n * estimate + z * z
    under = middle**2 - 4 * square * n * (estimate**2 - (z * error) ** 2)
    root = (middle + math.sqrt(under)) / (2 * square) if under >= 0 else -1.0
    return min(1.0, root) if root > 0 else estimate + z * error


def self_discordance(right_counts: Sequence[int], runs: int) -> float:
    """The share of questions whose outcome differs between two runs: the mean over questions and pairs of recorded runs.

    Raises:
        ValueError: fewer than two runs, which have no pair; or no questions.
    """
    if runs < 2:  # noqa: PLR2004 - a pair
        raise ValueError(f"self-discordance needs two recorded runs, got {runs}")
    if not right_counts:
        raise ValueError("the self-discordance over no questions")
    pairs = sum(count * (runs - count) for count in right_counts)
    return 2 * pairs / (runs * (runs - 1) * len(right_counts))


@lru_cache(maxsize=4096)
def smallest_detectable_drop(n: int, runs: int, discordance: float, alpha: float = 0.01, power: float = 0.8) -> float:
    """The drop (a share) that one exact test over n questions reports with probability ``power``; 1.0 where none is.

    Model A (docs/methods.md#model-a), normal approximation: benign changes of share ``discordance`` between two runs, and pure
    losses of questions that every recorded run has right. z_alpha sqrt(d/2 (1 + 1/K) + drop/K) + z_power sqrt(d/2 (1 + 1/K) + drop
    - drop^2) = drop sqrt(n), which for K = 1 is :func:`paired.smallest_detectable_drop`. Never less than the fewest pure losses
    whose p-value is below alpha.
    """
    if n == 0:
        return 1.0
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)
    benign = discordance / 2 * (1 + 1 / runs)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        spread = z_alpha * math.sqrt(benign + middle / runs) + z_power * math.sqrt(max(0.0, benign + middle - middle**2))
        low, high = (low, middle) if spread <= middle * math.sqrt(n) else (middle, high)
    fewest = math.floor(-math.log(alpha) / math.log(runs + 1)) + 1
    return min(1.0, max(high, fewest / n))


def smallest_margin(n: int, runs: int, discordance: float, looks: int = sequential.LOOKS) -> float:
    """The smallest margin (a share) at which a run without a drop passes in nine of ten cases, at the last of ``looks``.

    The m at which :func:`z_pass` of a run whose drop is 1.28 SE0, as no more than one in ten is, reaches the boundary of PASS
    (2.226 at each of 8 looks): (m - 1.28 SE0) / sqrt(SE0^2 + m (1 - m) / n) with SE0 = sqrt(d/2 (1 + 1/K) / n); with K = 1
    Tango's variance in the root (docs/methods.md#sizes). 1.0 for n = 0.
    """
    if n == 0:
        return 1.0
    looks = min(looks, n)
    needed = _ABOVE * sequential.boundary(sequential.PASS_ALPHA, looks, looks=looks, shape=sequential.POCOCK)
    error = math.sqrt(discordance / 2 * (1 + 1 / runs) / n)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if runs == 1:
            changed = max(discordance, _SUPPORTED * error)
            variance = paired.score_variance((changed + _SUPPORTED * error) / 2, (changed - _SUPPORTED * error) / 2, middle) / n
        else:
            variance = error**2 + middle * (1 - middle) / n
        low, high = (low, middle) if middle - _SUPPORTED * error >= needed * math.sqrt(variance) else (middle, high)
    return high


@lru_cache(maxsize=8192)
def _binomial(n: int, share: float) -> Any:
    """P(X = 0 … n) of Binomial(n, share), float64 (n + 1,)."""
    import numpy as np

    log_ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    k = np.arange(n + 1)
    return np.exp(np.array(log_ways) + k * math.log(share) + (n - k) * math.log1p(-share))
