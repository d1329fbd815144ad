"""What the tests of environments on demand share: an index of tiny wheels, a fake uv, and questions to what was made."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines.environments import cache
from tests.support.tiny_wheels import fake_uv, wheel

MAKE = """
import sys
from pytest_llminfer.engines.environments import interpreter
print(interpreter(sys.argv[1], progress=lambda phase, done, total: print(phase, flush=True)))
"""


class Phases(list[str]):
    """What a progress bar would have shown."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.append(phase)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of our own, an empty cache, and a PATH with nothing on it; conftest.py leaves all other configuration out."""
    folder = tmp_path / "index"
    wheel(folder, "llminfer-tiny", "1.0", "ANSWER = 42")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    return folder


@pytest.fixture
def uv(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """The calls that a fake uv on PATH, which installs from ``index``, was given so far."""
    assert index.is_dir()
    calls = fake_uv(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()]


def makes(uv: Any) -> int:
    return sum(call[0] == "venv" for call in uv())


def evaluate(python: str, expression: str, module: str = "llminfer_tiny") -> str:
    command = [python, "-c", f"import {module} as module; print({expression})"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def left_behind() -> list[str]:
    return [path.name for path in cache.environments_folder().iterdir() if not path.name.startswith(".")]


def hear_interrupts() -> None:
    """A test run in the background of a shell ignores interrupts, and what it starts would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_making(requirement: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, requirement]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts)  # noqa: PLW1509 - nothing else forks here
