"""The serving suite end to end on the simulated engine's own server: green when it is whole, red for each fault."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import SUITES

TESTS = 8

pytest.importorskip("openai")
pytest.importorskip("tokenizers")


@pytest.fixture
def serving(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> Callable[..., pytest.RunResult]:
    shutil.copy(SUITES / "test_serving.py", pytester.path)

    def serving(*arguments: str, **engine_args: object) -> pytest.RunResult:
        given = [f"--engine-args={json.dumps(engine_args)}"] if engine_args else []
        return run("--serve", "-v", *given, *arguments)

    return serving


def server_processes() -> list[str]:
    """Command lines of simulated servers of this user that are running now."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "simulated.server import main" in line and str(os.getpid()) not in file.parts:
            found.append(line)
    return found


def test_a_whole_server_passes_everything_and_nothing_is_left(
    serving: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = serving("--update-baselines")
    result.assert_outcomes(passed=TESTS - 1, skipped=1)
    record = json.loads(next(pytester.path.glob("baselines/*/reference/serving_latency.json")).read_text())
    (entry,) = record["entries"].values()
    (session,) = entry["expected"]["sessions"]
    assert session["requests"] == 20
    assert 0 < session["inter_token_seconds"] < session["first_token_seconds"]

    result = serving()
    result.assert_outcomes(passed=TESTS)
    assert not [line for line in server_processes() if str(pytester.path) in line]


@pytest.mark.parametrize(
    ("fault", "test", "message"),
    [
        ("wrong_finish_reason", "finish_reason_is_length", "*was cut at 4, but finish_reason is 'stop'"),
        ("lost_chunk", "streaming_equals", "*FAIL: a streamed completion is the one that is not streamed*"),
        ("open_door", "wrong_key", "*a wrong key was answered with status 200 instead of 401"),
        ("swap_concurrent", "concurrent_requests", "*FAIL: 8 requests at once are answered as they are one after another*"),
        ("deaf", "stops_when", "*did not end within 10 s of SIGTERM and was killed"),
        ("child_left", "stops_when", "*1 of its processes outlived it*"),
        ("wrong_name", "is_listed", "*'reference' is not listed; listed: another"),
        ("empty_chat", "chat_and_completion", "*chat 0: an empty answer*"),
    ],
)
def test_each_fault_fails_its_own_test_alone(serving: Callable[..., pytest.RunResult], fault: str, test: str, message: str) -> None:
    # The dearest test runs for the fault that it is there for.
    dear = [] if test.startswith("finish_reason") else ["finish_reason"]
    result = serving("-k", " and ".join(f"not {name}" for name in ["latency", *dear]), server_fault=fault)
    failed = [line for line in result.outlines if "::test_" in line and "FAILED" in line.split() and "%" in line]
    result.stdout.fnmatch_lines([message])
    assert len(failed) == 1, failed
    assert test in failed[0]


@pytest.mark.parametrize("fault", ["slow_first_token", "slow_tokens"])
def test_a_slow_server_is_caught_and_a_fast_one_never_fails(
    serving: Callable[..., pytest.RunResult], pytester: pytest.Pytester, fault: str
) -> None:
    latency = "test_serving.py::test_latency_is_as_recorded"
    serving(latency, "--update-baselines").assert_outcomes(skipped=1)
    file = next(pytester.path.glob("baselines/*/reference/serving_latency.json"))
    clean = json.loads(file.read_text())
    (session,) = next(iter(clean["entries"].values()))["expected"]["sessions"]
    # Five times what this machine needs right now, whatever else it does.
    metric, words = (
        ("first_token_seconds", "to first token") if fault == "slow_first_token" else ("inter_token_seconds", "from token to token")
    )
    slow = {"server_fault": fault, "server_fault_seconds": max(5 * session[metric], 0.01)}
    result = serving(latency, **slow)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*time {words}: * times the recorded*"])

    session["first_token_seconds"] *= 100
    session["inter_token_seconds"] *= 100
    file.write_text(json.dumps(clean))
    serving(latency).assert_outcomes(passed=1)


def test_a_cell_that_is_not_served_has_no_such_tests_and_the_session_says_what_would_bring_them(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    shutil.copy(SUITES / "test_serving.py", pytester.path)
    result = run()
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines([f"llminfer: no test applies to a cell of this session: {TESTS} need over_http=True (--serve, *)"])


def test_an_engine_without_a_server_is_a_visible_skip_and_a_refused_argument_is_one_line(
    serving: Callable[..., pytest.RunResult],
) -> None:
    result = serving("--deselect=test_serving.py::test_latency_is_as_recorded", server_fault="lost_chunks")
    result.stdout.fnmatch_lines(["*unknown server_fault 'lost_chunks'*Did you mean 'lost_chunk'?*"])
    result = serving(concurency=3)
    result.stdout.fnmatch_lines(["*unknown engine argument 'concurency'*"])


# What a server answers, of the other suites; what no server tells is not collected.
ANSWERED = (
    "accuracy_has_not_dropped",
    "accuracy_is_that_of_one_gpu",
    "batch_invariance",
    "greedy_tokens_are_as_recorded",
    "greedy_tokens_are_those_of_one_gpu",
    "run_history_shows_no_drift",
    "no_penalty_is_in_the_distribution",
    "outcomes_change_sides_no_more_than_in_repeats",
    "the_server_counts_the_same_tokens",
    "tokens_do_not_depend_on_the_batch",
)


def test_other_suites_ask_the_server_and_are_judged_by_what_was_recorded_without_it(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    short = ("--gsm8k-questions=40", "--gsm8k-runs=1", "--accuracy-margin=20", "--dtype=fp32", "-v", "-rs")
    recorded = [shutil.copy(SUITES / f"test_{suite}.py", pytester.path) for suite in ("accuracy", "settings", "tokens")]
    skipped = run(*short, "--serve", "-k", "accuracy_has_not_dropped")
    skipped.assert_outcomes(skipped=1, deselected=6)
    skipped.stdout.fnmatch_lines(["SKIPPED*no baseline for *gsm8k*record it with --update-baselines=new, without --serve"])
    skipped.stdout.fnmatch_lines(["baselines: 1 missing; -rs shows how each is recorded"])
    run(*short, "--update-baselines=new", *recorded)
    others = [suite for suite in SUITES.glob("test_*.py") if suite.stem not in ("test_serving", "test_kv_equivalence")]
    for suite in others:
        shutil.copy(suite, pytester.path)
    result = run(*short, "--serve")
    outcomes = result.parseoutcomes()
    assert not {"failed", "errors"} & outcomes.keys(), outcomes
    passed = sorted(line.split("::test_")[1].split("[")[0] for line in result.outlines if "::test_" in line and " PASSED" in line)
    assert passed == sorted(ANSWERED)
    # Though they are recorded.
    assert [*pytester.path.glob("baselines/*/*/settings_defaults.json")]
