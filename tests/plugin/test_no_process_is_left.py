"""Ctrl-C and a killed pytest leave no worker behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

TEST = """
    import time

    def test_long(engine):
        print("ready", flush=True)
        {body}
"""
BODIES = {"in a request": "engine.generate([[5]], max_tokens=1)", "between requests": "time.sleep(60)"}


def workers_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "worker" in " ".join(child.cmdline())]


def wait_until(condition, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("body", list(BODIES))
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_pytest_ends_the_worker(pytester: pytest.Pytester, how: signal.Signals, body: str) -> None:
    pytester.makepyfile(TEST.format(body=BODIES[body]))
    fault = ["--engine-args", '{"fault": "hang"}'] if body == "in a request" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "--engine=simulated", *fault],
        cwd=pytester.path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("ready" in line for line in process.stdout)
        workers = workers_of(process.pid)
        assert len(workers) == 1
        process.send_signal(how)
        process.wait(timeout=20)
        assert wait_until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_children_of_the_worker_end_with_it(pytester: pytest.Pytester, run) -> None:
    pytester.makepyfile(
        probes="""
        import subprocess

        def spawn(model):
            return subprocess.Popen(["sleep", "600"]).pid
        """,
        test_children="""
        import os, pathlib
        from probes import spawn

        def test_spawn(engine):
            pathlib.Path("pid").write_text(str(engine.run(spawn)))
        """,
    )
    run("-p", "no:cacheprovider", "--import-mode=prepend").assert_outcomes(passed=1)
    pid = int((pytester.path / "pid").read_text())
    assert wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
