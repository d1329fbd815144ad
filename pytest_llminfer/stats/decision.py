"""When a run is decided: FAIL at planned looks by exact tests, PASS by betting at every 32 questions (docs/methods.md#looks).

What is judged are counts; whose answers they are is not known here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pytest_llminfer.stats import betting, exchangeable, sequential, sign_flips

if TYPE_CHECKING:
    from pytest_llminfer.stats.exchangeable import Tally

ALPHA = 0.01

Outcome = Literal["fail", "pass", "undecided"]


class Decision:
    """Judges one run of at most ``questions`` questions, by its counts at each look.

    margin: the drop (a share) that a pass rules out, wrongly in at most 5 % of runs. alpha: the false alarms of FAIL over all looks
    and over ``cells`` tests of one session together. tolerated: a drop (a share) that is no regression: FAIL only where a larger
    one is proven, by the normal approximation of the paired drop; otherwise by the larger p-value of two exact tests, of
    exchangeability with the recorded runs and of sign flips. looks: of FAIL, nearly equal chunks; 1 judges once, at the end.

    Raises:
        ValueError: no questions, or fewer than one look or cell.
    """

    def __init__(
        self,
        questions: int,
        *,
        margin: float,
        alpha: float = ALPHA,
        cells: int = 1,
        tolerated: float = 0.0,
        looks: int = sequential.LOOKS,
    ) -> None:
        if not questions or looks < 1 or cells < 1:
            raise ValueError(f"nothing to judge: {questions} questions, {looks} looks, {cells} cells")
        self.margin, self.tolerated = margin, tolerated
        self._alpha, self._cells = alpha, cells
        self._fail_at = sequential.chunks(questions, looks)
        if looks > 1 and questions >= looks * betting.LOOK_EVERY:
            # On the grid of the looks for PASS, so that no engine is asked a handful of questions in between.
            self._fail_at = (*(betting.LOOK_EVERY * round(look / betting.LOOK_EVERY) for look in self._fail_at[:-1]), questions)
        between = range(betting.LOOK_EVERY, questions, betting.LOOK_EVERY) if looks > 1 else ()
        self.looks = tuple(sorted({*self._fail_at, *between}))
        """How many questions are asked up to each look."""
        self._ps: list[float] = []
        self._log_wealth = -math.inf
        self._seen: list[Tally] = []

    @property
    def alpha(self) -> float:
        """The level that this test is held to."""
        return self._alpha / self._cells

    @property
    def p_value(self) -> float:
        """The smallest level at which the run would have failed at one of the looks so far; 1.0 before the first."""
        return sequential.sequential_p_value(self._ps, looks=len(self._fail_at))

    @property
    def last_p_value(self) -> float:
        """Of the last look of FAIL on its own; 1.0 before the first."""
        return self._ps[-1] if self._ps else 1.0

    @property
    def looked(self) -> str:
        """How many of the looks of FAIL there were."""
        return f"look {len(self._ps)} of {len(self._fail_at)}"

    @property
    def nominal(self) -> float:
        """The p-value that would fail at the last look of FAIL so far."""
        return self._nominal(self.alpha, max(1, len(self._ps)))

    @property
    def is_suspicious(self) -> bool:
        """Whether the run would have failed as the only one of its session."""
        return self._crossed(self._alpha)

    @property
    def largest_drop(self) -> float:
        """The largest drop (a share) not ruled out so far, with 95 % confidence over all looks; 1.0 before the first."""
        return min(map(betting.largest_drop, self._seen), default=1.0)

    def judge(self, counts: Tally) -> Outcome | None:
        """What the counts over all questions so far decide, or None where more should be asked. Looks may be left out.

        Raises:
            ValueError: so many questions are none of :attr:`looks`.
        """
        asked = counts.n
        if asked not in self.looks:
            raise ValueError(f"{asked} answers is none of the looks at {', '.join(map(str, self.looks))}")
        if asked in self._fail_at:
            look = self._fail_at.index(asked) + 1
            self._ps += [1.0] * (look - 1 - len(self._ps)) + [self._p_value(counts)]
        self._seen.append(counts)
        # What was ruled out at one look stays so: Ville's inequality is of the largest wealth over time.
        self._log_wealth = max(self._log_wealth, betting.log_wealth(counts, self.margin))
        if self._crossed(self.alpha):
            return "fail"
        if self._log_wealth >= betting.NEEDED and not self.is_suspicious:
            return "pass"
        return "undecided" if asked == self.looks[-1] else None

    def _p_value(self, counts: Tally) -> float:
        if self.tolerated:
            return math.erfc(-exchangeable.z_below(counts, self.tolerated) / math.sqrt(2)) / 2
        return max(exchangeable.p_value(counts), sign_flips.p_value(counts.changes))

    def _crossed(self, alpha: float) -> bool:
        return any(p <= self._nominal(alpha, look) for look, p in enumerate(self._ps, 1))

    def _nominal(self, alpha: float, look: int) -> float:
        return math.erfc(sequential.boundary(alpha, look, looks=len(self._fail_at)) / math.sqrt(2)) / 2
