"""Accuracy over many past runs: a drop too small for one run, proven by all of them together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_llminfer.baselines.run_history import MENDED, NOT_ASKED, RIGHT, WRONG
from pytest_llminfer.errors import BaselineError
from pytest_llminfer.stats.evalues import drift_verdict
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.families.accuracy.recorded import Recorded

ALPHA = 0.01
_ADVICE = (
    "compare versions in the run history: the first run after which accuracy stays lower names the change; once it is mended, "
    f'later runs outweigh it, and the line {{"{MENDED}": "<what was done>"}}, appended to the run history, ends the runs above it'
)
_SEEN = (
    "of 1,319 questions a run, d = 3 % and 4 recorded runs: a drift of 1 point within 90 runs in 42 % of histories, of 2 points in "
    "97 %, at the first run in the median (benchmarks/accuracy_power.py)"
)
_READ: dict[str, bool | None] = {RIGHT: True, WRONG: False, NOT_ASKED: None}

_ALONE = "one past run does not prove a drop in accuracy"


def check_drift(*, recorded: Recorded, past_runs: Sequence[str], alpha: float = ALPHA) -> Verdict:
    """Whether the past runs so far prove a drop against the recorded runs: FAIL with a false alarm in at most ``alpha`` of
    histories.

    past_runs: of each, oldest first, a character a question in the record's order, as a run history holds them. The pooled e-value
    of all past runs against the record, and the questions, each counted once, must both prove it
    (:func:`pytest_llminfer.stats.evalues.drift_verdict`): a product of e-values of single runs would count the noise of the one
    record anew every time, and an engine that repeats itself one draw.

    Raises:
        BaselineError: a past run with another number of questions, or with other characters.
    """
    counts = list(recorded.right(recorded.gate).values())
    if any(len(past_run) != len(counts) or set(past_run) - _READ.keys() for past_run in past_runs):
        raise BaselineError(
            f"a past run in the run history does not have one of {', '.join(_READ)} for each of {len(counts):,} questions"
        )
    outcomes = [[_READ[mark] for mark in past_run] for past_run in past_runs]
    found = drift_verdict(counts, recorded.runs, outcomes, alpha)
    proven = found.proven_at is not None
    lost, won = _changed(counts, recorded.runs, outcomes)
    changed = f"{lost} questions lost and {won} won for good"
    asked = sum(len(past_run) - past_run.count(NOT_ASKED) for past_run in past_runs)
    right = sum(past_run.count(RIGHT) for past_run in past_runs)
    before = sum(counts) / len(counts) / recorded.runs
    now = right / asked if asked else math.nan
    return Verdict(
        outcome=Outcome.FAIL if proven else Outcome.PASS,
        claim=f"{found.past_runs} past runs together do not prove a drop in accuracy" if found.past_runs > 1 else _ALONE,
        key=f"{100 * now:.1f} % in {found.past_runs} past run{'s' * (found.past_runs != 1)}",
        measurements=(
            Measurement("past runs", found.past_runs, "", None, f"judged at {', '.join(map(str, found.judged_at))}"),
            Measurement("accuracy over the past runs", 100 * now, "%", asked, baseline=100 * before),
            Measurement("accuracy recorded", 100 * before, "%", len(counts), f"mean of {recorded.runs} runs"),
            Measurement("evidence of a drop", found.log_e, "nats", None, "logarithm of the pooled e-value", limit=found.needed),
            Measurement(
                "evidence of the questions",
                -found.log_p,
                "nats",
                None,
                f"sign flips, each question once: {changed}",
                limit=found.needed,
            ),
        ),
        threshold=f"FAIL if both kinds of evidence reach {found.needed:.2f} nats at a judged run ({alpha:g} in all)",
        threshold_source="pooled e-value of exchangeability, sign flips of the questions (docs/methods.md#run-history)",
        smallest_detectable=_SEEN,
        advice=_ADVICE,
        details=(f"proven at past run {found.proven_at}",) * proven + (changed,),
    )


def _changed(counts: Sequence[int], runs: int, past_runs: Sequence[Sequence[bool | None]]) -> tuple[int, int]:
    """Questions that most recorded runs have right and most past runs wrong, and the other way round."""
    lost = won = 0
    for position, count in enumerate(counts):
        seen = [past_run[position] for past_run in past_runs if past_run[position] is not None]
        before, now = 2 * count - runs, 2 * sum(map(bool, seen)) - len(seen)
        lost += before > 0 > now
        won += before < 0 < now
    return lost, won
