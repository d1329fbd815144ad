"""Accuracy against K recorded runs of the same questions, judged while the answers come in (docs/methods.md#accuracy)."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.accuracy.recorded import Recorded, first_ids, points
from pytest_llminfer.stats import betting, exchangeable, paired, sequential, sign_flips
from pytest_llminfer.stats.decision import ALPHA, Decision
from pytest_llminfer.stats.evalues import log_e, log_e_of_pairs
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_llminfer.families.accuracy.grading import Answer, Gate
    from pytest_llminfer.stats.exchangeable import Tally

MARGIN = 0.02
_INTERVAL_Z = NormalDist().inv_cdf(0.975)
_PASS_CONFIDENCE = 1 - betting.PASS_ALPHA
_SOURCE = "exact tests of exchangeability and of sign flips, Wang-Tsiatis boundary; betting on the drop (docs/methods.md#accuracy)"
_RULES: dict[Gate, str] = {"flexible": "the last number", "strict": "the number after ####"}
_OUTCOMES = {"fail": Outcome.FAIL, "pass": Outcome.PASS, "undecided": Outcome.INCONCLUSIVE}


class AccuracyTest:
    """A sequential judge of one run: FAIL on evidence of a drop, PASS once ``margin`` is ruled out, INCONCLUSIVE at the end.

    recorded: the baseline; its ``order`` is that in which questions are asked. gate: the reading that counts. alpha: the false
    alarms of FAIL over all looks and over ``cells`` tests of one session together (each is held to alpha / cells; a caller may
    correct :attr:`p_value` over cells by Holm instead). margin: the drop (a share) that PASS rules out, wrongly in at most 5 % of
    runs. questions: how many are asked at most, the first of the order; None for all. looks: of FAIL; 1 judges once, at the end.
    tolerated: a drop (a share) that is no regression: FAIL only where a larger one is proven, by the normal approximation of the
    paired drop.

    Raises:
        ValueError: no questions, or fewer than one look or cell.
    """

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
        self._decision = Decision(len(self.order), margin=margin, alpha=alpha, cells=cells, tolerated=tolerated, looks=looks)
        self.chunks = self._decision.looks
        self._recorded, self._gate, self._margin, self._cells, self._alpha = recorded, gate, margin, cells, alpha
        self._right_before, self._tolerated = recorded.right(gate), tolerated
        self._missed, self._held = [0] * (recorded.runs + 1), [0] * (recorded.runs + 1)
        self._lost: list[str] = []
        self._asked = 0
        self.log_e = 0.0

    @property
    def p_value(self) -> float:
        """The smallest alpha at which the run would have failed at one of the looks so far; 1.0 before the first."""
        return self._decision.p_value

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
        outcome = self._decision.judge(counts)
        # The runs of an engine that repeats itself show no noise: what changed counts as pairs too.
        self.log_e = min(log_e(counts), log_e_of_pairs(counts.lost, counts.won))
        readings = {name: answers_so_far[name] for name in self.order[:asked]}
        return self._verdict(_OUTCOMES[outcome], counts, readings) if outcome else None

    def _verdict(self, outcome: Outcome, counts: Tally, answers: Mapping[str, Answer]) -> Verdict:
        n, decision = counts.n, self._decision
        estimate, error = exchangeable.drop(counts)
        highest = exchangeable.drop_upper_bound(counts, 0.975)
        interval = f"95 % interval {100 * (estimate - _INTERVAL_Z * error):+.2f} to {100 * highest:+.2f}"
        low, high = paired.wilson_interval(successes=counts.right_now, n=n)
        before = 100 * counts.right_before / counts.runs / n
        ruled_out = f"one-sided, {_PASS_CONFIDENCE:.0%} confidence over all looks"
        discordance = self._recorded.discordance(self._gate)
        shown = (counts.lost + counts.won) / n if discordance is None else discordance
        seen = sign_flips.smallest_detectable_drop(n, counts.runs, shown, decision.nominal)
        power = f"a drop of {points(seen)} (80 % power at n={n:,} and {shown:.1%} discordance)"
        if 100 * seen > before:
            power = f"none: only {before:.1f} % were right in the recorded runs, and it takes {power}"
        measurements = (
            Measurement(
                "accuracy now", 100 * counts.right_now / n, "%", n, f"95 % interval {100 * low:.1f} to {100 * high:.1f}", before
            ),
            Measurement("accuracy recorded", before, "%", n, f"mean of {counts.runs} run{'s' * (counts.runs > 1)}, same questions"),
            *self._readings(answers),
            Measurement("drop", 100 * estimate, "points", n, interval, baseline=0.0),
            Measurement("lost", counts.lost, "questions", n, "right in most recorded runs, wrong now"),
            Measurement("won", counts.won, "questions", n, "wrong in most recorded runs, right now"),
            Measurement("p-value", decision.last_p_value, n=counts.informative, spread=self._method),
            Measurement("sequential p-value", self.p_value, spread=decision.looked, limit=decision.alpha),
            Measurement("e-value", math.exp(min(self.log_e, 700.0)), spread="evidence of a drop; adds up over past runs"),
            Measurement(
                "largest drop not ruled out", 100 * decision.largest_drop, "points", n, ruled_out, limit=100 * self._margin
            ),
            Measurement("questions asked", n, f"of {len(self.order):,}"),
        )
        return Verdict(
            outcome=outcome,
            claim=self._claim,
            key=f"{100 * counts.right_now / n:.1f} %",
            measurements=measurements,
            threshold=self._threshold,
            threshold_source=_SOURCE,
            smallest_detectable=power,
            advice=self._advice(outcome, shown),
            details=self._details(counts),
        )

    def _readings(self, answers: Mapping[str, Answer]) -> Iterator[Measurement]:
        """Both readings beside each other: an answer that only one of them finds right is a matter of form."""
        n = len(answers)
        for gate, rule in _RULES.items():
            recorded = self._recorded.right(gate)
            before = 100 * sum(recorded[name] for name in answers) / self._recorded.runs / n
            now = 100 * sum(getattr(answer, gate) for answer in answers.values()) / n
            counts = ", which counts" * (gate == self._gate)
            yield Measurement(f"right by the {gate} reading", now, "%", n, f"{rule}{counts}", before)

    @property
    def _claim(self) -> str:
        return (
            f"accuracy ({self._gate}) has not dropped by {points(self._margin)} or more against the baseline on the same questions"
        )

    @property
    def _method(self) -> str:
        return f"of a drop beyond {points(self._tolerated)}" if self._tolerated else "exact, over the answers up to its last look"

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
            return "read the answers to the lost questions; if the change is meant and accepted, record a new baseline"
        if self._cells > 1 and self._decision.is_suspicious:
            return f"evidence of a drop that {self._cells} cells together do not make certain: run this cell again on its own"
        supported = betting.smallest_margin(len(self.order), self._recorded.runs, discordance)
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
            threshold_source=_SOURCE,
            smallest_detectable="none: nothing was compared",
            advice="ask the questions of the baseline in its order (same dataset and seed), or record a new baseline",
            details=(line,),
        )


def with_answers(verdict: Verdict, file: str) -> Verdict:
    """The verdict, and where the answers can be read that it tells to look at; file: empty where they are not kept."""
    where = f"the answers are in {file}" if file else "--llminfer-report=DIR keeps the answers in DIR/answers.jsonl"
    return replace(verdict, advice=f"{verdict.advice}; {where}") if verdict.advice else verdict


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
