"""How many outcomes changed sides, in either direction: a broken engine may flip answers without losing any on balance.

docs/methods.md#flips; Dutta et al. (2024), "Accuracy is not all you need", arXiv 2407.09141. Standard library only.
"""

from __future__ import annotations

import math
from functools import lru_cache

ALPHA = 0.001

PLANNED_DISCORDANCE = 0.03
"""Share of questions that differ between two runs, assumed where one recorded run cannot show it: the planning value of
docs/methods.md#discordance."""

NEAR_COPIES = 0.01
"""Self-discordance below which recorded runs are nearly copies, as of an engine that repeats itself bit by bit: they do not show
what a harmless change of kernel, device or layout flips: engines under load differ in 0.6 to 5 % of outcomes
(docs/methods.md#discordance)."""


def expected_share(self_discordance: float | None, n: int) -> float:
    """The share of flips that a run without a fault has at most, from what the recorded runs differ among themselves.

    The discordance of two runs bounds it from above, since most of K runs are closer to a further one than any one of them
    is. None (one recorded run) stands for 3 %; less than 1 %, as of an engine that repeats itself, for 1 %, or one question.
    """
    return PLANNED_DISCORDANCE if self_discordance is None else max(self_discordance, NEAR_COPIES, 1 / max(n, 1))


def flips_p_value(flips: int, n: int, share: float) -> float:
    """P(X >= flips), X ~ Binomial(n, share).

    Raises:
        ValueError: more flips than questions or fewer than none, or a share outside [0, 1].
    """
    if not 0 <= flips <= n or not 0 <= share <= 1:
        raise ValueError(f"{flips} flips of {n} questions at a share of {share} is impossible")
    if flips == 0 or share == 1:
        return 1.0
    if share == 0:
        return 0.0
    front = math.lgamma(n + 1)
    terms = (
        math.exp(front - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(share) + (n - k) * math.log1p(-share))
        for k in range(flips, n + 1)
    )
    return min(1.0, math.fsum(terms))


@lru_cache(maxsize=1024)
def flagged_from(n: int, share: float, alpha: float = ALPHA) -> int:
    """The fewest flips whose p-value is at most ``alpha``: 61 of 1319 questions at 3 %; n + 1 where no number is enough."""
    low, high = 0, n + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if flips_p_value(middle, n, share) <= alpha else (middle + 1, high)
    return high
