"""One load a cell for the whole session, however many files and processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

A_FILE = """
    def test_first(engine):
        assert engine.loads == 1

    def test_second(engine, model):
        assert engine.generate([[5, 6, 7]], max_tokens=2)
"""


def test_each_cell_is_loaded_once_over_several_files(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_a=A_FILE, test_b=A_FILE, test_c=A_FILE)
    result = run("--dtype=auto,fp32", *mode)
    result.assert_outcomes(passed=12)
    result.stdout.fnmatch_lines(["engine loads: 2"])


def test_tests_without_an_engine_come_first_and_load_nothing(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(test_z="def test_alone(): pass", test_a="def test_with(engine): pass")
    result = run("-v")
    result.stdout.fnmatch_lines(["*test_z.py::test_alone PASSED*", "*test_a.py::test_with* PASSED*"])
    result.stdout.fnmatch_lines(["engine loads: 1"])


def test_a_session_without_engine_tests_says_nothing(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("def test_alone(): pass")
    result = run()
    result.assert_outcomes(passed=1)
    assert "llminfer:" not in result.stdout.str()


def test_the_session_line_names_settings_and_their_sources(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile("def test_with(engine): pass")
    result = run(*mode)
    result.stdout.fnmatch_lines(
        ["llminfer: engine=simulated [[]command line[]], model=reference; 1 cell; baselines: *; hardware: *"]
    )
