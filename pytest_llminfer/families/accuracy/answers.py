"""Whether a run's answers may be compared with the recorded ones at all, whatever their accuracy.

A rise in cut-off answers or in answers without ``#### <number>``, or another answer length, says that the questions were put
in another way (template, stop tokens, token limit, sampling): the comparison is INVALID, not failed.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from pytest_llminfer.families.accuracy.recorded import first_ids, points
from pytest_llminfer.stats import exchangeable, flips
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.families.accuracy.grading import Answer, Gate
    from pytest_llminfer.families.accuracy.recorded import Recorded

ALPHA = 0.001
SMALLEST_RISE = 0.01
"""A significant rise below this share of the answers is not held against a run."""

LENGTH_RATIO = (0.9, 1.1)
_ERRORS = 3.0
"""Standard errors by which the length of a part of the questions may stray from that of all of them."""

_UNPAIRED = "ask the questions of the baseline (same dataset and seed), or record a new baseline"


def check_truncation(*, answers: Mapping[str, Answer], recorded: Recorded, alpha: float = ALPHA) -> Verdict:
    """Whether no more answers are cut off at the token limit than in the recorded runs; INVALID where more are.

    answers: by question id, all or some of the recorded questions. The exact test of exchangeability at ``alpha``, and a rise of
    at least 1 point.
    """
    advice = "look at max_tokens, the stop tokens and the context length; a run that talks on was given another prompt or sampling"
    cut = {name: answer.truncated for name, answer in answers.items()}
    return _rise("answers cut off at the token limit", cut, recorded.truncated, recorded.runs, alpha, advice)


def check_format(*, answers: Mapping[str, Answer], recorded: Recorded, alpha: float = ALPHA) -> Verdict:
    """Whether no more answers lack ``#### <number>`` than in the recorded runs; INVALID where more do. As check_truncation."""
    advice = "look at the chat template, the prompt's wording and the stop tokens; read the first of these answers"
    missed = {name: answer.format_miss for name, answer in answers.items()}
    return _rise("answers without '#### <number>'", missed, recorded.format_misses, recorded.runs, alpha, advice)


def check_length(*, answers: Mapping[str, Answer], recorded: Recorded) -> Verdict:
    """Whether the mean length of an answer in tokens is 0.9 to 1.1 of the recorded one; INVALID outside.

    Where only some of the recorded questions were asked, by three standard errors of a mean over that part (without
    replacement) more. INCONCLUSIVE where no length is recorded or none was counted now.
    """
    low, high = LENGTH_RATIO
    claim = f"the mean length of an answer is {low:g} to {high:g} times the recorded one"
    threshold, source = f"ratio {low:g} to {high:g}", "the mean length of the recorded answers"
    if problem := _unpaired(answers, recorded.flexible):
        return _invalid(claim, threshold, source, problem)
    lengths = [answer_tokens(answer) for answer in answers.values()]
    now, before, n = fmean(lengths), recorded.mean_tokens, len(lengths)
    if not before or not now:
        line = "no length is recorded" if not before else "this engine does not count the tokens of an answer"
        advice = "record a new baseline with an engine that counts tokens"
        return Verdict(Outcome.INCONCLUSIVE, claim, "no length", (), threshold, source, "none: no lengths", advice, (line,))
    ratio, error = now / before, 0.0
    if n < len(recorded.order):
        rest = 1 - n / len(recorded.order)
        error = (stdev(lengths) / before if n > 1 else ratio) * math.sqrt(rest / n)
    slack = _ERRORS * error
    fair = low - slack <= ratio <= high + slack
    spread = f"standard error {error:.3f}, as {n:,} of {len(recorded.order):,} questions were asked" if error else ""
    return Verdict(
        outcome=Outcome.PASS if fair else Outcome.INVALID,
        claim=claim,
        key=f"{ratio:.2f} x",
        measurements=(
            Measurement("mean length now", now, "tokens", n, baseline=before),
            Measurement("mean length recorded", before, "tokens", len(recorded.order), f"{recorded.runs} runs"),
            Measurement("ratio", ratio, "", n, spread, baseline=1.0, limit=high + slack if ratio >= 1 else low - slack),
        ),
        threshold=threshold,
        threshold_source=source,
        smallest_detectable=f"{high - 1 + slack:.1%} longer or {1 - low + slack:.1%} shorter",
        advice="look at the chat template, the system prompt, repetition_penalty and the stop tokens: the text itself has changed",
    )


def check_flips(*, answers: Mapping[str, Answer], recorded: Recorded, gate: Gate = "flexible", alpha: float = ALPHA) -> Verdict:
    """Whether no more outcomes changed sides, in either direction, than the recorded runs do among themselves.

    A binomial tail against the recorded self-discordance (:func:`pytest_llminfer.stats.flips.expected_share`). A warning:
    INCONCLUSIVE where too many changed, which ``--llminfer-strict`` makes fatal as it does all that is inconclusive.
    """
    claim = f"outcomes ({gate}) change sides no more often than between two recorded runs"
    threshold, source = f"p <= {alpha:g}", "binomial tail at the recorded self-discordance"
    before = recorded.right(gate)
    if problem := _unpaired(answers, before):
        return _invalid(claim, threshold, source, problem)
    now = {name: bool(getattr(answer, gate)) for name, answer in answers.items()}
    flipped = [
        name for name, right in now.items() if 2 * before[name] != recorded.runs and right != (2 * before[name] > recorded.runs)
    ]
    n, measured = len(now), recorded.discordance(gate)
    share = flips.expected_share(measured, n)
    p_value, limit = flips.flips_p_value(len(flipped), n, share), flips.flagged_from(n, share, alpha)
    origin = "measured between the recorded runs"
    if measured is None:
        origin = "planned for: one run cannot tell"
    elif share > measured:
        origin = "planned for: the recorded runs are nearly copies of each other"
    return Verdict(
        outcome=Outcome.PASS if p_value > alpha else Outcome.INCONCLUSIVE,
        claim=claim,
        key=f"{len(flipped):,} flips",
        measurements=(
            Measurement("flips", len(flipped), "questions", n, "outcome unlike that of most recorded runs", limit=limit),
            Measurement("expected share at most", 100 * share, "%", n, origin),
            Measurement("p-value", p_value, n=n, spread="exact binomial tail", limit=alpha),
        ),
        threshold=f"{threshold}, which is {limit:,} flips of {n:,}",
        threshold_source=source,
        smallest_detectable=f"{limit:,} flips ({limit / n:.1%} of the questions)",
        advice="accuracy may be unchanged on balance, but the engine computes something else: compare tokens and log-probabilities",
        details=(f"flipped: {first_ids(flipped)}",) * bool(flipped),
    )


def answer_tokens(answer: Answer) -> int:
    """The length of an answer in tokens; 0 where it was not counted."""
    return int(getattr(answer, "tokens", 0))


def _rise(noun: str, now: Mapping[str, bool], before: Mapping[str, int], runs: int, alpha: float, advice: str) -> Verdict:
    """The verdict on a rise of what should be rare; it is tallied as the wrong answer."""
    claim = f"there are no more {noun} than in the recorded runs"
    threshold = f"INVALID if p <= {alpha:g} and {points(SMALLEST_RISE)} more"
    source = "exact test of exchangeability with the recorded runs"
    if problem := _unpaired(now, before):
        return _invalid(claim, threshold, source, problem)
    spared = [runs - before[name] for name in now]
    counts = exchangeable.tally(spared, runs, [not bad for bad in now.values()])
    p_value, (rise, _) = exchangeable.p_value(counts), exchangeable.drop(counts)
    n, found = counts.n, [name for name, bad in now.items() if bad]
    share = exchangeable.self_discordance(spared, runs) if runs > 1 else (counts.lost + counts.won) / n
    seen = max(SMALLEST_RISE, exchangeable.smallest_detectable_drop(n, runs, share, alpha))
    more = [name for name in found if 2 * before[name] < runs]
    recorded = 100 * (n - counts.right_before / runs) / n
    return Verdict(
        outcome=Outcome.INVALID if p_value <= alpha and rise >= SMALLEST_RISE else Outcome.PASS,
        claim=claim,
        key=f"{100 * len(found) / n:.1f} %",
        measurements=(
            Measurement("now", 100 * len(found) / n, "%", n, f"{len(found):,} {noun}", recorded),
            Measurement("recorded", recorded, "%", n, f"mean of {runs} run{'s' * (runs > 1)}"),
            Measurement("p-value", p_value, n=counts.informative, spread="exact, one-sided", limit=alpha),
        ),
        threshold=threshold,
        threshold_source=source,
        smallest_detectable=f"a rise of {points(seen)} (80 % power at n={n:,} and {share:.1%} discordance)",
        advice=advice,
        details=(f"not so in most recorded runs: {first_ids(more)}",) * bool(more),
    )


def _unpaired(now: Mapping[str, object], before: Mapping[str, int]) -> str:
    """Why nothing can be compared; empty where every answer has its record."""
    if not now:
        return "no question was answered"
    unknown = [name for name in now if name not in before]
    return f"{len(unknown):,} of {len(now):,} answers are to questions that are not recorded: {first_ids(unknown)}" * bool(unknown)


def _invalid(claim: str, threshold: str, source: str, problem: str) -> Verdict:
    return Verdict(
        Outcome.INVALID, claim, "no comparison", (), threshold, source, "none: nothing was compared", _UNPAIRED, (problem,)
    )
