"""Runs that cannot be compared with a record, whatever they answered: INVALID, with what to mend."""

from __future__ import annotations

from pytest_llminfer.verdict import Outcome, Verdict


def check_transport(*, error: str, asked: int) -> Verdict:
    """The verdict on a run of which a request got no answer: an error must not be graded as a wrong answer."""
    return _invalid(
        claim="every question was answered",
        line=error,
        threshold=f"no error in {asked:,} requests",
        advice="look at the server's log; ask fewer questions at a time (engine argument 'concurrency'), or wait and run again",
    )


def check_questions(*, asked: int, recorded: int) -> Verdict:
    """The verdict on a run that was told to ask more questions than are recorded."""
    return _invalid(
        claim="the questions asked are among those recorded",
        line=f"{asked:,} questions now, {recorded:,} in the baseline",
        threshold=f"at most {recorded:,} questions",
        advice=f"say --gsm8k-questions={recorded} or fewer, or record a new baseline with --update-baselines",
    )


def _invalid(*, claim: str, line: str, threshold: str, advice: str) -> Verdict:
    return Verdict(
        outcome=Outcome.INVALID,
        claim=claim,
        key="not comparable",
        measurements=(),
        threshold=threshold,
        threshold_source="a comparison of equal questions",
        smallest_detectable="exact",
        advice=advice,
        details=(line,),
    )
