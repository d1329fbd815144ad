"""What a skip tells its reader: why the test did not run, and what would make it run."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from pytest_llminfer.errors import UnsupportedError
from tests.support.paths import REPOSITORY

SOURCES = sorted((REPOSITORY / "pytest_llminfer").rglob("*.py")) + sorted((REPOSITORY / "suites").glob("*.py"))


def without_a_way_out(source: str) -> Iterator[str]:
    """Each reason that is written down without what would make the test run."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name, reason = ast.unparse(call.func), call.args[0]
        # A reason that comes from elsewhere, such as a worker's, has its way out already.
        written = isinstance(reason, (ast.Constant, ast.JoinedStr))
        two_parts = len(call.args) > 1 or any(keyword.arg == "to_run" for keyword in call.keywords)
        if (name == "UnsupportedError" and written and not two_parts) or (
            name in ("pytest.skip", "BaselineRecordedError", "MissingBaselineError") and written and "; " not in ast.unparse(reason)
        ):
            yield f"line {call.lineno}: {ast.unparse(call)}"


def test_every_reason_of_a_skip_says_what_would_make_the_test_run() -> None:
    found = {str(path.relative_to(REPOSITORY)): list(without_a_way_out(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert len(found) > 300
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source", ["raise UnsupportedError('no')", "raise UnsupportedError(f'no {x}') from error", "pytest.skip('no server here')"]
)
def test_a_reason_without_one_is_found(source: str) -> None:
    assert len(list(without_a_way_out(source))) == 1


def test_reason_and_way_out_are_one_sentence() -> None:
    assert str(UnsupportedError("vllm has no loop", "use cache path engine")) == "vllm has no loop; use cache path engine"
    # What crosses from a worker is whole already.
    assert str(UnsupportedError("vllm has no loop; use cache path engine")) == "vllm has no loop; use cache path engine"
