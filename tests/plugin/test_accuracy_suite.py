"""The accuracy suite end to end on the simulated engine, which solves the bundled problems for real."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable

import pytest

from pytest_llminfer.datasets.load import load
from tests.support.paths import SUITES

RECORD = ("--update-baselines", "--gsm8k-runs=2", "--accuracy-margin=40")
WORSE = '--engine-args={"fault": "swap_answers", "fault_rate": 0.9}'
DROPPED = ("-k", "dropped")
FAILING = """
    import pathlib

    import pytest
    from pytest_llminfer.errors import TransportError

    @pytest.fixture(scope="session")
    def llminfer_engine(llminfer_engine):
        def generate(prompts, *given, **fields):
            with pathlib.Path("asked").open("a") as file:
                file.write("x")
            raise TransportError(f"1 of {len(prompts)} requests failed; first: HTTP 500")
        llminfer_engine.generate = generate
        return llminfer_engine
"""
QUESTIONS = {problem.question for problem in load("synthetic").problems}


@pytest.fixture
def gsm8k(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> Callable[..., pytest.RunResult]:
    shutil.copy(SUITES / "test_accuracy.py", pytester.path)
    return lambda *arguments: run("--gsm8k-questions=16", "--accuracy-margin=40", *arguments)


def asked(result: pytest.RunResult) -> int:
    """How many questions the table says were asked of 16."""
    (line,) = (found for line in result.stdout.lines if (found := re.match(r"simulated +record +(\d+) of 16 ", line)))
    return int(line[1])


def test_recorded_outcomes_are_met_and_altered_answers_are_caught_and_kept(
    gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester, mode: tuple[str, ...]
) -> None:
    recorded = gsm8k(*RECORD, *mode)
    recorded.assert_outcomes(skipped=1, passed=2)
    # The greedy gate alone says nothing of accuracy.
    recorded.stdout.no_fnmatch_line("simulated*0 tokens*")
    result = gsm8k("-v", *mode)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["simulated *%*"])
    result = gsm8k(WORSE, "--llminfer-report=found", *DROPPED, *mode)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*FAIL: *", "*lost: syn-*", "*the answers are in found/answers.jsonl*"])
    rows = [json.loads(line) for line in (pytester.path / "found" / "answers.jsonl").read_text().splitlines()]
    assert len({row["question_id"] for row in rows}) == len(rows) == asked(result)
    assert {row["cell"] for row in rows} == {"simulated"}
    for row in rows:
        assert row["flexible_right"] == (row["flexible"] == row["gold"])
        assert row["question"] in QUESTIONS
    wrong = [row for row in rows if not row["flexible_right"]]
    assert len(wrong) > len(rows) / 2
    assert all(row["strict"] in row["text"] for row in wrong if row["strict"])


def test_a_token_that_is_not_the_likeliest_of_its_step_is_invalid_and_names_the_question(
    gsm8k: Callable[..., pytest.RunResult],
) -> None:
    gsm8k(*RECORD, *DROPPED)
    result = gsm8k('--engine-args={"fault": "alter_answers", "fault_rate": 0.2}', *DROPPED)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["INVALID: greedy answers hold the likeliest token of every step*", "*tokens of * nats: syn-*"])


def test_questions_are_asked_until_the_verdict_is_reached(gsm8k: Callable[..., pytest.RunResult]) -> None:
    gsm8k(*RECORD, *DROPPED)
    worse = gsm8k(WORSE, *DROPPED)
    worse.assert_outcomes(failed=1)
    clean = gsm8k(*DROPPED)
    clean.assert_outcomes(passed=1)
    assert asked(worse) < 16
    assert asked(clean) < 16
    full = gsm8k("--full", *DROPPED)
    full.assert_outcomes(passed=1)
    assert asked(full) == 16


def test_another_set_of_questions_is_invalid(gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    gsm8k(*RECORD)
    result = gsm8k("--gsm8k-questions=25", "-v", *DROPPED)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*INVALID*", "*25 questions now, 16 in the baseline*"])
    problems = pytester.path / "rows.jsonl"
    problems.write_text('{"question": "What is 1 + 1?", "answer": "#### 2"}\n')
    result = gsm8k(f"--dataset={problems}", "-v", *DROPPED)
    result.stdout.fnmatch_lines(["*INVALID*", "*dataset: recorded 'synthetic', now 'rows'"])
    result = gsm8k("--gsm8k-form=5-shot", "-v", *DROPPED)
    result.stdout.fnmatch_lines(["*INVALID*", "*prompt_form: recorded 'zero-shot@1', now '5-shot@2'"])


@pytest.mark.parametrize("arguments", [DROPPED, (*RECORD, *DROPPED)])
def test_a_request_without_an_answer_is_invalid_also_while_a_record_is_made(
    gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    gsm8k(*RECORD, *DROPPED)
    pytester.makeconftest(FAILING)
    result = gsm8k(*arguments)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["INVALID: every question was answered", "*requests failed; first: HTTP 500"])
    result.stdout.no_fnmatch_line("*another exception occurred*")


@pytest.mark.fault("servers", "every request fails", "asked once a session")
def test_failed_requests_are_paid_for_once(gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    gsm8k(*RECORD)
    pytester.makeconftest(FAILING)
    result = gsm8k()
    assert result.parseoutcomes()["errors"] >= 2
    result.stdout.fnmatch_lines(["*requests failed; first: HTTP 500 (asked once in this session)"])
    assert (pytester.path / "asked").read_text() == "x"


def test_a_number_of_questions_bounds_a_record_and_full_asks_all_of_one(
    gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    gsm8k(*RECORD, "--gsm8k-questions=20", *DROPPED)
    record = next(pytester.path.glob("baselines/any/reference/gsm8k.json"))

    def recorded() -> int:
        (entry,) = json.loads(record.read_text())["entries"].values()
        return entry["expected"]["questions"]

    assert recorded() == 20
    gsm8k(*RECORD, *DROPPED)
    assert recorded() == 16


def test_fewer_questions_are_judged_by_their_part_of_the_record(gsm8k: Callable[..., pytest.RunResult]) -> None:
    gsm8k(*RECORD)
    result = gsm8k("--gsm8k-questions=10", "-v", *DROPPED)
    assert result.ret == pytest.ExitCode.OK


def test_answers_that_are_cut_off_are_invalid_and_not_wrong(
    gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    gsm8k(*RECORD)
    pytester.makeconftest(
        """
        import dataclasses
        import pytest

        @pytest.fixture(scope="session")
        def llminfer_engine(llminfer_engine):
            generate = llminfer_engine.generate
            short = lambda sampling: dataclasses.replace(sampling, max_tokens=6)
            llminfer_engine.generate = lambda prompts, sampling, **fields: generate(prompts, short(sampling), **fields)
            return llminfer_engine
        """
    )
    result = gsm8k()
    # All three tests, of which none says anything else: a comparison that is not fair has no drop and no flips either.
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["INVALID: *answers cut off at the token limit*"])
    result.stdout.no_fnmatch_line("FAIL: *")


def test_a_margin_that_the_questions_cannot_support_is_refused_with_one_that_they_can(
    gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = gsm8k("--update-baselines", "--gsm8k-runs=2", "--accuracy-margin=2", *DROPPED)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["BadInputError: a margin of 2 points *; the smallest that can: * points.*"])
    assert not list(pytester.path.glob("baselines/**/gsm8k.json"))


def test_a_record_with_nothing_right_is_refused(gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    rows = (SUITES.parent / "pytest_llminfer" / "datasets" / "synthetic.jsonl").read_text().splitlines()[:16]
    unreachable = [json.loads(row) | {"answer": "#### 987654321"} for row in rows]
    (pytester.path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in unreachable))
    result = gsm8k(*RECORD, "--dataset=rows.jsonl", *DROPPED)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["BadInputError: 0.0% of 16 questions are answered right: no drop of * points, *"])
    assert not list(pytester.path.glob("baselines/**/gsm8k.json"))


def test_runs_are_added_to_the_history_and_judged_together(
    gsm8k: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    gsm8k(*RECORD)
    gsm8k("--run-history").stdout.fnmatch_lines(["run history: 1 past run added to *run_history.jsonl"])
    alone = gsm8k("--run-history", "-k", "run_history")
    alone.stdout.fnmatch_lines(["simulated *record *", "run history: 1 past run added to *run_history.jsonl"])
    (file,) = pytester.path.glob("baselines/any/reference/run_history.jsonl")
    past_run, same = map(json.loads, file.read_text().splitlines())
    # Each asks in an order of its own, and answers what both ask alike.
    pairs = zip(past_run["outcomes"], same["outcomes"], strict=True)
    assert all(first == second or "-" in (first, second) for first, second in pairs)
    assert set(past_run["outcomes"]) <= set("01-")
    past_run["outcomes"] = "0" * 16
    file.write_text("".join(json.dumps(past_run) + "\n" for _ in range(2)))
    result = gsm8k("-k", "run_history")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["FAIL: 3 past runs together do not prove a drop in accuracy", "*questions lost and 0 won for good*"]
    )
    # One lost question, past run after past run: nothing that a harmless change could not do.
    past_run["outcomes"] = "".join("0" if index == 3 else "1" for index in range(16))
    file.write_text("".join(json.dumps(past_run) + "\n" for _ in range(30)))
    gsm8k("-k", "run_history").assert_outcomes(passed=1)
    file.write_text("no past run\n")
    gsm8k("-k", "run_history").stdout.fnmatch_lines(["BaselineError: run history *run_history.jsonl, line 1 is no past run; *"])
