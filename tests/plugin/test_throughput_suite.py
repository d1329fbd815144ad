"""The throughput suite end to end: a session during which the device's own rate moved is INVALID, and leaves no record."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.support.paths import SUITES

UNSTEADY = """
from itertools import chain, cycle, islice, repeat

import pytest

from pytest_llminfer.engines.engine import Engine
from pytest_llminfer.observations.engine import Calibration

@pytest.fixture(autouse=True)
def other_work(monkeypatch):
    rates = {rates}
    monkeypatch.setattr(Engine, "calibrate", lambda engine: Calibration(*[next(rates)] * 3))
"""


@pytest.fixture
def decode(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """The decode test with the device's own rates before and after given."""
    # pytest-benchmark switches itself off where it sees a worker of pytest-xdist, which may be what runs this test.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    shutil.copy(SUITES / "test_throughput.py", pytester.path)

    def measure(*arguments: str, rates: str) -> pytest.RunResult:
        pytester.makeconftest(UNSTEADY.format(rates=rates))
        return run("-v", "-k", "decode", *arguments)

    return measure


def test_an_unsteady_device_is_invalid_and_leaves_no_record(
    decode: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = decode("--update-baselines", rates="cycle((1e9, 2e9))")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*test_tokens_per_second?simulated-decode? INVALID *", "*the device's own rate moved by 100.0% during the measurement*"]
    )
    assert list(pytester.path.glob("baselines/*/*/*.json")) == []


def test_a_steady_engine_is_recorded_and_then_judged(decode: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    # On a device nearly twice as fast: whatever the machine is busy with, later sessions are no slower beside their device.
    decode("--update-baselines", rates="cycle((1.8e9, 1.9e9))").assert_outcomes(skipped=1)
    assert [file.stem for file in pytester.path.glob("baselines/*/*/*.json")] == ["throughput_decode"]
    # It has settled when it is measured again, or on four fresh starts at the latest: each start calibrates twice.
    settled = decode(rates="chain((1e9, 2e9), repeat(1e9))")
    settled.assert_outcomes(passed=1)
    settled.stdout.fnmatch_lines(["engine loads: 1"])
    slow_at_first = decode(rates="chain((0.4e9, 0.4e9), repeat(1e9))")
    slow_at_first.assert_outcomes(passed=1)
    slow_at_first.stdout.fnmatch_lines(["engine loads: 1"])
    late = decode(rates="chain(islice(cycle((1e9, 2e9)), 8), repeat(1e9))")
    late.assert_outcomes(passed=1)
    late.stdout.fnmatch_lines(["engine loads: 5"])
    decode(rates="cycle((1e9, 2e9))").assert_outcomes(errors=1)
