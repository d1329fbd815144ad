"""The suites on memory with the simulated engine: the profile is printed and stored, and what is left behind is named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable

import psutil
import pytest

from tests.support.paths import SUITES

KEEPER = """
    import pathlib, subprocess, sys

    import pytest
    from pytest_llminfer.families.shutdown import observe

    observe.LIMIT_SECONDS = 1.0
    CODE = "import time; kept = bytearray(b'x') * (100 << 20); print('there', flush=True); time.sleep(600)"

    @pytest.fixture(scope="session")
    def llminfer_engine(llminfer_engine, llminfer_engine_spec):  # pytest 8.4 looks no further than at what an override asks for
        llminfer_engine.prepare("conftest.py::keep_memory_after_the_end")
        return llminfer_engine

    def keep_memory_after_the_end(model):
        process = subprocess.Popen([sys.executable, "-c", CODE], start_new_session=True, stdout=subprocess.PIPE)
        process.stdout.readline()
        with pathlib.Path({note!r}).open("a") as stream:
            stream.write(f"{{process.pid}}\\n")
"""
DEVICE = """
    from dataclasses import replace

    from pytest_llminfer.families.shutdown import observe
    from pytest_llminfer.engines.engine import Engine

    ranks = Engine.ranks
    Engine.ranks = lambda engine: tuple(replace(rank, device="GPU-a") for rank in ranks(engine))
    Engine.idle_bytes = 1 << 30
    observe.device_bytes = lambda ids: {after} << 30
"""
HISTORY = """
    from dataclasses import replace

    from pytest_llminfer.engines.engine import Engine

    memory, restart, held = Engine.memory, Engine.restart, [1 << 30]

    def with_what_ran_before(engine, **options):
        report = memory(engine, **options)
        return replace(report, run_peak_bytes=report.run_peak_bytes + held[0])

    def anew(engine):
        held[0] = {after}
        restart(engine)

    Engine.memory, Engine.restart = with_what_ran_before, anew
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Callable[..., None]:
    """Copy one suite into the project."""

    def copy(name: str) -> None:
        (pytester.path / f"test_{name}.py").write_text((SUITES / f"test_{name}.py").read_text())

    return copy


def test_the_memory_profile_is_printed_and_stored(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], suite: Callable[..., None], mode: tuple[str, ...]
) -> None:
    suite("memory")
    result = run("-k", "every_line", "--update-baselines", "--baselines=kept", *mode)
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines(
        [
            r"cell +memory +predicted +measured +difference +gate",
            r"simulated +weights +14,689,280 +14,689,280 +\+0 +±146,892",
            r" +buffers +",
            r" +load peak +- +[\d,]+ +- +shown",
        ]
    )
    (file,) = (pytester.path / "kept").glob("*/reference/memory_profile.json")
    (entry,) = json.loads(file.read_text())["entries"].values()
    assert entry["expected"]["lines"][0] == {
        "line": "weights", "unit": "bytes", "predicted": 14689280, "measured": 14689280, "difference": 0, "gate": "±146,892",
        "within": True,
    }  # fmt: skip


def test_a_mebibyte_that_every_request_leaves_behind_is_found(
    run: Callable[..., pytest.RunResult], suite: Callable[..., None]
) -> None:
    suite("memory")
    result = run("-k", "left_behind", "--engine-args", '{"fault": "leak", "fault_bytes": 1048576}')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*memory in use grew by 9,437,184 bytes over 18 identical requests*"])


def test_what_ran_before_is_no_peak_and_what_a_fresh_start_needs_is(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], suite: Callable[..., None]
) -> None:
    suite("memory")
    run("-k", "peak and run", "--update-baselines").assert_outcomes(skipped=1)
    pytester.makeconftest(HISTORY.format(after=0))
    result = run("-k", "peak and run")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["engine loads: 2"])
    pytester.makeconftest(HISTORY.format(after=1 << 30))
    result = run("-k", "peak and run")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*run peak on a fresh start is 1,07?,???,??? bytes above its budget*"])


def test_a_layer_in_another_dtype_is_outside_the_gate_and_marked(
    run: Callable[..., pytest.RunResult], suite: Callable[..., None]
) -> None:
    suite("memory")
    result = run("-k", "every_line", "--engine-args", '{"fault": "change_dtype", "fault_dtype": "float64"}')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*weights: 786,432 bytes more than the predicted 14,689,280 (+5.35 %)*", "simulated *weights *OUTSIDE"]
    )


def test_a_stopped_engine_leaves_nothing(run: Callable[..., pytest.RunResult], suite: Callable[..., None]) -> None:
    suite("shutdown")
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["simulated *pass 3 stops", "engine loads: 4"])


def runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_process_that_keeps_memory_after_the_stop_is_named(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], suite: Callable[..., None]
) -> None:
    note = pytester.path / "pids"
    suite("shutdown")
    pytester.makeconftest(KEEPER.format(note=str(note)))
    try:
        result = run("--import-mode=prepend")
    finally:
        left = [pid for pid in map(int, note.read_text().split()) if runs(pid)] if note.exists() else []
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    # It was seen, and then ended: that is not the engine's own doing.
    assert not left
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r".*stop 1: process \d+ \(.*bytearray.*\) lives on and holds 1[01]\d,\d{3},\d{3} bytes"])


@pytest.mark.parametrize(("after", "outcome"), [(1, "passed"), (21, "failed")])
def test_a_device_is_compared_with_what_it_was_before_the_engine(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], suite: Callable[..., None], after: int, outcome: str
) -> None:
    suite("shutdown")
    pytester.makeconftest(DEVICE.format(after=after))
    run().assert_outcomes(**{outcome: 1})
