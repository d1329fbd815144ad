"""Ctrl-C and a killed pytest leave no worker behind, nor anything that it started."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

PROBES = """
    import ctypes
    import os
    import pathlib
    import signal
    import subprocess
    import time

    def spawn(model):
        return subprocess.Popen(["sleep", "600"]).pid

    def told(*pids):
        pathlib.Path("pid.part").write_text(" ".join(map(str, pids)))
        pathlib.Path("pid.part").rename("pid")

    def spawn_and_hang(model):
        told(spawn(model))
        time.sleep(600)

    def hold_the_lock(model):
        told(os.getpid())
        ctypes.PyDLL(None).sleep(600)

    def stop(model):
        told(os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)

    def leave_the_group(model):
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    def fork_twice(model):
        reads, writes = os.pipe()
        if not os.fork():
            os.setsid()
            if not (pid := os.fork()):
                time.sleep(600)
            os.write(writes, str(pid).encode())
            os._exit(0)
        return int(os.read(reads, 20))
"""
TEST = """
    import pathlib, time
    from probes import spawn, spawn_and_hang

    def test_long(engine):
        {body}
"""
SPAWNED = 'pathlib.Path("pid.part").write_text(str(engine.run(spawn))); pathlib.Path("pid.part").rename("pid"); time.sleep(600)'
BODIES = {"in a request": "engine.run(spawn_and_hang)", "between requests": SPAWNED, "while loading": "pass"}


def hear_interrupts() -> None:
    """A test run in the background of a shell ignores interrupts, and what it starts would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def workers_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "worker" in " ".join(child.cmdline())]


def wait_until(condition: Callable[..., bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def under_way(folder: Path, body: str) -> bool:
    """Told by the worker itself: it has spawned its child and is in the request, or its log says that it loads."""
    if body == "while loading":
        return any("loading hangs" in log.read_text() for log in folder.rglob("worker-*.log"))
    return (folder / "pid").exists()


@pytest.mark.parametrize("body", list(BODIES))
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.fault(
    "processes",
    "SIGINT, SIGTERM or SIGKILL to pytest: in a request, between two, while loading",
    "no process and no temporary file is left",
)
def test_a_signal_to_pytest_ends_the_worker_and_its_children(pytester: pytest.Pytester, how: signal.Signals, body: str) -> None:
    pytester.makepyfile(probes=PROBES, test_long=TEST.format(body=BODIES[body]))
    fault = ["--engine-args", '{"fault": "hang_in_load"}'] if body == "while loading" else []
    options = ["-q", "-p", "no:cacheprovider", "--engine=simulated", "--import-mode=prepend", f"--basetemp={pytester.path}/logs"]
    process = subprocess.Popen([sys.executable, "-m", "pytest", *options, *fault], cwd=pytester.path, preexec_fn=hear_interrupts)  # noqa: PLW1509 - nothing else forks here
    try:
        assert wait_until(lambda: process.poll() is not None or under_way(pytester.path, body))
        assert process.poll() is None
        left = workers_of(process.pid)
        assert len(left) == 1
        folder = Path(left[0].environ()["TMPDIR"])
        assert folder.is_dir()
        if body != "while loading":
            child = psutil.Process(int((pytester.path / "pid").read_text()))
            assert child.ppid() == left[0].pid
            left.append(child)
        process.send_signal(how)
        process.wait(timeout=20)
        assert wait_until(lambda: all(map(gone, left)))
        assert not folder.exists()
    finally:
        process.kill()
        process.wait()


@pytest.mark.fault("processes", "Ctrl-C while two replicas load", "both end")
def test_an_interrupt_while_two_replicas_load_ends_both(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_long(engine): pass")
    options = ["-q", "-p", "no:cacheprovider", "--engine=simulated", "--dp=2", "--engine-args", '{"fault": "hang_in_load"}']
    command = [sys.executable, "-m", "pytest", *options, f"--basetemp={pytester.path}/logs"]
    process = subprocess.Popen(command, cwd=pytester.path, preexec_fn=hear_interrupts)  # noqa: PLW1509 - nothing else forks here
    try:
        assert wait_until(
            lambda: sum("loading hangs" in log.read_text() for log in pytester.path.rglob("worker-*.log")) == 2,
        )
        left = workers_of(process.pid)
        assert len(left) == 2
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        assert wait_until(lambda: all(map(gone, left)))
    finally:
        process.kill()
        process.wait()


@pytest.mark.fault("processes", "a worker has started a process", "it ends with the worker")
def test_children_of_the_worker_end_with_it(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(
        probes=PROBES,
        test_children="""
        import os, pathlib
        from probes import spawn

        def test_spawn(engine):
            pathlib.Path("pid").write_text(str(engine.run(spawn)))
        """,
    )
    run("-p", "no:cacheprovider", "--import-mode=prepend").assert_outcomes(passed=1)
    pid = int((pytester.path / "pid").read_text())
    assert wait_until(lambda: not psutil.pid_exists(pid) or gone(psutil.Process(pid)))


@pytest.mark.parametrize("probe", ["hold_the_lock", "stop"])
@pytest.mark.fault(
    "processes",
    "a worker is stopped or holds the lock of its interpreter, and pytest is killed",
    "worker and files are gone within 20 s",
)
def test_a_worker_that_cannot_run_python_does_not_outlive_a_killed_pytest(pytester: pytest.Pytester, probe: str) -> None:
    """Its thread that waits for the end of the pipe does not run: of a GPU it would hold the memory."""
    pytester.makepyfile(
        probes=PROBES, test_stuck=f"from probes import {probe}\n\ndef test_stuck(engine):\n    engine.run({probe})\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "--engine=simulated", "--import-mode=prepend", f"--basetemp={pytester.path}/logs"]
    process = subprocess.Popen([sys.executable, "-m", "pytest", *options], cwd=pytester.path)
    try:
        assert wait_until((pytester.path / "pid").exists)
        worker = psutil.Process(int((pytester.path / "pid").read_text()))
        folder = Path(worker.environ()["TMPDIR"])
        assert folder.is_dir()
    finally:
        process.kill()
        process.wait()
    assert wait_until(lambda: gone(worker) and not folder.exists(), seconds=20)


@pytest.mark.parametrize("probe", ["leave_the_group", "fork_twice"])
@pytest.mark.fault("processes", "a process of the engine left the worker's group, or forked twice", "it ends with the worker")
def test_children_that_left_the_group_of_the_worker_end_with_it(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], probe: str
) -> None:
    """As the daemons of Ray do."""
    pytester.makepyfile(
        probes=PROBES,
        test_children=f"from probes import {probe}, told\n\ndef test_spawn(engine):\n    told(engine.run({probe}))\n",
    )
    run("--import-mode=prepend").assert_outcomes(passed=1)
    pid = int((pytester.path / "pid").read_text())
    assert wait_until(lambda: not psutil.pid_exists(pid) or gone(psutil.Process(pid)), seconds=5)


def test_the_guardian_ends_with_its_session(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(
        """
        import os, pathlib
        import psutil

        def test_guarded(engine):
            guardians = [child for child in psutil.Process().children() if "guardian.py" in " ".join(child.cmdline())]
            pathlib.Path("pid").write_text(" ".join(str(child.pid) for child in guardians))
        """
    )
    run().assert_outcomes(passed=1)
    (pid,) = map(int, (pytester.path / "pid").read_text().split())
    assert wait_until(lambda: not psutil.pid_exists(pid) or gone(psutil.Process(pid)), seconds=5)
