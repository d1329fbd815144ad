"""The accuracy suite end to end on the simulated engine, which solves the bundled problems for real."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

SUITES = Path(__file__).resolve().parents[2] / "suites"


@pytest.fixture
def gsm8k(pytester: pytest.Pytester, run):
    shutil.copy(SUITES / "test_gsm8k.py", pytester.path)
    return lambda *arguments: run("--gsm8k-questions=20", *arguments)


def test_recorded_outcomes_are_met_and_altered_answers_are_caught(gsm8k, mode) -> None:
    gsm8k("--update-baselines", *mode).assert_outcomes(skipped=1)
    result = gsm8k("-v", *mode)
    result.stdout.fnmatch_lines(["simulated *%*"])
    assert result.ret == pytest.ExitCode.OK
    result = gsm8k('--engine-args={"fault": "alter_answers", "fault_rate": 0.6}', *mode)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*FAIL: *", "*lost: syn-*"])


def test_another_set_of_questions_is_invalid(gsm8k, pytester: pytest.Pytester) -> None:
    gsm8k("--update-baselines")
    result = gsm8k("--gsm8k-questions=25", "-v")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*INVALID*", "*25 questions now, 20 in the baseline*"])
    problems = pytester.path / "rows.jsonl"
    problems.write_text('{"question": "What is 1 + 1?", "answer": "#### 2"}\n')
    result = gsm8k(f"--dataset={problems}", "-v")
    result.stdout.fnmatch_lines(["*INVALID*", "*dataset: recorded 'synthetic', now 'rows'"])


def test_fewer_questions_are_judged_by_their_part_of_the_record(gsm8k) -> None:
    gsm8k("--update-baselines")
    result = gsm8k("--gsm8k-questions=10", "-v")
    assert result.ret == pytest.ExitCode.OK
