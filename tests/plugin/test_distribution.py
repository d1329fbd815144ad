"""Under pytest-xdist: cells stay together, and everything else is distributed as it was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pytest_llminfer.plugin.xdist import scope_of

CELLS = ["transformers", "transformers-nf4", "transformers-nf4:org/model@/opt/python"]


@pytest.mark.parametrize(
    ("nodeid", "cell"),
    [
        ("suites/test_a.py::test_x[transformers]", "transformers"),
        ("suites/test_a.py::test_x[transformers-nf4]", "transformers-nf4"),
        ("suites/test_a.py::test_x[transformers-nf4-decode]", "transformers-nf4"),
        ("suites/test_a.py::test_x[loop-transformers]", "transformers"),
        ("suites/test_a.py::test_x[transformers-nf4:org/model@/opt/python-prefill]", "transformers-nf4:org/model@/opt/python"),
        ("suites/test_a.py::test_x[transformers2]", ""),
        ("suites/test_a.py::test_transformers", ""),
    ],
)
def test_the_cell_is_read_from_the_node_id(nodeid: str, cell: str) -> None:
    assert scope_of(nodeid, sorted(CELLS, key=len, reverse=True)) == cell


def processes(result: pytest.RunResult) -> set[str]:
    return set(re.findall(r"\[(gw\d+)\]", result.stdout.str()))


MANY = """
    import pytest

    @pytest.mark.parametrize("n", range(20))
    def test_alone(n):
        import time; time.sleep(0.05)
"""


def test_tests_without_an_engine_use_all_processes_even_within_a_file(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile(MANY)
    assert processes(run("-n2", "-v")) == {"gw0", "gw1"}


def test_loadfile_is_honoured(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(MANY)
    assert len(processes(run("-n2", "-v", "--dist=loadfile"))) == 1


def test_a_strict_session_in_which_a_cell_compared_nothing_fails(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile("def test_it(engine): pass")
    result = run("--quantization=nf4", "--llminfer-strict", *mode)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["ERROR: nothing was compared in the cell simulated-nf4"])
    assert run("--quantization=nf4", *mode).ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_record_that_json_cannot_hold_fails_its_own_test_and_no_other(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(
        """
        def test_bad(engine, baseline):
            baseline.expected("bad", observe=lambda engine, _: {"value": float("nan")}, conditions={}, n=1)

        def test_good(engine, baseline):
            baseline.expected("good", observe=lambda engine, _: {"value": 1.0}, conditions={}, n=1)
        """
    )
    result = run("--update-baselines", *mode)
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*BaselineError: expected.value of a baseline record is nan; only finite numbers *"])
    assert (pytester.path / "baselines/any/reference/good.json").is_file()
