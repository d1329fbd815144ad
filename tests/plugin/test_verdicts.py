"""How each outcome of a check shows in pytest."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.support.engines import openai_backends
from tests.support.openai_server import Fake
from tests.support.paths import SUITES

fake = openai_backends.fake

TESTS = """
    from pytest_llminfer.verdict import Measurement, Outcome, Verdict

    def verdict(outcome):
        return Verdict(outcome, "speed has not dropped", "12 tok/s", (Measurement("speed", 12.5, "tokens/s", 5, "MAD 0.1"),),
                       "at most 3 %", "the record of today", "a drop of 2 %", "look at the clock", ("went from 13 to 12.5",))

    def test_judged(engine, judge):
        judge(verdict(Outcome.{name}))
"""
MESSAGE = [
    "*{name}: speed has not dropped",
    "*went from 13 to 12.5",
    "*speed: 12.5 tokens/s (n=5, MAD 0.1)",
    "*threshold: at most 3 % (from the record of today)",
    "*smallest effect this could have seen: a drop of 2 %",
    "*what to do: look at the clock",
]


def judged(pytester: pytest.Pytester, name: str) -> None:
    pytester.makepyfile(test_speed=TESTS.replace("{name}", name))


def test_pass(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]) -> None:
    judged(pytester, "PASS")
    result = run(*mode)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["cell *speed*", "simulated *pass 12 tok/s"])


def test_fail_shows_the_whole_message_and_no_traceback(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    judged(pytester, "FAIL")
    result = run(*mode)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([line.format(name="FAIL") for line in MESSAGE])
    result.stdout.fnmatch_lines(["simulated *FAIL 12 tok/s"])
    assert "Traceback" not in result.stdout.str()
    assert "def test_judged" not in result.stdout.str()


def test_invalid_is_an_error_by_its_own_name(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    judged(pytester, "INVALID")
    result = run("-v", *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*INVALID*"])
    result.stdout.fnmatch_lines([line.format(name="INVALID") for line in MESSAGE])
    result.stdout.fnmatch_lines(["*1 error*"])


def test_inconclusive_is_shown_and_does_not_fail(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    judged(pytester, "INCONCLUSIVE")
    result = run("-v", *mode)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*INCONCLUSIVE*", "simulated *inconclusive 12 tok/s", "*1 inconclusive*"])


def test_inconclusive_fails_when_strict(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    judged(pytester, "INCONCLUSIVE")
    result = run("--llminfer-strict", *mode)
    result.assert_outcomes(failed=1)


def test_a_plain_assertion_shows_in_the_table_too(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_mine="def test_it(engine):\n    assert engine.loads == 2")
    result = run(*mode)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2", "simulated *FAIL"])


@pytest.mark.parametrize(("status", "said"), [(502, "InternalServerError: *502*"), (400, "BadRequestError: *400*")])
@pytest.mark.fault("servers", "a server answers 502 or 400", "INVALID with count and first reason, exit status 1")
def test_a_server_that_fails_is_invalid_and_no_skip(
    fake: Fake, pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], status: int, said: str
) -> None:
    pytest.importorskip("openai")
    sound = fake.answer
    fake.answer = lambda path, body: (status, {"error": "down"}) if "chat" in path else sound(path, body)
    shutil.copy(SUITES / "test_chat.py", pytester.path)
    result = run("-k", "counts", '--engine-args={"max_retries": 0}', engine=f"openai@{fake.address}")
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["INVALID: every request was answered", f"  * of * requests failed; first: {said}"])
