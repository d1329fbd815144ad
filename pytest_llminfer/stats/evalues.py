"""Evidence that adds up over past runs: e-values against exchangeability, and how many past runs share one baseline.

An e-value is non-negative with a mean of at most 1 if nothing regressed, so that it is 1/alpha or more with a chance of at
most alpha (Markov). Here it is a likelihood ratio: the odds that a wrong answer falls to a new run are tilted by
theta = q / (1 - q), averaged over q in (1/2, 1) with a density proportional to q (docs/methods.md#e-values). NumPy is imported
where an array is needed.

The product of nightly e-values against one fixed record is no e-value: every past run meets the same luck of the recorded runs.
Over 90 past runs without any drift at 3 % discordance it reached 1/0.01 in 2.2 % of histories with one recorded run (0.4 % with
four, which no theorem promises). :func:`pooled_log_e` takes all past runs and the K recorded runs as exchangeable at once, so that
the record's luck counts once only (benchmarks/accuracy_power.py).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pytest_llminfer.stats import sign_flips

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.stats.exchangeable import Tally

_NODES = 256
"""Of Gauss-Legendre quadrature over q: exact for K = 1 up to 510 changed questions, since the integrand is a polynomial."""

_UNIT = 48
"""Steps of a change of one question from right to wrong."""

_JUDGED = (1, 2, 3, 4, 6)
"""First past runs that are judged; from 8 on every power of two, and one and a half of it."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What the past runs so far prove.

    Attributes:
        past_runs: How many past runs there are.
        log_e: Natural logarithm of the pooled e-value over all of them.
        log_p: Natural logarithm of the p-value with the question as the unit, at most 0.
        needed: What both ``log_e`` and ``-log_p`` must reach to prove a drift at the last judged past run, in nats.
        judged_at: Past runs at which the evidence was judged, counted from 1.
        proven_at: The past run at which a drift was proven; None where it was not, or where later past runs have outweighed the
            evidence.
    """

    past_runs: int
    log_e: float
    log_p: float
    needed: float
    judged_at: tuple[int, ...]
    proven_at: int | None


def log_e(counts: Tally) -> float:
    """The natural logarithm of the e-value of one run against exchangeability with its K recorded runs.

    Given w wrong answers among the K + 1 runs, the new run holds one with probability w theta / (w theta + K + 1 - w). For
    K = 1 it is 2^(b+c) B(b+2, c+1) I_1/2(c+1, b+2) / (B(2, 1) I_1/2(1, 2)) with b lost and c won (docs/methods.md#e-values).
    """
    total = counts.runs + 1
    weights = {w: counts.by_wrong[w] for w in range(1, total) if counts.by_wrong[w]}
    if not weights:
        return 0.0
    import numpy as np

    log_theta, log_density = _tilts()
    theta = np.exp(log_theta)
    value = log_density + counts.wrong_now * log_theta
    for w, count in weights.items():
        value = value - count * np.log((w * theta + (total - w)) / total)
    return _log_sum(value)


def log_e_of_pairs(lost: int, won: int) -> float:
    """:func:`log_e` of one run beside one, of which so many pairs changed sides."""
    from pytest_llminfer.stats.exchangeable import Tally

    return log_e(Tally((0, lost), (won, 0)))


def pooled_log_e(right_counts: Sequence[int], runs: int, asked: Sequence[int], right: Sequence[int]) -> float:
    """The logarithm of the e-value of all past runs together against exchangeability with the K recorded runs.

    By question, in one order: right answers in the ``runs`` recorded runs; in how many past runs it was asked (m; past runs that
    stopped early asked fewer questions), and how often it was right in those. Given w wrong answers among K + m, the new runs
    hold x with the hypergeometric weight C(m, x) C(K, w - x), tilted by theta^x. For one past run it is :func:`log_e`.

    All questions are tilted alike, so that questions won for good weigh against questions lost for good. An alternative in which
    a few are tilted and the rest are not proves a loss of one point in 2 past runs instead of 6 to 10, but takes 20 lost and 20 won
    for good, as another kernel leaves them, for proof of a drop by the fourth past run.

    Raises:
        ValueError: sequences of different lengths, or more right answers than runs or past runs.
    """
    table: Counter[tuple[int, int, int]] = Counter()
    for before, past_runs, now in zip(right_counts, asked, right, strict=True):
        if not 0 <= before <= runs or not 0 <= now <= past_runs:
            raise ValueError(f"{before} right of {runs} recorded runs and {now} right of {past_runs} past runs is impossible")
        table[past_runs, runs - before + past_runs - now, past_runs - now] += 1
    return pooled_log_e_of(runs, table)


def pooled_log_e_of(runs: int, table: Mapping[tuple[int, int, int], int]) -> float:
    """:func:`pooled_log_e` of a table: (past runs m, wrong answers w among K + m, those x of them in the past runs) to
    questions.
    """
    telling = {key: count for key, count in table.items() if count and key[0] and 0 < key[1] < runs + key[0]}
    if not telling:
        return 0.0
    log_theta, value = _tilts()
    for (past_runs, wrong, new), count in telling.items():
        value = value + count * (new * log_theta - _log_mean_tilt(runs, past_runs, wrong))
    return _log_sum(value)


def judged_runs(past_runs: int) -> tuple[int, ...]:
    """The past runs up to ``past_runs`` at which the evidence is judged: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96 and so on."""
    judged, power = list(_JUDGED), 8
    while power <= past_runs:
        judged += [power, power + power // 2]
        power *= 2
    return tuple(past_run for past_run in judged if past_run <= past_runs)


def log_e_needed(judgement: int, alpha: float) -> float:
    """The log_e that proves a drift at the ``judgement``-th judged past run (1, 2, …): -log(alpha / (j (j + 1)))."""
    return math.log(judgement * (judgement + 1) / alpha)


def drift_verdict(right_counts: Sequence[int], runs: int, past_runs: Sequence[Sequence[bool | None]], alpha: float = 0.01) -> Drift:
    """Whether the past runs so far, oldest first, prove a drop against the K recorded runs; wrong for a chance of ``alpha`` ever.

    past_runs: for each, the outcome of every question in the order of ``right_counts``, None where it was not asked.

    Two things must prove it. The pooled e-value takes the record's own noise for all the noise there is, and every past run for one
    of its own. An engine that repeats one draw is one observation, however often it runs, and another kernel decides near
    ties anew: so the questions must prove it too, each counted once, by the exact test of sign flips of what its past runs lost in
    the mean (:func:`p_value_of_questions`). The evidence is the smaller of the two, in nats.

    The pooled e-value has a mean of at most 1 at every past run, but is no martingale over past runs: what is exchangeable is
    conditioned on anew as runs arrive, so that Ville's inequality does not cover its maximum. The false alarms of all past runs
    are therefore shared out: alpha / (j (j + 1)), which adds up to alpha over all j, to the j-th judged past run, and only past
    runs in geometric steps are judged, because the evidence of neighbouring past runs is nearly the same. At past run 90 that asks
    for 5.1 nats beyond 1/alpha, where a share for every past run (6 alpha / (pi m)^2) would ask for 9.5.

    What was proven stands for as long as the evidence of all past runs is still what it took: one bad past run, or a drift that is
    mended, is outweighed by the past runs that follow.
    """
    asked, right = [0] * len(right_counts), [0] * len(right_counts)
    judged, found, value, log_p, taken = judged_runs(len(past_runs)), None, 0.0, 0.0, 0.0
    for number, outcomes in enumerate(past_runs, 1):
        for position, outcome in zip(range(len(right_counts)), outcomes, strict=True):
            if outcome is not None:
                asked[position] += 1
                right[position] += outcome
        if number in judged or number == len(past_runs):
            value = pooled_log_e(right_counts, runs, asked, right)
            log_p = math.log(max(p_value_of_questions(right_counts, runs, asked, right), 1e-300))
            if found is not None and min(value, -log_p) < taken:
                found = None
        if found is None and number in judged and min(value, -log_p) >= log_e_needed(judged.index(number) + 1, alpha):
            found, taken = number, log_e_needed(judged.index(number) + 1, alpha)
    return Drift(len(past_runs), value, log_p, log_e_needed(max(1, len(judged)), alpha), judged, found)


def p_value_of_questions(right_counts: Sequence[int], runs: int, asked: Sequence[int], right: Sequence[int]) -> float:
    """The p-value of sign flips of D_i = s_i / K - (share of right answers in the past runs that asked question i).

    The question is the unit: runs that are copies of each other say what one of them says. D_i is taken to the nearest
    1/48, which is exact for 1, 2, 3, 4, 6, 8, 12, 16, 24 and 48 runs on either side.
    """
    table: Counter[int] = Counter()
    for before, past_runs, now in zip(right_counts, asked, right, strict=True):
        if past_runs:
            table[round(_UNIT * (before / runs - now / past_runs))] += 1
    return sign_flips.p_value(table)


@lru_cache(maxsize=1)
def _tilts() -> tuple[Any, Any]:
    """Logarithms of theta and of the weight of each value of q; the weights add up to 1."""
    import numpy as np

    x, weights = np.polynomial.legendre.leggauss(_NODES)
    q = 0.75 + x / 4
    density = weights * q
    return np.log(q) - np.log1p(-q), np.log(density / density.sum())


@lru_cache(maxsize=65536)
def _log_mean_tilt(runs: int, past_runs: int, wrong: int) -> Any:
    """Logarithm of E[theta^X] at each theta, X hypergeometric: of ``wrong`` among runs + past runs, those in the past runs."""
    import numpy as np

    log_theta, _ = _tilts()
    taken = range(max(0, wrong - runs), min(past_runs, wrong) + 1)
    log_ways = [_log_choose(past_runs, x) + _log_choose(runs, wrong - x) - _log_choose(runs + past_runs, wrong) for x in taken]
    terms = np.array(log_ways)[:, None] + np.array(taken, dtype=float)[:, None] * log_theta[None, :]
    top = terms.max(axis=0)
    return top + np.log(np.exp(terms - top).sum(axis=0))


def _log_choose(n: int, k: int) -> float:
    return math.log(math.comb(n, k))


def _log_sum(values: Any) -> float:
    import numpy as np

    top = float(values.max())
    return top + math.log(float(np.exp(values - top).sum()))
