"""Workers of the next cell, started while this one is tested: used once, with its own GPUs, and never left behind."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

NVIDIA_SMI = '#!/bin/sh\nfor i in 0 1 2; do echo "$i, GPU-$i, NVIDIA H100 80GB HBM3, 81559 MiB, 580.1"; done\n'
CONFTEST = """
    import dataclasses
    import pytest
    from pytest_llminfer.engines import profiles
    from pytest_llminfer.plugin import launching, prestart as ahead

    # The simulated engine stands for one that takes GPUs.
    launching.profile = lambda name: dataclasses.replace(profiles.profile(name), takes_gpus=True)
    launching.Launcher._refuse_fallback = lambda *_: None

    def waiting(config):
        started = config.stash.get(ahead.STARTED, None)
        return None if started is None else started.spec

    @pytest.fixture
    def next_cell(engine, request):
        return waiting(request.config)
"""
VISIBLE = """
    import os

    def visible(model):
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()

    def test_first(engine, next_cell, request):
        devices, pid = engine.run(visible)
        print("CELL", engine.spec, "on", devices, "worker", pid, "next", next_cell)
"""


@pytest.fixture
def session(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    tools = pytester.mkdir("bin")
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LLMINFER_LOCKS", str(pytester.path / "locks"))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(VISIBLE)
    return lambda *arguments: run("-s", "-v", *arguments)


def test_the_next_cell_is_started_where_gpus_are_free(session: Callable[..., pytest.RunResult]) -> None:
    result = session("--dp=1,2", "--dtype=fp32,auto")
    result.assert_outcomes(passed=4)
    # Beside one GPU the next cell's two are free; beside two only a cell on one.
    result.stdout.fnmatch_lines(
        [
            "*CELL simulated-fp32 on 0 * next simulated-fp32-dp2",
            "*CELL simulated-fp32-dp2 on 1 * next simulated",
            "*CELL simulated on 0 * next simulated-dp2",
            "*CELL simulated-dp2 on 1 * next None",
        ]
    )


def test_a_prestarted_worker_is_the_one_that_is_used(pytester: pytest.Pytester, session: Callable[..., pytest.RunResult]) -> None:
    pytester.makeconftest(
        CONFTEST
        + """
    @pytest.fixture(autouse=True)
    def pids(engine, request):
        started = request.config.stash.get(ahead.STARTED, None)
        for worker in started.workers if started else ():
            print("AHEAD", started.spec, "worker", worker.process.pid)
        yield
"""
    )
    lines = session("--dtype=fp32,auto").stdout.lines
    words = [line.split() for line in lines if "AHEAD" in line or "CELL" in line]
    (ahead,) = [found[found.index("worker") + 1] for found in words if "AHEAD" in found]
    used = [found[found.index("worker") + 1].rstrip(")") for found in words if "CELL" in found]
    assert len(used) == 2
    assert used[1] == ahead


def test_a_cell_that_is_passed_over_gives_its_gpus_back(
    pytester: pytest.Pytester, session: Callable[..., pytest.RunResult]
) -> None:
    pytester.makeconftest(
        CONFTEST
        + """
    @pytest.fixture(scope="session")
    def llminfer_model(engine_spec):
        from pytest_llminfer.errors import UnsupportedError
        from pytest_llminfer.models.model import Model
        if engine_spec.dp == 2:
            raise UnsupportedError("passed over")
        return Model("reference")
"""
    )
    result = session("--dp=1,2,3", "--llminfer-timeout=20")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*CELL simulated on 0 * next simulated-dp2", "*CELL simulated-dp3 on 0 *"])


OTHER = """
    import pytest

    @pytest.mark.parametrize("close", [False, True])
    def test_an_engine_of_ones_own(engine, launch_engine, model, close):
        if close:
            engine.close()
        try:
            launch_engine(engine.spec, model, {}).close()
        finally:
            engine.restart()
"""


def test_a_second_engine_does_not_wait_for_the_first(pytester: pytest.Pytester, session: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(OTHER)
    result = session("--dp=3", "--llminfer-timeout=20")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*EngineStartError: 3 GPUs are needed, and of 3 this session itself holds 3, for simulated-dp3: close that engine first*"]
    )


def test_a_prestarted_worker_gives_its_gpus_back_when_another_cell_needs_them(
    pytester: pytest.Pytester, session: Callable[..., pytest.RunResult]
) -> None:
    """The next cell has what the closed engine had, which is loaded again beside an engine of the test's own."""
    pytester.makepyfile(
        """
        from pytest_llminfer.plugin import prestart as ahead

        def test_restart(engine, launch_engine, model, pytestconfig):
            if engine.spec.dp == 1:
                engine.close()
                own = launch_engine(engine.spec, model, {})
                assert pytestconfig.stash[ahead.STARTED].spec.dp == 2
                engine.restart()
                assert ahead.STARTED not in pytestconfig.stash
                own.close()
        """
    )
    result = session("--dp=1,2", "--llminfer-timeout=20")
    result.assert_outcomes(passed=2)


def release_when_waited_for(lock: IO[bytes], locks: Path) -> None:
    """A session that waits holds the turn; it looks every second, and has then said so."""
    deadline = time.monotonic() + 60
    while not (locks / "turn.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2.5)
    lock.close()


def test_a_log_says_that_another_session_is_waited_for(pytester: pytest.Pytester, session: Callable[..., pytest.RunResult]) -> None:
    locks = pytester.mkdir("locks")
    with (locks / "GPU-0.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        release = threading.Thread(target=release_when_waited_for, args=(lock, locks))
        release.start()
        result = session("--dp=3", "--llminfer-timeout=20")
        release.join()
    result.assert_outcomes(passed=1)
    assert result.stderr.str().count("simulated-dp3 waiting for GPUs: 0 of 3") == 1
