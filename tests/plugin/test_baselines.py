"""The life of a baseline: missing, recorded, met, missed, not comparable, updated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEST = """
    from pytest_llminfer.verdict import Outcome, Verdict

    def test_answer(engine, baseline, judge):
        conditions = {{"prompt": "{prompt}"}}
        expected = baseline.expected("answer", observe=lambda engine, previous: {{"value": {value}}}, conditions=conditions, n=1)
        outcome = Outcome.PASS if {value} >= expected["value"] else Outcome.FAIL
        judge(Verdict(outcome, "the answer is kept", "{value}", (), "no less than recorded", "the record", "exact", "look"))
"""
FILE = Path("baselines/any/reference/answer.json")


def project(pytester: pytest.Pytester, value: int, prompt: str = "p") -> None:
    pytester.makepyfile(test_answer=TEST.format(value=value, prompt=prompt))


def stored(pytester: pytest.Pytester) -> dict[str, Any]:
    return json.loads((pytester.path / FILE).read_text())


def test_missing_is_a_visible_skip_that_names_the_way_out(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    project(pytester, 5)
    result = run("-rs", *mode)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*no baseline for any/reference/answer/simulated-none-auto-kv_auto; record it with --update-baselines=new"]
    )
    result.stdout.fnmatch_lines(
        [
            "simulated *skip",
            "nothing was compared: there is no baseline for what was asked",
            "baselines: 1 missing; record them with the same command and --update-baselines=new",
        ]
    )
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert not (pytester.path / "baselines").exists()


@pytest.mark.fault("files", "--baselines names a folder that does not exist", "a usage error, nothing is recorded")
def test_a_folder_that_is_not_there_is_a_usage_error(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    project(pytester, 5)
    result = run("--baselines=typo")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --baselines: there is no folder 'typo': record into it with --update-baselines=new, *"])


def test_missing_fails_when_strict(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]) -> None:
    project(pytester, 5)
    result = run("--llminfer-strict", *mode)
    result.assert_outcomes(failed=1)


@pytest.mark.parametrize("how", ["--update-baselines", "--update-baselines=new"])
def test_record_then_pass_then_fail(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], every_mode: tuple[str, ...], how: str
) -> None:
    project(pytester, 5)
    result = run(how, *every_mode)
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["simulated *skip recorded", "baselines: 1 recorded in *answer.json"])
    entry = stored(pytester)["entries"]["simulated-none-auto-kv_auto"]
    assert entry["expected"] == {"value": 5}
    assert entry["conditions"]["prompt"] == "p"
    assert {"commit", "date", "command", "n", "hardware", "versions"} <= set(entry["provenance"])
    assert str(pytester.path) not in (pytester.path / FILE).read_text()

    run(*every_mode).assert_outcomes(passed=1)
    project(pytester, 4)
    run(*every_mode).assert_outcomes(failed=1)


def test_new_keeps_what_is_recorded_and_all_replaces_it(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    project(pytester, 5)
    run("--update-baselines=new", *mode)
    project(pytester, 4)
    run("--update-baselines=new", *mode).assert_outcomes(failed=1)
    assert stored(pytester)["entries"]["simulated-none-auto-kv_auto"]["expected"] == {"value": 5}
    run("--update-baselines", *mode).assert_outcomes(skipped=1)
    assert stored(pytester)["entries"]["simulated-none-auto-kv_auto"]["expected"] == {"value": 4}


def test_another_condition_is_invalid_and_named(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    project(pytester, 5)
    run("--update-baselines", *mode)
    project(pytester, 5, prompt="q")
    result = run("-v", *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*INVALID*", "*prompt: recorded 'p', now 'q'"])


def test_the_previous_record_is_given_only_if_comparable(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    test = """
        def test_sessions(engine, baseline):
            def observe(engine, previous):
                return {{"sessions": [*(previous["sessions"] if previous else []), {value}]}}
            baseline.expected("sessions", observe=observe, conditions={{"batch": {batch}}}, n=1)
    """
    path = pytester.path / "baselines/any/reference/sessions.json"
    for value, batch, expected in ((1, 8, [1]), (2, 8, [1, 2]), (3, 16, [3])):
        pytester.makepyfile(test_sessions=test.format(value=value, batch=batch))
        run("--update-baselines")
        (entry,) = json.loads(path.read_text())["entries"].values()
        assert entry["expected"]["sessions"] == expected


def test_entries_that_no_test_asked_for_are_reported(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    project(pytester, 5)
    run("--update-baselines", *mode)
    document = stored(pytester)
    document["entries"]["simulated-int8-auto-kv_auto"] = document["entries"]["simulated-none-auto-kv_auto"]
    (pytester.path / FILE).write_text(json.dumps(document))
    result = run("-v", *mode)
    result.stdout.fnmatch_lines(
        ["baselines: 1 recorded entries had no test in this session (-v names them)", "*answer/simulated-int8-auto-kv_auto"]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "*BaselineError: baseline file *answer.json is not JSON: *restore it from version control*"),
        ('{"schema": 3, "family": "answer", "entries": {}}', "*was written by a newer version (schema 3); upgrade pytest-llminfer"),
    ],
)
@pytest.mark.parametrize("how", [(), ("--update-baselines",)])
@pytest.mark.fault("files", "a session meets a broken baseline", "its tests fail with one line; the file stays")
def test_a_broken_file_is_one_clear_line_and_stays_as_it_is(
    pytester: pytest.Pytester,
    run: Callable[..., pytest.RunResult],
    mode: tuple[str, ...],
    content: str,
    message: str,
    how: tuple[str, ...],
) -> None:
    project(pytester, 5)
    path = pytester.path / FILE
    path.parent.mkdir(parents=True)
    path.write_text(content)
    result = run(*how, *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([message])
    assert "Traceback" not in result.stdout.str()
    assert path.read_text() == content


@pytest.mark.fault("files", "a file lies where the folder should", "the test fails; the file stays")
def test_a_file_where_the_folder_of_baselines_should_be_fails_the_test_and_stays(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    project(pytester, 5)
    (pytester.path / "baselines").write_text("a file where a folder is needed")
    result = run("--update-baselines", *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"BaselineError: baseline file {pytester.path / FILE} cannot be read: Not a directory"])
    assert (pytester.path / "baselines").read_text() == "a file where a folder is needed"


@pytest.mark.fault("files", "a record cannot be written", "the session fails and names where it kept the record")
def test_a_record_that_cannot_be_written_fails_the_session_and_is_kept_elsewhere(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    project(pytester, 5)
    assert run("--update-baselines", *mode).ret == pytest.ExitCode.OK
    before = (pytester.path / FILE).read_text()
    # Not by permissions, which do not bind root.
    (pytester.path / FILE).with_name(f".{FILE.name}.lock").mkdir()
    project(pytester, 7)
    result = run("--update-baselines", *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    start = f"ERROR: baseline file {pytester.path / FILE} cannot be written: Is a directory; 1 record not written, kept in "
    (kept,) = [line.removeprefix(start) for line in result.outlines if line.startswith(start)]
    (file,) = Path(kept.partition(";")[0]).rglob(FILE.name)
    (entry,) = json.loads(file.read_text())["entries"].values()
    assert entry["expected"] == {"value": 7}
    assert (pytester.path / FILE).read_text() == before


@pytest.mark.fault("files", "pytest is killed after a test has recorded", "the record is there")
def test_what_was_recorded_outlives_a_session_that_is_killed(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(
        """
        import os

        def test_first(engine, baseline):
            baseline.expected("kept", observe=lambda engine, _: {"value": 1}, conditions={}, n=1)

        def test_second(engine):
            os.kill(os.getpid(), 9)
        """
    )
    result = run("--update-baselines")
    assert result.ret == -9
    assert '"value": 1' in (pytester.path / "baselines" / "any" / "reference" / "kept.json").read_text()
