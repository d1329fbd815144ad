"""The program that fills an environment: uv where it is on PATH, else venv and pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.errors import EngineStartError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import IO

LAST_LINES = 6
_LONGEST_LINE = 240
_REASONS = (
    (
        r"No space left on device",
        "the disk is full; remove environments with `llminfer env remove`, or let XDG_CACHE_HOME name another disk",
    ),
    (
        (
            r"NewConnectionError|NameResolutionError|name resolution|Network is unreachable|ConnectTimeout|ReadTimeout|dns error"
            r"|error sending request|Failed to (?:establish|fetch)|Connection (?:refused|reset)|ProxyError"
        ),
        "the package index cannot be reached; check the network, the proxy and the index (PIP_INDEX_URL, UV_INDEX_URL)",
    ),
    (
        r"from versions: none",
        "there is no such distribution for this Python and platform, or the index is out of reach; check the name and the network",
    ),
    (
        r"No matching distribution|Could not find a version|No solution found|no version of|not found in the package registry",
        "there is no such version for this Python and platform; `{pip} index versions {name}` lists those that there are",
    ),
    (
        r"ensurepip is not available|No module named '?(?:ensurepip|venv|pip)\b",
        "this Python cannot make environments; install uv, or the venv package of your distribution (python3-venv)",
    ),
)


@dataclass(frozen=True, slots=True)
class Installer:
    """Runs the commands that make one environment.

    uv: its path; empty for venv and pip. folder: of the environment. log: where the output goes. lock: kept open by every
    command, so that one which outlives this process still keeps others out.
    """

    uv: str
    folder: Path
    python: Path
    log: Path
    lock: IO[bytes]
    requirement: str

    @staticmethod
    def find() -> str:
        """The path of uv; empty without it."""
        return shutil.which("uv") or ""

    def make(self) -> None:
        """An empty environment of this very Python: another one of the same version may lie on PATH, or be downloaded."""
        if self.uv:
            self.run([self.uv, "venv", "--quiet", "--python", sys.executable, str(self.folder)])
        else:
            self.run([sys.executable, "-m", "venv", str(self.folder)])

    def install(self, *arguments: str) -> None:
        """Install into the environment.

        Raises:
            EngineStartError: it failed; with what the installer said last, and what to do.
        """
        self.run([*self._pip("install"), *arguments])

    def uninstall(self, *names: str) -> None:
        """Remove packages from the environment."""
        self.run([*self._pip("uninstall"), *([] if self.uv else ["--yes"]), *names])

    def can_import(self, module: str) -> bool:
        """Whether the environment's interpreter can; what it says goes to the log."""
        return self._call([str(self.python), "-c", f"import {module}"]) == 0

    def run(self, command: Sequence[str]) -> None:
        """Run ``command`` to its end.

        Raises:
            EngineStartError: it failed.
        """
        start = self.log.stat().st_size if self.log.exists() else 0
        status = self._call(command)
        if status == 0:
            return
        output = self.log.read_bytes()[start:].decode(errors="replace")
        lines = [line for line in output.splitlines() if line.strip()][1:]
        words = "\n".join(f"    {_shortened(line)}" for line in lines[-LAST_LINES:]) or "    (nothing)"
        raise EngineStartError(
            f"cannot make the environment for {self.requirement}: {self._explain(output, status)}. "
            f"The whole log: {self.log}. Its last lines:\n{words}"
        )

    def _pip(self, action: str) -> list[str]:
        if self.uv:
            return [self.uv, "pip", action, "--python", str(self.python)]
        return [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", action]

    def _call(self, command: Sequence[str]) -> int:
        # What these name is built for our own interpreter, and pip would count it as installed.
        settings = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
        with self.log.open("ab") as stream:
            stream.write(f"$ {' '.join(command)}\n".encode())
            stream.flush()
            try:
                done = subprocess.run(  # noqa: S603 - uv, or an interpreter
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=settings,
                    pass_fds=(self.lock.fileno(),),
                    check=False,
                )
            except OSError as error:
                raise EngineStartError(
                    f"cannot make the environment for {self.requirement}: cannot start {command[0]}: {error.strerror}"
                ) from error
        return done.returncode

    def _explain(self, output: str, status: int) -> str:
        program = "uv" if self.uv else "pip"
        for pattern, reason in _REASONS:
            if re.search(pattern, output):
                name = self.requirement.partition("==")[0]
                return f"{program} failed: " + reason.format(pip=f"{sys.executable} -m pip", name=name)
        return f"{program} ended with status {status}; the log says why"


def _shortened(line: str) -> str:
    """Both ends of a long line: pip lists every version that there is, the newest last."""
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]} … {line[-half:]}"
