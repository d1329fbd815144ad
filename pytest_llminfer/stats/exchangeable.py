"""One new run against K recorded runs of the same questions: the exact test, the drop and what it can show
(docs/methods.md#exact-test).

Question i was right in ``s_i`` of the K recorded runs. If nothing regressed, the K + 1 runs are exchangeable question by
question: of the ``w_i`` wrong answers among them, the new run holds one with probability w_i / (K + 1). Questions that all
K + 1 runs answer alike say nothing. With K = 1 this is McNemar's test.

NumPy is imported where an array is needed, not with the module.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pytest_llminfer.stats import paired

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEPS = 80
"""Halvings of an interval of length 2: below the spacing of doubles."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcomes of one new run beside K recorded ones, by how many of those were right.

    Attributes:
        missed: (K + 1,) how many questions with s = 0 … K right recorded answers the new run has wrong.
        held: (K + 1,) how many of them it has right.
    """

    missed: tuple[int, ...]
    held: tuple[int, ...]

    @property
    def n(self) -> int:
        """Questions."""
        return sum(self.missed) + sum(self.held)

    @property
    def runs(self) -> int:
        """K."""
        return len(self.missed) - 1

    @property
    def by_wrong(self) -> tuple[int, ...]:
        """How many questions have w wrong answers among the K + 1 runs, for w = 0 … K + 1."""
        wrong, right = (*reversed(self.missed),), (*reversed(self.held),)
        return tuple(below + above for below, above in zip((*right, 0), (0, *wrong), strict=True))

    @property
    def wrong_now(self) -> int:
        """Wrong answers of the new run in the questions with 0 < w < K + 1."""
        return sum(self.missed[1:])

    @property
    def right_before(self) -> int:
        """Right answers in all K runs together (0 … K n)."""
        return sum(s * (wrong + right) for s, (wrong, right) in enumerate(zip(self.missed, self.held, strict=True)))

    @property
    def right_now(self) -> int:
        """Right answers of the new run."""
        return sum(self.held)

    @property
    def lost(self) -> int:
        """Questions that most recorded runs have right and the new one wrong; a tie among the recorded runs is none."""
        return sum(count for s, count in enumerate(self.missed) if 2 * s > self.runs)

    @property
    def won(self) -> int:
        """Questions that most recorded runs have wrong and the new one right."""
        return sum(count for s, count in enumerate(self.held) if 2 * s < self.runs)

    @property
    def informative(self) -> int:
        """Questions that the K + 1 runs do not all answer alike."""
        return self.n - self.missed[0] - self.held[-1]

    @property
    def expected(self) -> float:
        """E: the wrong answers that exchangeability leaves to the new run, in the informative questions."""
        return sum(w * count for w, count in enumerate(self.by_wrong[:-1])) / (self.runs + 1)

    @property
    def variance(self) -> float:
        """V: of :attr:`wrong_now` around :attr:`expected`."""
        total = self.runs + 1
        return sum(w * (total - w) * count for w, count in enumerate(self.by_wrong)) / total**2

    @property
    def changes(self) -> dict[int, int]:
        """K D_i, with D_i = s_i / K - Y_i, to the number of questions where it is so; without those where it is 0."""
        table: Counter[int] = Counter()
        for s, (wrong, right) in enumerate(zip(self.missed, self.held, strict=True)):
            table[s] += wrong
            table[s - self.runs] += right
        return {change: count for change, count in table.items() if change and count}

    @property
    def squares(self) -> float:
        """The sum of D_i squared: the variance of the sum of D_i where each was as likely to have the other sign."""
        return sum(change**2 * count for change, count in self.changes.items()) / self.runs**2


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
    return Tally(tuple(missed), tuple(held))


def from_counts(missed: Sequence[int], held: Sequence[int]) -> Tally:
    """The tally from how many questions with s = 0 … K recorded right answers the new run has wrong (missed), and right (held)."""
    return Tally(tuple(missed), tuple(held))


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


def drop(counts: Tally) -> tuple[float, float]:
    """The drop in accuracy and its standard error, both as shares: mean(D), sqrt(max(((K + 1) / K)^2 V, sum D^2)) / n.

    The first variance is what the recorded runs differ in among themselves, the second what the new run differs from them in.

    Raises:
        ValueError: no questions.
    """
    if not counts.n:
        raise ValueError("the drop over no questions")
    estimate = (counts.right_before / counts.runs - counts.right_now) / counts.n
    variance = max(((counts.runs + 1) / counts.runs) ** 2 * counts.variance, counts.squares)
    return estimate, math.sqrt(variance) / counts.n


def z_below(counts: Tally, margin: float) -> float:
    """How many standard errors the drop lies below ``margin`` (a share), with the variance that the margin adds (0 < margin < 1).

    (m n - sum D) / sqrt(max(((K + 1) / K)^2 V, sum D^2) + n m (1 - m)); with K = 1 Tango's score, :func:`paired.tango_z`.
    """
    if counts.runs == 1:
        lost, won = counts.wrong_now, counts.by_wrong[1] - counts.wrong_now
        return paired.tango_z(lost=lost, won=won, n=counts.n, margin=margin)
    estimate, error = drop(counts)
    variance, distance = (counts.n * error) ** 2 + counts.n * margin * (1 - margin), counts.n * (margin - estimate)
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def drop_upper_bound(counts: Tally, confidence: float = 0.95) -> float:
    """The largest drop (a share) that is not ruled out, one-sided: every margin above it passes; 1.0 for n = 0.

    The greater root of :func:`z_below` = the normal quantile, a quadratic equation in the margin; with K = 1 Tango's limit.
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


@lru_cache(maxsize=8192)
def _binomial(n: int, share: float) -> Any:
    """P(X = 0 … n) of Binomial(n, share), float64 (n + 1,)."""
    import numpy as np

    log_ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    k = np.arange(n + 1)
    return np.exp(np.array(log_ways) + k * math.log(share) + (n - k) * math.log1p(-share))
