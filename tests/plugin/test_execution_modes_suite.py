"""The suite of execution modes end to end on the simulated engine: green, and red for a fault of the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.support.paths import SUITES


@pytest.fixture
def suite(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> Callable[..., pytest.RunResult]:
    shutil.copy(SUITES / "test_execution_modes.py", pytester.path)
    return run


def test_a_sound_engine_passes_and_what_does_not_apply_is_no_test(suite: Callable[..., pytest.RunResult]) -> None:
    suite("--llminfer-strict", "--kv-variants").assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("shift_positions", "FAIL: teacher-forced decode gives the same log-probabilities as prefill"),
        ("drop_kv_block", "FAIL: decoding gives the distributions that prefill gives for the same tokens"),
    ],
)
def test_a_fault_of_the_cache_is_red(suite: Callable[..., pytest.RunResult], fault: str, line: str) -> None:
    result = suite(f"--engine-args={json.dumps({'fault': fault})}", "-k", "prefill")
    assert result.parseoutcomes()["failed"] >= 1
    result.stdout.fnmatch_lines([line, "*mean k*: * nats *", "*slope: * nats per 100 positions *"])


def test_variants_can_be_asked_for_by_the_ini_file_too(suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    """The simulated engine has none of the suite: one of its own, with a fault, is an engine beside the cell's."""
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\nllminfer_kv_variants = true\n")
    pytester.makepyfile(
        test_own="""
        import pytest
        from pytest_llminfer.families.execution_modes.resynchronised import check_resynchronised_tokens
        from pytest_llminfer.families.execution_modes.variants import Variant

        @pytest.mark.parametrize("fault", ["", "drop_kv_block"])
        def test_variant(kv_variants, greedy, judge, fault):
            found = kv_variants.ask(Variant(fault or "same", {"simulated": {"fault": fault}}))
            judge(
                check_resynchronised_tokens(
                    candidate=found.batched, reference=greedy.batched, teacher_forced=found.teacher_forced,
                    dtype="fp32", claim="same tokens",
                )
            )
        """
    )
    result = suite("test_own.py", "-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*drop_kv_block* FAILED*", "FAIL: same tokens", "engine loads: 3"])
