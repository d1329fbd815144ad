"""Throughput against recorded sessions: calibrated, by a prediction bound, and no louder than the record allows."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from pytest_llminfer.observations.engine import Calibration
from pytest_llminfer.stats.noise import lower_prediction_bound, median_and_mad
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Yardstick = Literal["matmul_flops_per_second", "copy_bytes_per_second", "python_loops_per_second"]

CUDA_DRIFT = 0.03
CPU_DRIFT = 0.50
CUDA_SHORTFALL = 0.10
CPU_SHORTFALL = 0.50
"""How far the device's own rate may lie below that of the slowest recorded session: beyond it, dividing by the rate would
excuse a slowdown of the engine's own (a slower matrix product in a new build, fewer threads), and nothing can be said."""
ENOUGH_SESSIONS = 5
_FEW_DROP = 0.20
_FEW_SLACK = 0.05
_SUSPICION = (0.05, 0.01)
_FAILURE = (0.01, 0.02)
"""False alarms of the bound, and its least distance below the mean as a share (docs/methods.md#prediction-bound)."""
_AGAIN = "start the engine afresh at least four times and measure again"


@dataclass(frozen=True, slots=True)
class Session:
    """A recorded session.

    Attributes:
        tokens_per_second: Median over its rounds.
        rounds: How many rounds there were.
        calibration: The device's own rates beside it, geometric means of those before and after.
    """

    tokens_per_second: float
    rounds: int
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON for a baseline."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Session:
        """The inverse of :meth:`to_dict`."""
        return cls(float(entry["tokens_per_second"]), int(entry["rounds"]), Calibration.from_message(entry["calibration"]))


def summarise_session(*, rounds: Sequence[float], before: Calibration, after: Calibration) -> Session:
    """What is recorded of this session: the calibration is the geometric mean of the one before and the one after.

    Raises:
        ValueError: no rounds.
    """
    between = {name: math.sqrt(value * getattr(after, name)) for name, value in asdict(before).items()}
    return Session(median_and_mad(rounds)[0], len(rounds), Calibration(**between))


def drift(*, before: Calibration, after: Calibration, yardstick: Yardstick) -> float:
    """How far the device's own rate moved during the measurement, as a share either way."""
    return abs(math.expm1(math.log(getattr(after, yardstick) / getattr(before, yardstick))))


def shortfall(session: Session, sessions: Sequence[Session], yardstick: Yardstick) -> float:
    """How far the device's own rate lies below the slowest recorded one, as a share; 0 where it does not."""
    slowest = min((getattr(entry.calibration, yardstick) for entry in sessions), default=0.0)
    return max(0.0, 1 - getattr(session.calibration, yardstick) / slowest) if slowest else 0.0


def is_suspicious(*, session: Session, sessions: Sequence[Session], yardstick: Yardstick) -> bool:
    """Suspicion (docs/methods.md#prediction-bound): slower than 19 of 20 clean sessions, so worth four fresh starts.

    With fewer than five recorded sessions: more than 5 % slower than the slowest of them.
    """
    if len(sessions) < ENOUGH_SESSIONS:
        return bool(sessions) and _relative(session, sessions, yardstick).slowest < 1 - _FEW_SLACK
    return _log_rate(session, yardstick) < _bound(sessions, yardstick, _SUSPICION)


def check_throughput(
    *,
    rounds: Sequence[float],
    before: Calibration,
    after: Calibration,
    sessions: Sequence[Session],
    metric: str,
    yardstick: Yardstick,
    drift_bound: float = CUDA_DRIFT,
    shortfall_bound: float = CUDA_SHORTFALL,
) -> Verdict:
    """Whether a rate is what the recorded sessions lead one to expect of this device, as fast as it is right now.

    rounds: tokens per second of each round, after warm-up. before, after: the device's own rates around them. sessions: the
    record, same hardware. metric: what was measured, in words ("decode throughput, batch 8"). yardstick: the rate of
    the device that bounds the metric; both sides are divided by it. drift_bound: CUDA_DRIFT or CPU_DRIFT; shortfall_bound:
    CUDA_SHORTFALL or CPU_SHORTFALL.

    INVALID if the yardstick drifted more than that, or lies that far below its slowest record. At or above the recorded
    median: PASS whatever the number of sessions. With five sessions or more: FAIL below the 1 % prediction bound (at least
    2 % off the mean), INCONCLUSIVE below the 5 % one (at least 1 %): start afresh, measure again. With fewer, only more
    than 20 % below the median can FAIL, more than 5 % below the slowest session is INCONCLUSIVE, and PASS claims no
    more than 20 %.
    """
    if not rounds or min(rounds) <= 0:
        return _nothing(metric, rounds)
    session = summarise_session(rounds=rounds, before=before, after=after)
    moved = drift(before=before, after=after, yardstick=yardstick)
    relative = _relative(session, sessions, yardstick) if sessions else None
    slower = shortfall(session, sessions, yardstick)
    if moved > drift_bound:
        outcome, advice = Outcome.INVALID, "free the device of other work, let it cool, and measure again"
        reason = f"the device's own rate moved by {moved:.1%} during the measurement ({yardstick}, at most {drift_bound:.0%})"
    elif slower > shortfall_bound:
        outcome = Outcome.INVALID
        advice = "look at threads, clocks, throttling and the framework's build; on another machine record a baseline of its own"
        reason = (
            f"the device's own rate is {slower:.0%} below the slowest recorded one ({yardstick}, at most {shortfall_bound:.0%})"
        )
    elif relative is None:
        outcome, reason, advice = Outcome.INCONCLUSIVE, "no recorded session to compare with", "record a baseline"
    else:
        outcome, reason, advice = _decide(session, sessions, yardstick, relative)
    drifted = f"{yardstick}, before and after; at most {drift_bound:.0%}"
    measurements = [
        replace(_rate(metric, rounds), baseline=median(entry.tokens_per_second for entry in sessions) if sessions else None),
        Measurement("device drift", 100 * moved, "%", 2, drifted, limit=100 * drift_bound),
    ]
    if relative:
        spread = f"calibrated; slowest recorded session {100 * relative.slowest_session:.1f} %, raw {100 * relative.raw:.1f} %"
        limit = 100 * _least_share(sessions, yardstick)
        measurements.append(Measurement("of the recorded median", 100 * relative.median, "%", len(sessions), spread, 100.0, limit))
    threshold, smallest = _threshold(sessions, yardstick)
    return Verdict(
        outcome=outcome,
        claim=f"{metric} has not dropped by more than {smallest} against the recorded sessions",
        key=f"{session.tokens_per_second:,.0f} tok/s",
        measurements=tuple(measurements),
        threshold=threshold,
        threshold_source=f"{len(sessions)} recorded session{'s' * (len(sessions) != 1)}, divided by {yardstick}",
        smallest_detectable=f"a drop of {smallest}",
        advice=advice,
        details=(reason,) if reason else (),
    )


@dataclass(frozen=True, slots=True)
class _Relative:
    """This session's rate as a share of recorded rates, calibrated unless said otherwise.

    Attributes:
        median: Share of the recorded median.
        slowest: Share of the slowest recorded session.
        slowest_session: The slowest recorded session as a share of the recorded median.
        raw: Share of the recorded median without calibration.
    """

    median: float
    slowest: float
    slowest_session: float
    raw: float


def _log_rate(session: Session, yardstick: Yardstick) -> float:
    return math.log(session.tokens_per_second / getattr(session.calibration, yardstick))


def _relative(session: Session, sessions: Sequence[Session], yardstick: Yardstick) -> _Relative:
    own, recorded = _log_rate(session, yardstick), [_log_rate(entry, yardstick) for entry in sessions]
    centre, slowest = median(recorded), min(recorded)
    raw = session.tokens_per_second / median(entry.tokens_per_second for entry in sessions)
    return _Relative(math.exp(own - centre), math.exp(own - slowest), math.exp(slowest - centre), raw)


def _bound(sessions: Sequence[Session], yardstick: Yardstick, stage: tuple[float, float]) -> float:
    alpha, floor = stage
    return lower_prediction_bound([_log_rate(entry, yardstick) for entry in sessions], alpha=alpha, floor=-math.log1p(-floor))


def _decide(session: Session, sessions: Sequence[Session], yardstick: Yardstick, relative: _Relative) -> tuple[Outcome, str, str]:
    """Outcome, reason and advice of a fair comparison."""
    if relative.median >= 1:
        return Outcome.PASS, "", ""
    if len(sessions) < ENOUGH_SESSIONS:
        return _decide_with_few(len(sessions), relative)
    rate = _log_rate(session, yardstick)
    if rate < _bound(sessions, yardstick, _FAILURE):
        advice = f"{_AGAIN}; if it stays, look at what changed, or record the new speed if it is meant"
        return Outcome.FAIL, _share(relative), advice
    if rate < _bound(sessions, yardstick, _SUSPICION):
        return Outcome.INCONCLUSIVE, f"{_share(relative)}: slower than 19 of 20 clean sessions would be", _AGAIN
    return Outcome.PASS, "", ""


def _decide_with_few(n: int, relative: _Relative) -> tuple[Outcome, str, str]:
    more = f"the baseline has {n} session{'s' * (n != 1)}; it needs {ENOUGH_SESSIONS} to judge less than {_FEW_DROP:.0%}"
    if relative.median < 1 - _FEW_DROP:
        return Outcome.FAIL, _share(relative), f"{_AGAIN}; {more}"
    if relative.slowest < 1 - _FEW_SLACK:
        reason = f"{_share(relative)}, and more than {_FEW_SLACK:.0%} slower than the slowest session"
        return Outcome.INCONCLUSIVE, reason, f"{_AGAIN}; {more}"
    return Outcome.PASS, "", ""


def _share(relative: _Relative) -> str:
    return f"{relative.median:.1%} of the recorded median, after calibration"


def _threshold(sessions: Sequence[Session], yardstick: Yardstick) -> tuple[str, str]:
    """What separates PASS from FAIL, and the drop against the record that FAIL needs."""
    if len(sessions) < ENOUGH_SESSIONS:
        return f"{1 - _FEW_DROP:.0%} of the recorded median", f"{_FEW_DROP:.0%}"
    centre = fmean(_log_rate(entry, yardstick) for entry in sessions)
    drop = -math.expm1(_bound(sessions, yardstick, _FAILURE) - centre)
    return f"{1 - drop:.1%} of the recorded mean (1 % prediction bound, at least {_FAILURE[1]:.0%} below)", f"{drop:.1%}"


def _least_share(sessions: Sequence[Session], yardstick: Yardstick) -> float:
    """The share of the recorded median below which a fair comparison is a FAIL."""
    if len(sessions) < ENOUGH_SESSIONS:
        return 1 - _FEW_DROP
    return math.exp(_bound(sessions, yardstick, _FAILURE) - median(_log_rate(entry, yardstick) for entry in sessions))


def _rate(metric: str, rounds: Sequence[float]) -> Measurement:
    centre, deviation = median_and_mad(rounds)
    return Measurement(metric, centre, "tokens/s", len(rounds), f"MAD {deviation:,.3g} tokens/s")


def _nothing(metric: str, rounds: Sequence[float]) -> Verdict:
    return Verdict(
        outcome=Outcome.FAIL,
        claim=f"{metric} was measured",
        key="nothing measured",
        measurements=(Measurement("rounds", len(rounds), "rounds"),),
        threshold="at least one round, each faster than 0 tokens/s",
        threshold_source="a rate",
        smallest_detectable="exact",
        advice="look at why the rounds produced no tokens",
        details=("nothing was compared: no rounds, or a round without tokens",),
    )
