"""Long work shows a bar on a terminal, and nothing anywhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable

import pytest

TEST = "def test_it(engine, model):\n    engine.generate(model.prompts(4), max_tokens=4)\n"


def on_a_terminal(pytester: pytest.Pytester, *arguments: str) -> str:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--engine=simulated", *arguments]
    with subprocess.Popen(command, cwd=pytester.path, stdin=terminal, stdout=terminal, stderr=terminal):
        os.close(terminal)
        output = b""
        while True:
            try:
                chunk = os.read(controller, 65536)
            except OSError:  # Linux says end of file of a terminal so
                break
            if not chunk:
                break
            output += chunk
    os.close(controller)
    return output.decode(errors="replace")


def test_a_terminal_gets_a_bar(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TEST)
    output = on_a_terminal(pytester)
    assert "simulated loading" in output
    assert "simulated generating" in output
    assert "1 passed" in output


def test_a_pipe_gets_none(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile(TEST)
    result = run()
    assert "loading" not in result.stdout.str() + result.stderr.str()
