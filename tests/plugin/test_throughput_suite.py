"""The throughput suite end to end: recorded once, green in one start, red for slower kernels after two fresh ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.support.paths import SUITES

TINY = """
from pytest_llminfer.families.throughput import observe

observe.WORKLOADS["decode"] = observe.Workload("decode", 2, 4, 8)
"""


@pytest.fixture
def decode(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """The decode test on the simulated engine with its modelled accelerator, and a fault."""
    # pytest-benchmark switches itself off where it sees a worker of pytest-xdist, which may be what runs this test.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    shutil.copy(SUITES / "test_throughput.py", pytester.path)
    pytester.makeconftest(TINY)
    return lambda fault, *arguments: run("-v", "-k", "decode", f'--engine-args={{"accelerator": true{fault}}}', *arguments)


def test_a_speed_is_recorded_and_judged_with_as_few_starts_as_it_needs(
    decode: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    decode("", "--update-baselines").assert_outcomes(skipped=1)
    (file,) = pytester.path.glob("baselines/*/*/*.json")
    assert file.stem == "throughput_decode"
    clean = decode("")
    clean.assert_outcomes(passed=1)
    clean.stdout.fnmatch_lines(["engine loads: 1"])
    slow = decode(', "fault": "slow_kernels", "fault_factor": 1.05')
    slow.assert_outcomes(failed=1)
    slow.stdout.fnmatch_lines(["*accelerator's busy seconds +*, at most +1.5%", "engine loads: 3"])
