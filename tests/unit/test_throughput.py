from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.families.throughput.check import (
    CPU_DRIFT,
    CPU_SHORTFALL,
    Session,
    check_throughput,
    drift,
    is_suspicious,
    summarise_session,
)
from pytest_llminfer.observations.engine import Calibration
from pytest_llminfer.verdict import Outcome, Verdict

COPY: Any = "copy_bytes_per_second"


def device(speed: float = 1.0) -> Calibration:
    return Calibration(1e12 * speed, 1e10 * speed, 1e7 * speed)


def session(rate: float, speed: float = 1.0) -> Session:
    return Session(rate, 5, device(speed))


def recorded(n: int, spread: float = 0.01) -> list[Any]:
    """n sessions around 1,000 tokens per second, evenly spread."""
    return [session(1000 * (1 + spread * (2 * index / max(n - 1, 1) - 1))) for index in range(n)]


def check(rate: float, sessions: Any, speed: float = 1.0, after: float | None = None, **options: Any) -> Verdict:
    arguments: dict[str, Any] = {"before": device(speed), "after": device(speed if after is None else after), "yardstick": COPY}
    return check_throughput(rounds=[rate * 0.99, rate, rate * 1.01], sessions=sessions, metric="decode", **arguments, **options)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 10, 40])
@pytest.mark.parametrize("rate", [1000, 1010, 1500, 5000])
def test_at_or_above_the_median_passes_whatever_the_number_of_sessions(rate: int, n: int) -> None:
    assert check(rate, [session(1000)] * n).outcome is Outcome.PASS


@pytest.mark.parametrize("n", [1, 2, 4, 5, 10, 40])
@pytest.mark.parametrize("rate", [790, 500, 1])
def test_more_than_a_fifth_slower_fails_whatever_the_number_of_sessions(rate: int, n: int) -> None:
    assert check(rate, [session(1000)] * n).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("n", "rate", "outcome"),
    [
        (1, 951, Outcome.PASS),
        (1, 949, Outcome.INCONCLUSIVE),
        (4, 810, Outcome.INCONCLUSIVE),
        (5, 995, Outcome.PASS),
        (5, 985, Outcome.INCONCLUSIVE),  # beyond 1 %, within 2 %
        (5, 975, Outcome.FAIL),
    ],
)
def test_between_the_bounds(n: int, rate: int, outcome: Outcome) -> None:
    assert check(rate, [session(1000)] * n).outcome is outcome


def test_few_sessions_promise_no_more_than_they_can_see() -> None:
    verdict = check(960, recorded(2))
    assert verdict.outcome is Outcome.PASS
    assert verdict.claim == "decode has not dropped by more than 20% against the recorded sessions"
    assert verdict.smallest_detectable == "a drop of 20%"
    assert "it needs 5" in check(850, recorded(2)).advice


def test_the_slowest_recorded_session_is_within_expectation() -> None:
    sessions = [session(1000), session(800), session(1000)]
    assert check(801, sessions).outcome is Outcome.PASS


def test_a_noisy_record_widens_the_bound() -> None:
    assert check(950, recorded(10, spread=0.005)).outcome is Outcome.FAIL
    noisy = check(950, recorded(10, spread=0.10))
    assert noisy.outcome is Outcome.PASS
    assert float(noisy.smallest_detectable.removeprefix("a drop of ").rstrip("%")) > 10


@given(speed=st.floats(0.91, 5.0))
def test_a_slower_device_is_no_regression_within_its_bound(speed: float) -> None:
    assert check(1001 * speed, recorded(10), speed=speed).outcome is Outcome.PASS
    assert check(900 * speed, recorded(10), speed=speed).outcome is Outcome.FAIL


def test_a_faster_device_does_not_hide_a_regression() -> None:
    assert check(1100, recorded(10), speed=1.5).outcome is Outcome.FAIL


def test_a_device_that_changed_meanwhile_is_an_unfair_comparison() -> None:
    verdict = check(500, recorded(10), after=0.96)
    assert verdict.outcome is Outcome.INVALID
    assert "moved by 4.0% during the measurement (copy_bytes_per_second, at most 3%)" in verdict.details[0]
    assert check(1000, recorded(10), after=1.04).outcome is Outcome.INVALID
    assert check(1000, recorded(10), after=0.98).outcome is not Outcome.INVALID


def test_a_cpu_may_drift_more() -> None:
    assert check(1000, recorded(10), after=0.8).outcome is Outcome.INVALID
    bounds = {"drift_bound": CPU_DRIFT, "shortfall_bound": CPU_SHORTFALL}
    assert check(1000, recorded(10), after=0.8, **bounds).outcome is Outcome.PASS
    assert check(1000, recorded(10), after=0.45, **bounds).outcome is Outcome.INVALID


def test_only_the_yardstick_of_the_metric_counts() -> None:
    before = device()
    after = Calibration(before.matmul_flops_per_second / 2, before.copy_bytes_per_second, before.python_loops_per_second)
    common: dict[str, Any] = {"rounds": [1000.0], "before": before, "after": after, "sessions": recorded(5), "metric": "decode"}
    assert check_throughput(**common, yardstick=COPY).outcome is Outcome.PASS
    assert check_throughput(**common, yardstick="matmul_flops_per_second").outcome is Outcome.INVALID


def test_no_record_is_inconclusive() -> None:
    assert check(1000, []).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("rounds", [[], [0.0], [100.0, 0.0], [-1.0]])
def test_nothing_measured_is_a_failure(rounds: Any) -> None:
    verdict = check_throughput(
        rounds=rounds, before=device(), after=device(), sessions=recorded(5), metric="decode", yardstick=COPY
    )
    assert verdict.outcome is Outcome.FAIL
    assert "nothing was compared" in verdict.details[0]


def test_a_failure_shows_the_share_and_the_numbers() -> None:
    verdict = check(900, recorded(10))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.key == "900 tok/s"
    assert verdict.details == ("90.0% of the recorded median, after calibration",)
    assert "at least four times" in verdict.advice
    decode, device_drift, share = verdict.measurements
    assert (decode.value, decode.unit, decode.n) == (900, "tokens/s", 3)
    assert (device_drift.value, share.n) == (0.0, 10)
    assert share.value == pytest.approx(90.0, abs=0.1)


def test_one_slow_round_does_not_decide() -> None:
    rounds = [1000.0, 1001.0, 999.0, 100.0, 1000.0]
    verdict = check_throughput(
        rounds=rounds, before=device(), after=device(), sessions=recorded(10), metric="decode", yardstick=COPY
    )
    assert verdict.outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("n", "rate", "expected"),
    [(10, 1000, False), (10, 985, True), (2, 960, False), (2, 900, True), (0, 1, False)],
)
def test_suspicion_asks_for_fresh_starts(n: int, rate: int, expected: bool) -> None:
    assert is_suspicious(session=session(rate), sessions=[session(1000)] * n, yardstick=COPY) is expected


def test_clean_sessions_are_rarely_failed() -> None:
    rng, outcomes = random.Random(1), []
    for _ in range(1500):
        *past, new = (session(1000 * math.exp(rng.gauss(0, 0.02))) for _ in range(11))
        outcomes.append(check(new.tokens_per_second, past).outcome)
    assert outcomes.count(Outcome.FAIL) / len(outcomes) <= 0.02
    assert outcomes.count(Outcome.INCONCLUSIVE) / len(outcomes) <= 0.06


def test_a_record_survives_json() -> None:
    summary = summarise_session(rounds=[900.0, 1000.0, 1100.0], before=device(), after=device(1.21))
    assert Session.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
    assert (summary.tokens_per_second, summary.rounds) == (1000.0, 3)
    assert summary.calibration.copy_bytes_per_second == pytest.approx(1.1e10)


def test_drift_is_a_share_either_way() -> None:
    assert drift(before=device(), after=device(1.1), yardstick=COPY) == pytest.approx(0.1)
    assert drift(before=device(), after=device(0.9), yardstick=COPY) == pytest.approx(0.1)


def test_a_device_far_below_its_record_excuses_nothing() -> None:
    """Everything is 100 times slower, the device's own rate too: that is no PASS."""
    verdict = check(10, [session(1000)] * 6, speed=0.01)
    assert verdict.outcome is Outcome.INVALID
    assert "the device's own rate is 99% below the slowest recorded one" in str(verdict)


def test_a_device_a_little_below_its_record_is_allowed_for() -> None:
    assert check(930, [session(1000)] * 6, speed=0.93).outcome is Outcome.PASS
    assert check(600, [session(1000)] * 6, speed=0.6, drift_bound=CPU_DRIFT, shortfall_bound=CPU_SHORTFALL).outcome is Outcome.PASS
    assert check(850, [session(1000)] * 6, speed=0.85).outcome is Outcome.INVALID
