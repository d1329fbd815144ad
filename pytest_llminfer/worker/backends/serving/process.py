"""A server as a child process: its last words, whether it lives, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import EngineDiedError, EngineError, EngineStartError, OutOfMemoryError
from pytest_llminfer.worker.backends import shared_memory
from pytest_llminfer.worker.backends.openai.keys import redact
from pytest_llminfer.worker.backends.serving.command import clean_environment, missing_interpreter
from pytest_llminfer.worker.backends.serving.listening import sockets_of, sockets_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llminfer.worker.backends.serving.command import Command

KEPT_LINES, SHOWN_LINES = 400, 12
STOP_SECONDS = 10.0
_END_SECONDS = 3.0
_LOOK_SECONDS = 0.1
_TOLD_SECONDS = 1.0
_HEALTH_SECONDS = 5.0
_OUT_OF_MEMORY = (
    "out of memory",
    "OutOfMemoryError",
    "Cannot allocate memory",
    "No available memory for the cache blocks",
    "MemoryError",
)
_REFUSED_STATUS = 2
_HEALTHY, _DENIED = 200, 401
_READ_BYTES = 1 << 16


class PortTakenError(EngineStartError):
    """Another process listens where the server was told to."""


def free_port() -> int:
    """A port of the loopback device on which no process listens right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A started server. It stays in the process group of this worker, so that one signal ends both.

    What it writes goes to standard error of the worker, without the key.
    """

    def __init__(self, command: Command, *, variables: Mapping[str, str], key: str, address: str) -> None:
        self._address, self._key = address, key
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._children: set[int] = set()
        environment = {**clean_environment(command.argv[0]), "PYTHONUNBUFFERED": "1", **command.variables, **variables}
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the interpreter is the one that the user names
                command.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
            )
        except OSError as error:
            raise missing_interpreter(command.argv[0], error) from error
        self._heard = 0
        self._reader = threading.Thread(target=self._read, name="llminfer-server-log", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._process.poll() is None

    def ends_soon(self) -> bool:
        """Whether it has ended, or does so right now: connections break before their process is gone."""
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        return self._process.pid

    def wait_until_ready(self, progress: Callable[[str, int, int], None]) -> None:
        """Wait until ``/health`` or the list of models answers. Output of the server counts as progress, its existence does not.

        Raises:
            EngineStartError, OutOfMemoryError: it ended before. PortTakenError: what answers is not this server.
        """
        told, last = -1, -_TOLD_SECONDS
        while True:
            if not self.alive:
                self._prove_itself()
                raise self.death("before it answered", EngineStartError)
            if self._heard != told and time.monotonic() - last > _TOLD_SECONDS:
                told, last = self._heard, time.monotonic()
                progress("starting the server", 0, 1)
            if self._answers("/health") or self._answers("/v1/models"):
                break
            time.sleep(_LOOK_SECONDS)
        self._prove_itself()
        progress("starting the server", 1, 1)

    def _prove_itself(self) -> None:
        """Between choosing a port and binding it another process may take it, and answer in this server's place."""
        listening = sockets_on(urllib.parse.urlsplit(self._address).port or 0)
        if foreign := listening - sockets_of([self.pid, *descendants(self.pid)]):
            others = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
            holders = [pid for pid in others if foreign & sockets_of([pid])]
            who = f"process {holders[0]}" if holders else "a process of another user"
            raise PortTakenError(f"{who} answers at {self._address}, where the server that was started should listen")

    def unname_shared_memory(self) -> None:
        """Unlink the shared memory of its processes, which then goes with the last of them, also when they are killed."""
        shared_memory.unlink([self.pid, *descendants(self.pid)])

    def _answers(self, path: str) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self._address}{path}", headers={"Authorization": f"Bearer {self._key}"})  # noqa: S310 - loopback
        try:
            with opener.open(request, timeout=_HEALTH_SECONDS) as reply:
                return bool(reply.status == _HEALTHY)
        except (OSError, ValueError):
            return False

    def death(self, when: str, cls: type[EngineError] = EngineDiedError) -> EngineError:
        """The error for a server that has ended; running out of memory has a class of its own."""
        self._reader.join(timeout=2)
        lines = list(self._lines)
        status = self._process.poll()
        if any(word in line for line in lines for word in _OUT_OF_MEMORY):
            reason = next(line for line in reversed(lines) if any(word in line for word in _OUT_OF_MEMORY))
            return OutOfMemoryError(f"the server ran out of memory {when}: {reason.strip()}")
        refusal = next((line for line in reversed(lines) if "error: " in line), "") if status == _REFUSED_STATUS else ""
        if refusal:
            return EngineStartError(f"the server refuses its arguments: {refusal.strip()}")
        words = "\n".join(f"    {line}" for line in lines[-SHOWN_LINES:]) or "    (none)"
        return cls(f"the server {how_it_ended(status)} {when}. Its last words:\n{words}")

    def stop(self) -> dict[str, Any]:
        """Ask it to end with SIGTERM, and see how it does.

        ``{"seconds", "status", "left"}``: status None if it did not end within 10 s, and was killed; left: children of it that
        were still alive then, which are killed as well.
        """
        children = descendants(self.pid)
        started = time.monotonic()
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        status: int | None
        try:
            status = self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        seconds = time.monotonic() - started
        # A child that ends with its parent may need a moment.
        while (left := [pid for pid in children if is_running(pid)]) and time.monotonic() - started < STOP_SECONDS:
            time.sleep(_LOOK_SECONDS)
        for pid in (*left, *([self.pid] if status is None else [])):
            _kill(pid)
        self._process.wait()
        return {"seconds": seconds, "status": status, "left": left}

    def _read(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        rest = b""
        # Not by lines: a progress bar writes none before its end.
        while new := os.read(stream.fileno(), _READ_BYTES):
            self._heard += 1
            *lines, rest = (rest + new).split(b"\n")
            for line in lines:
                self._keep(line)
        if rest:
            self._keep(rest)

    def _keep(self, raw: bytes) -> None:
        line = redact(raw.decode(errors="replace"), self._key)
        self._lines.append(line)
        sys.stderr.write(f"{line}\n")


def how_it_ended(status: int | None) -> str:
    """An exit status as a phrase."""
    if status is None:
        return "closed its output"
    return f"exited with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``, by what the kernel says now."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] not in (
            "Z",
            "X",
        )
    except OSError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
