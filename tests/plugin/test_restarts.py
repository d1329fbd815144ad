"""What was prepared in a live model holds after a restart, and every load is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def test_preparations_are_repeated_and_loads_counted(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(
        probes="""
        def mark(model, value):
            model.mark = value

        def read(model):
            return getattr(model, "mark", None)
        """,
        test_restart="""
        from probes import mark, read

        def test_restart(engine):
            engine.run(mark, value=1)
            assert engine.run(read) == 1
            engine.restart()
            assert engine.run(read) is None
            engine.prepare(mark, value=2)
            assert engine.run(read) == 2
            engine.restart()
            assert engine.run(read) == 2
        """,
    )
    result = run("--import-mode=prepend")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["engine loads: 3", "    simulated: *", "    simulated, started afresh: *", "    simulated, started afresh: *"]
    )
