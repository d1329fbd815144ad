"""The program that fills an environment: uv where it is on PATH, else venv and pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.engines.environments.conflicts import NO_SUCH_VERSION, explain_pip, explain_uv
from pytest_llminfer.engines.environments.constraints import without_secrets
from pytest_llminfer.errors import EngineStartError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import IO

LAST_LINES = 6
_LONGEST_LINE = 240
_LONGEST_QUESTION_S = 60.0
_OF_THE_MACHINE = (
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
)
_OF_THE_REQUIREMENT = (
    (
        r"ResolutionImpossible",
        "what is required does not fit together; the log says which requirements conflict",
    ),
    (
        r"from versions: none",
        "there is no such distribution for this Python and platform, or the index is out of reach; check the name and the network",
    ),
    (
        r"No matching distribution|Could not find a version|No solution found|no version of|not found in the package registry",
        NO_SUCH_VERSION,
    ),
    (
        r"ensurepip is not available|No module named '?(?:ensurepip|venv|pip)\b",
        "this Python cannot make environments; install uv, or the venv package of your distribution (python3-venv)",
    ),
)


@dataclass(frozen=True, slots=True)
class Installer:
    """Runs the commands that make one environment.

    Attributes:
        uv: Path of uv; empty for venv and pip.
        folder: The environment.
        python: Its interpreter.
        log: File to which the commands and their output are appended.
        lock: Kept open by every command, so that one that outlives this process still keeps others out.
        requirement: What is installed, ``NAME==VERSION``, for messages.
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
            f"cannot make the environment for {self.requirement}: {self._explain(output, status, command)}. "
            f"The whole log: {self.log}. Its last lines:\n{words}"
        )

    def _pip(self, action: str) -> list[str]:
        if self.uv:
            return [self.uv, "pip", action, "--python", str(self.python)]
        return [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", action]

    def _call(self, command: Sequence[str]) -> int:
        with self.log.open("ab") as stream:
            stream.write(f"$ {' '.join(command)}\n".encode())
            stream.flush()
            try:
                done = subprocess.run(  # noqa: S603 - uv, or an interpreter
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=_settings(),
                    pass_fds=(self.lock.fileno(),),
                    check=False,
                )
            except OSError as error:
                raise EngineStartError(
                    f"cannot make the environment for {self.requirement}: cannot start {command[0]}: {error.strerror}"
                ) from error
        return done.returncode

    def _ask(self, arguments: Sequence[str]) -> str:
        """What the environment's pip answers; empty where it does not. Not logged: its configuration may hold passwords."""
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
        try:
            done = subprocess.run(  # noqa: S603 - the interpreter of the environment
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=_settings(),
                timeout=_LONGEST_QUESTION_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout + done.stderr

    def _explain(self, output: str, status: int, command: Sequence[str]) -> str:
        program = "uv" if self.uv else "pip"
        reason = _first(_OF_THE_MACHINE, output)
        if not reason and "install" in command:
            arguments = command[command.index("install") + 1 :]
            reason = explain_uv(output, os.environ) if self.uv else explain_pip(output, arguments, self._ask, os.environ)
        if not reason:
            name = self.requirement.partition("==")[0]
            reason = _first(_OF_THE_REQUIREMENT, output).format(pip=f"{sys.executable} -m pip", name=name)
        return f"{program} failed: {reason}" if reason else f"{program} ended with status {status}; the log says why"


def _first(reasons: Sequence[tuple[str, str]], output: str) -> str:
    return next((reason for pattern, reason in reasons if re.search(pattern, output)), "")


def _settings() -> dict[str, str]:
    # What these name is built for our own interpreter, and pip would count it as installed.
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}


def _shortened(line: str) -> str:
    """Both ends of a long line, without secrets: pip lists every version that there is, the newest last."""
    line = without_secrets(line)
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]} … {line[-half:]}"
