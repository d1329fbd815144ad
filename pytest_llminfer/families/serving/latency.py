"""Latency of a server against recorded sessions: time to the first token, and from one token to the next."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_llminfer.stats.noise import lower_prediction_bound, median_and_mad
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.observations.serving import Reply

REQUESTS = 20
"""The fewest requests whose median is judged."""
KEPT_SESSIONS = 40
ENOUGH_SESSIONS = 5
FEW_FACTOR = {"cpu": 3.0, "cuda": 1.5}
"""How many times the recorded median FAIL needs while fewer than five sessions show how much it varies by itself."""
LEAST_FACTOR = {"cpu": 2.0, "cuda": 1.2}
"""The same with five sessions or more, or what their spread predicts, whichever is more."""
_FALSE_ALARMS = 0.01
_METRICS = {"first_token_seconds": "time to first token", "inter_token_seconds": "time from token to token"}


@dataclass(frozen=True, slots=True)
class LatencySession:
    """A recorded session: medians over its requests.

    Attributes:
        first_token_seconds: Median time from sending a request to its first token.
        inter_token_seconds: Median over requests of the mean time from one token to the next.
        requests: How many requests were timed.
    """

    first_token_seconds: float
    inter_token_seconds: float
    requests: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON for a baseline."""
        return asdict(self)


def session_of(replies: Sequence[Reply]) -> LatencySession | None:
    """The medians over streamed replies, each with two tokens or more; None where none has."""
    firsts, betweens = _times(replies)
    return LatencySession(median(firsts), median(betweens), len(betweens)) if firsts and betweens else None


def record(replies: Sequence[Reply], previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """This session appended to those recorded so far, of which the last 39 are kept.

    Raises:
        ValueError: nothing was measured.
    """
    session = session_of(replies)
    if session is None:
        raise ValueError("no reply has two tokens: nothing is recorded")
    earlier = list(previous["sessions"]) if previous else []
    return {"sessions": [*earlier[-KEPT_SESSIONS + 1 :], session.to_dict()]}


def recorded_sessions(expected: Mapping[str, Any]) -> list[dict[str, float]]:
    """The medians of each recorded session, in seconds."""
    return [{name: float(entry[name]) for name in _METRICS} for entry in expected["sessions"]]


def check_latency(*, replies: Sequence[Reply], sessions: Sequence[Mapping[str, Any]], device: str) -> Verdict:
    """Whether neither median is longer than the recorded sessions lead one to expect; shorter never fails.

    replies: streamed, one at a time, at least 20. sessions: the record, same hardware. device: "cuda" for the narrow bound; a CPU
    and a server elsewhere, whose load and network are not known, get the wide one.
    The bound is a multiple of the recorded median: FEW_FACTOR with fewer than five sessions; with more the 1 % prediction bound
    of their logarithms (docs/methods.md#latency), and at least LEAST_FACTOR.
    """
    kind = "cuda" if device == "cuda" else "cpu"
    failed = [f"request {number}: status {reply.status} {reply.error}" for number, reply in enumerate(replies) if reply.error]
    own = session_of(replies)
    if failed or own is None or own.requests < REQUESTS:
        count = own.requests if own else 0
        return _verdict(Outcome.FAIL, (), {}, [f"only {count} of {REQUESTS} requests could be timed", *failed], 0)
    firsts, betweens = _times(replies)
    factors = {name: _factor([float(entry[name]) for entry in sessions], kind) for name in _METRICS}
    measurements, lines = [], []
    for name, values in (("first_token_seconds", firsts), ("inter_token_seconds", betweens)):
        centre, deviation = median_and_mad(values)
        measurements.append(Measurement(_METRICS[name], centre * 1000, "ms", len(values), f"MAD {deviation * 1000:.3g} ms"))
        if sessions:
            ratio = centre / median(float(entry[name]) for entry in sessions)
            measurements.append(Measurement(f"{_METRICS[name]}, of the recorded", ratio, "times", len(sessions)))
            if ratio > factors[name]:
                lines.append(f"{_METRICS[name]}: {ratio:.3g} times the recorded median, more than {factors[name]:.3g}")
    outcome = Outcome.FAIL if lines else Outcome.PASS if sessions else Outcome.INCONCLUSIVE
    return _verdict(outcome, tuple(measurements), factors, lines or ([] if sessions else ["no recorded session"]), len(sessions))


def _times(replies: Sequence[Reply]) -> tuple[list[float], list[float]]:
    timed = [reply for reply in replies if reply.inter_token_seconds is not None and reply.first_token_seconds is not None]
    return [reply.first_token_seconds or 0.0 for reply in timed], [reply.inter_token_seconds or 0.0 for reply in timed]


def _factor(recorded: Sequence[float], kind: str) -> float:
    if len(recorded) < ENOUGH_SESSIONS:
        return FEW_FACTOR[kind]
    # Of negative logarithms the lower bound is the upper one of the times.
    bound = -lower_prediction_bound([-math.log(value) for value in recorded], alpha=_FALSE_ALARMS)
    return max(LEAST_FACTOR[kind], math.exp(bound) / median(recorded))


def _verdict(
    outcome: Outcome, measurements: tuple[Measurement, ...], factors: Mapping[str, float], lines: Sequence[str], sessions: int
) -> Verdict:
    bounds = ", ".join(f"{_METRICS[name]} {factor:.3g} times" for name, factor in factors.items())
    return Verdict(
        outcome=outcome,
        claim="neither the first token nor those after it come later than in the recorded sessions",
        key=" / ".join(f"{entry.value:.3g} ms" for entry in measurements if entry.unit == "ms") or "nothing measured",
        measurements=measurements,
        threshold=f"at most the recorded median, {bounds}" if bounds else f"{REQUESTS} requests with two tokens or more each",
        threshold_source=f"{sessions} recorded session{'s' * (sessions != 1)}" if bounds else "what a median needs",
        smallest_detectable=f"{bounds} as long" if bounds else "exact",
        advice="run again on a machine that does nothing else; if it stays, look at what changed, or record it if it is meant",
        details=first_offenders(lines),
    )
