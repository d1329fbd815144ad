"""Accuracy over many past runs: a drop too small for one run, proven by all of them together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_llminfer.baselines.run_history import MENDED, NOT_ASKED, RIGHT, WRONG
from pytest_llminfer.errors import BaselineError
from pytest_llminfer.stats.evalues import drift_verdict, log_e_of_pairs
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
    "of 1,319 questions a run, d = 3 % and 4 recorded runs: a drift of 1 point within 90 runs in 70 % of histories, at run 8 in "
    "the median; of 2 points at the first run (benchmarks/accuracy_power.py)"
)
_READ: dict[str, bool | None] = {RIGHT: True, WRONG: False, NOT_ASKED: None}

_ALONE = "one past run does not prove a drop in accuracy"


def check_drift(*, recorded: Recorded, past_runs: Sequence[str], alpha: float = ALPHA) -> Verdict:
    """Whether the past runs so far prove a drop against the recorded runs: FAIL with a false alarm in at most ``alpha`` of
    histories.

    past_runs: of each, oldest first, a character a question in the record's order, as a run history holds them. The pooled e-value
    of all past runs against the record (:func:`pytest_llminfer.stats.evalues.drift_verdict`): a product of e-values of single runs
    would count the noise of the one record anew every time. Where the recorded runs are nearly copies, or there is one alone,
    which may be that of an engine that repeats itself, the questions lost and won for good have to prove a drop as pairs too (at d
    = 3 % that leaves one run 34 of 60 simulated histories with a drift of 2 points proven within 64 past runs instead of 48, of 3
    points 56 instead of 60).

    Raises:
        BaselineError: a past run with another number of questions, or with other characters.
    """
    counts = list(recorded.flexible.values())
    if any(len(past_run) != len(counts) or set(past_run) - _READ.keys() for past_run in past_runs):
        raise BaselineError(
            f"a past run in the run history does not have one of {', '.join(_READ)} for each of {len(counts):,} questions"
        )
    outcomes = [[_READ[mark] for mark in past_run] for past_run in past_runs]
    found = drift_verdict(counts, recorded.runs, outcomes, alpha)
    proven = found.proven_at is not None
    pairs = ""
    if recorded.runs == 1 or recorded.are_near_copies("flexible"):
        # One run, or runs that are copies, show no noise: what changed for good counts once a question, not once a past run.
        lost, won = _changed(counts, recorded.runs, outcomes)
        evidence = log_e_of_pairs(lost, won)
        proven = proven and evidence >= found.needed
        pairs = f"{lost} questions lost and {won} won for good: {evidence:.2f} nats as pairs"
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
            Measurement("evidence needed", found.needed, "nats", None, "of the pairs too" * bool(pairs)),
        ),
        threshold=f"FAIL if the pooled e-value reaches {math.exp(found.needed):,.0f} at a judged run ({alpha:g} in all)",
        threshold_source="e-values of exchangeability with the recorded runs (docs/methods.md#run-history)",
        smallest_detectable=_SEEN,
        advice=_ADVICE,
        details=(f"proven at past run {found.proven_at}",) * proven + (pairs,) * bool(pairs),
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
