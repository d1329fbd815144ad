"""Accuracy against K recorded runs of the same questions, judged while the answers come in (docs/methods.md#accuracy)."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.accuracy.recorded import Recorded, first_ids, points
from pytest_llminfer.stats import exchangeable, paired, sequential
from pytest_llminfer.stats.evalues import log_e, log_e_of_pairs
from pytest_llminfer.stats.flips import PLANNED_DISCORDANCE
from pytest_llminfer.stats.sequential import PASS_ALPHA
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.families.accuracy.grading import Answer, Gate
    from pytest_llminfer.stats.exchangeable import Tally

ALPHA = 0.01
MARGIN = 0.02
_MOST_UNUSABLE = 0.5
"""Share of cut off or malformed answers beyond which the few others say nothing of the model."""

_INTERVAL_Z = NormalDist().inv_cdf(0.975)
_PASS_CONFIDENCE = 1 - PASS_ALPHA
_EXACT = "exact test of exchangeability with the recorded runs"
_COPIES = "exact McNemar test, since the recorded runs are nearly copies of each other, and that of exchangeability"


class AccuracyTest:
    """A sequential judge of one run: FAIL on evidence of a drop, PASS once ``margin`` is ruled out, INCONCLUSIVE at the end.

    recorded: the baseline. gate: the reading that counts. alpha: the false alarms of FAIL over all looks and over ``cells``
    tests of one session together (each is held to alpha / cells; a caller may correct :attr:`p_value` over cells by Holm
    instead). margin: the drop (a share) that PASS rules out, wrongly in at most 5 % of runs. questions: how many are asked at
    most, the first of ``recorded.order``; None for all. looks: 8 equal chunks; 1 judges once, at the end. tolerated: a drop (a
    share) that is no regression: FAIL only where a larger one is proven, by the normal approximation of the paired drop.

    Where the recorded runs are nearly copies (:attr:`Recorded.are_near_copies`) FAIL needs McNemar's test too. Such runs show no
    noise, so that a change of kernel or device which only reorders additions would be held to none: three near ties lost and
    none won have an exact p-value of 0.008 beside four equal runs, and 0.125 as pairs.

    Raises:
        ValueError: no questions, or fewer than one look or cell.
    """

    _pass_shape = sequential.POCOCK
    _exact = staticmethod(exchangeable.p_value)

    def __init__(
        self,
        recorded: Recorded,
        *,
        gate: Gate = "flexible",
        alpha: float = ALPHA,
        cells: int = 1,
        margin: float = MARGIN,
        questions: int | None = None,
        looks: int = sequential.LOOKS,
        tolerated: float = 0.0,
    ) -> None:
        self.order = recorded.order[:questions]
        if not self.order or looks < 1 or cells < 1:
            raise ValueError(f"nothing to judge: {len(self.order)} questions, {looks} looks, {cells} cells")
        self.chunks = sequential.chunks(len(self.order), looks)
        self._recorded, self._gate, self._margin, self._cells, self._alpha = recorded, gate, margin, cells, alpha
        self._right_before, self._tolerated = recorded.right(gate), tolerated
        self._missed, self._held = [0] * (recorded.runs + 1), [0] * (recorded.runs + 1)
        self._lost: list[str] = []
        self._asked = 0
        self._ps: list[float] = []
        self.log_e = 0.0

    @property
    def p_value(self) -> float:
        """The smallest alpha at which the run would have failed at one of the looks so far; 1.0 before the first."""
        return sequential.sequential_p_value(self._ps, looks=len(self.chunks))

    def look(self, answers_so_far: Mapping[str, Answer]) -> Verdict | None:
        """The verdict over the first ``chunks[k]`` questions of the order, or None where more should be asked.

        answers_so_far: by question id; those of earlier looks are not read again. Looks may be left out. INVALID where an
        answer is missing or belongs to another question.

        Raises:
            ValueError: the number of answers is not that of a later look.
        """
        asked = len(answers_so_far)
        if asked not in self.chunks or asked <= self._asked:
            raise ValueError(f"{asked} answers after {self._asked} is none of the looks at {', '.join(map(str, self.chunks))}")
        fresh = self.order[self._asked : asked]
        if missing := [name for name in fresh if name not in answers_so_far]:
            return self._unpaired(missing, asked)
        for name in fresh:
            before = self._right_before[name]
            if getattr(answers_so_far[name], self._gate):
                self._held[before] += 1
            else:
                self._missed[before] += 1
                if 2 * before > self._recorded.runs:
                    self._lost.append(name)
        self._asked = asked
        counts = exchangeable.from_counts(self._missed, self._held)
        exact = self._p_value(counts)
        look = self.chunks.index(asked) + 1
        self._ps += [1.0] * (look - 1 - len(self._ps)) + [exact]
        outcome = self._decide(counts, look)
        self.log_e = log_e(counts)
        if self._recorded.are_near_copies(self._gate):
            self.log_e = min(self.log_e, log_e_of_pairs(counts.lost, counts.won))
        return self._verdict(outcome, counts, look) if outcome else None

    def _p_value(self, counts: Tally) -> float:
        if not self._tolerated:
            exact = self._exact(counts)
            copies = self._recorded.are_near_copies(self._gate)
            return max(exact, paired.mcnemar_p_value(lost=counts.lost, won=counts.won)) if copies else exact
        return math.erfc(-exchangeable.z_pass(counts, self._tolerated) / math.sqrt(2)) / 2

    def _decide(self, counts: Tally, look: int) -> Outcome | None:
        if self._crossed(self._alpha / self._cells):
            return Outcome.FAIL
        safe = sequential.boundary(PASS_ALPHA, look, looks=len(self.chunks), shape=self._pass_shape)
        if exchangeable.z_pass(counts, self._margin) >= safe and not self._crossed(self._alpha):
            return Outcome.PASS
        return Outcome.INCONCLUSIVE if look == len(self.chunks) else None

    def _crossed(self, alpha: float) -> bool:
        return any(p <= self._nominal(alpha, look) for look, p in enumerate(self._ps, 1))

    def _nominal(self, alpha: float, look: int) -> float:
        """The exact p-value that crosses the boundary at this look."""
        return math.erfc(sequential.boundary(alpha, look, looks=len(self.chunks)) / math.sqrt(2)) / 2

    def _verdict(self, outcome: Outcome, counts: Tally, look: int) -> Verdict:
        n, alpha = counts.n, self._alpha / self._cells
        estimate, error = exchangeable.drop(counts)
        highest = exchangeable.drop_upper_bound(counts, 0.975)
        interval = f"95 % interval {100 * (estimate - _INTERVAL_Z * error):+.2f} to {100 * highest:+.2f}"
        low, high = paired.wilson_interval(successes=counts.right_now, n=n)
        before = 100 * counts.right_before / counts.runs / n
        worst, ruled_out = exchangeable.drop_upper_bound(counts, _PASS_CONFIDENCE), f"one-sided, {_PASS_CONFIDENCE:.0%} confidence"
        discordance = self._recorded.discordance(self._gate)
        shown = (counts.lost + counts.won) / n if discordance is None else discordance
        seen = exchangeable.smallest_detectable_drop(n, counts.runs, shown, self._nominal(alpha, look))
        power = f"a drop of {points(seen)} (80 % power at n={n:,} and {shown:.1%} discordance)"
        if 100 * seen > before:
            power = f"none: only {before:.1f} % were right in the recorded runs, and it takes {power}"
        measurements = (
            Measurement(
                "accuracy now", 100 * counts.right_now / n, "%", n, f"95 % interval {100 * low:.1f} to {100 * high:.1f}", before
            ),
            Measurement("accuracy recorded", before, "%", n, f"mean of {counts.runs} run{'s' * (counts.runs > 1)}, same questions"),
            Measurement("drop", 100 * estimate, "points", n, interval, baseline=0.0),
            Measurement("lost", counts.lost, "questions", n, "right in most recorded runs, wrong now"),
            Measurement("won", counts.won, "questions", n, "wrong in most recorded runs, right now"),
            Measurement("p-value", self._ps[-1], n=counts.informative, spread=self._method),
            Measurement("sequential p-value", self.p_value, spread=f"look {look} of {len(self.chunks)}", limit=alpha),
            Measurement("e-value", math.exp(min(self.log_e, 700.0)), spread="evidence of a drop; adds up over past runs"),
            Measurement("largest drop not ruled out", 100 * worst, "points", n, ruled_out, limit=100 * self._margin),
            Measurement("questions asked", n, f"of {len(self.order):,}"),
        )
        return Verdict(
            outcome=outcome,
            claim=self._claim,
            key=f"{100 * counts.right_now / n:.1f} %",
            measurements=measurements,
            threshold=self._threshold,
            threshold_source=self._source,
            smallest_detectable=power,
            advice=self._advice(outcome, shown),
            details=self._details(counts),
        )

    @property
    def _claim(self) -> str:
        return (
            f"accuracy ({self._gate}) has not dropped by {points(self._margin)} or more against the baseline on the same questions"
        )

    @property
    def _source(self) -> str:
        return f"{_COPIES if self._recorded.are_near_copies(self._gate) else _EXACT}; Wang-Tsiatis and Pocock boundaries"

    @property
    def _method(self) -> str:
        return f"of a drop beyond {points(self._tolerated)}" if self._tolerated else "exact, over the answers so far"

    @property
    def _threshold(self) -> str:
        share = f" / {self._cells} cells" if self._cells > 1 else ""
        beyond = f" of a drop beyond {points(self._tolerated)}" if self._tolerated else ""
        fail = f"FAIL if sequential p{beyond} <= {self._alpha:g}{share}"
        return (
            f"{fail}; PASS if a drop of {points(self._margin)} is ruled out with {_PASS_CONFIDENCE:.0%} confidence over all looks"
        )

    def _advice(self, outcome: Outcome, discordance: float) -> str:
        if outcome is Outcome.PASS:
            return ""
        if outcome is Outcome.FAIL:
            return "read the first lost questions side by side; if the change is meant and accepted, record a new baseline"
        if self._cells > 1 and self._crossed(self._alpha):
            return f"evidence of a drop that {self._cells} cells together do not make certain: run this cell again on its own"
        supported = exchangeable.smallest_margin(len(self.order), self._recorded.runs, discordance, len(self.chunks))
        if supported > self._margin:
            return f"ask more questions, record more runs, or accept a margin of {points(supported, up=True)}"
        return "run again: the evidence lies between a drop and none; the past runs' e-values add up"

    def _details(self, counts: Tally) -> tuple[str, ...]:
        change = 100 * (counts.right_now - counts.right_before / counts.runs) / counts.n
        before = f"{counts.right_before / counts.runs:,.6g}"
        lines = [f"accuracy went from {before} to {counts.right_now:,} of {counts.n:,} ({change:+.2f} points)"]
        if self._lost:
            lines.append(f"lost: {first_ids(self._lost)}")
        return tuple(lines)

    def _unpaired(self, missing: list[str], asked: int) -> Verdict:
        line = f"{asked:,} answers, but none to {len(missing):,} of the recorded questions: {first_ids(missing)}"
        return Verdict(
            outcome=Outcome.INVALID,
            claim=self._claim,
            key="no comparison",
            measurements=(),
            threshold=self._threshold,
            threshold_source=self._source,
            smallest_detectable="none: nothing was compared",
            advice="ask the questions of the baseline in its order (same dataset and seed), or record a new baseline",
            details=(line,),
        )


def check_accuracy_at_once(
    *,
    answers: Mapping[str, Answer],
    recorded: Recorded,
    gate: Gate = "flexible",
    alpha: float = ALPHA,
    cells: int = 1,
    margin: float = MARGIN,
) -> Verdict:
    """One look at all answers, with no price for looks not taken: the whole order, or its first ``len(answers)`` questions.

    INVALID where one of those has no answer.

    Raises:
        BadInputError: no answers.
    """
    if not answers:
        raise BadInputError("no question was answered: look at the dataset and at how many questions were asked for")
    count = min(len(answers), len(recorded.order))
    judge = AccuracyTest(recorded, gate=gate, alpha=alpha, cells=cells, margin=margin, questions=count, looks=1)
    # Whatever stands beside the recorded questions is no part of the comparison; what is missing makes it INVALID.
    asked = {name: answers[name] for name in judge.order} if all(name in answers for name in judge.order) else dict(answers)
    verdict = judge.look(dict(list(asked.items())[:count]))
    assert verdict is not None, "the last look has a verdict"  # noqa: S101 - tells the type checker
    return verdict


def plan_margin(recorded: Recorded, margin: float, *, gate: Gate = "flexible", questions: int | None = None) -> float:
    """The margin, if ``questions`` of the record (None: all) can support it: a run without a drop passes in nine of ten cases.

    With one recorded run, whose noise is unknown, a discordance of 3 % is planned for (docs/methods.md#discordance).

    Raises:
        BadInputError: they cannot; the message names the smallest margin that they can. Or the record is one that shows nothing:
            fewer right answers than a drop takes away, or most answers cut off or malformed.
    """
    n = len(recorded.order[:questions])
    measured = recorded.discordance(gate)
    discordance = PLANNED_DISCORDANCE if measured is None else measured
    _refuse_what_shows_nothing(recorded, gate, max(margin, exchangeable.smallest_detectable_drop(n, recorded.runs, discordance)))
    smallest = exchangeable.smallest_margin(n, recorded.runs, discordance)
    if margin >= smallest:
        return margin
    known = f"{discordance:.1%} discordance" + " (planned for: one run cannot tell)" * (measured is None)
    raise BadInputError(
        f"a margin of {points(margin)} cannot be told from noise with {n:,} questions, {recorded.runs} recorded "
        f"run{'s' * (recorded.runs > 1)} and {known}; the smallest that can: {points(smallest, up=True)}. "
        "Accept that margin, or record more questions or runs."
    )


def _refuse_what_shows_nothing(recorded: Recorded, gate: Gate, lost: float) -> None:
    """Raise where less than ``lost``, a share, could be lost, or where more than half of the answers are cut off or malformed."""
    way_out = "look at the answers, the dataset and --gsm8k-form; nothing is recorded"
    for noun, counts in (("cut off at the token limit", recorded.truncated), ("without '#### <number>'", recorded.format_misses)):
        if (share := _share(counts, recorded.runs)) > _MOST_UNUSABLE:
            raise BadInputError(f"{share:.1%} of the answers are {noun}: {way_out}")
    if (share := _share(recorded.right(gate), recorded.runs)) < lost:
        known = f"{share:.1%} of {len(recorded.order):,} questions are answered right"
        raise BadInputError(f"{known}: no drop of {points(lost)}, the smallest to be told, can come of that; {way_out}")


def _share(counts: Mapping[str, int], runs: int) -> float:
    return sum(counts.values()) / max(1, len(counts) * runs)
