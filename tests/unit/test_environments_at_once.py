"""Several sessions and threads, and sessions that are ended, make one environment."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from pytest_llminfer.engines.environments import interpreter
from tests.support import tiny_environments
from tests.support.tiny_environments import Phases, evaluate, left_behind, makes, start_making

index, uv = tiny_environments.index, tiny_environments.uv


def test_of_two_sessions_one_makes_and_the_other_waits(uv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UV_SECONDS", "0.5")
    sessions = [start_making("llminfer-tiny==1.0") for _ in range(2)]
    outputs = [session.communicate(timeout=60)[0] for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0]
    assert makes(uv) == 1
    assert sum("waiting for another session" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_two_threads_of_one_session_make_it_once(uv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UV_SECONDS", "0.2")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(interpreter("llminfer-tiny==1.0"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert makes(uv) == 1


def test_an_installer_that_outlives_its_session_keeps_others_out(uv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UV_SECONDS", "1")
    killed = start_making("llminfer-tiny==1.0")
    deadline = time.monotonic() + 30
    while not uv() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    monkeypatch.setenv("FAKE_UV_SECONDS", "0")
    phases = Phases()
    python = interpreter("llminfer-tiny==1.0", progress=phases)
    assert "waiting for another session" in phases[0]
    assert evaluate(python, "module.ANSWER") == "42"
    assert makes(uv) == 2


def test_an_interrupted_creation_leaves_nothing(uv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UV_SECONDS", "1")
    session = start_making("llminfer-tiny==1.0")
    deadline = time.monotonic() + 30
    while len(uv()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left_behind() != []
    session.send_signal(signal.SIGINT)
    session.communicate(timeout=60)
    assert session.returncode != 0
    assert left_behind() == []
