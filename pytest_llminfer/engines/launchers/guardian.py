"""Ends the processes of engines that left their worker's group, and those that a killed pytest left behind.

A process that starts a session of its own or forks twice still has the environment that it was started with: by a variable there it
is found. The guardian is a process beside pytest that waits for pytest's end; it needs the standard library alone.
Without ``/proc`` nothing is found.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SESSION = "LLMINFER_SESSION"
"""The variable by which the guardian finds the processes of one pytest process."""
GRACE_SECONDS = 5.0
"""A worker that runs Python ends itself once pytest is gone, and cleans up."""
KILL_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_SCRATCH = "llminfer-"
"""How the folders of temporary files begin: no other is removed."""

_lock = threading.Lock()
_resting = threading.Event()
_guarded: dict[int, str] = {}
"""Process id of a pytest process, its own alone, to the session that its guardian watches: a forked one needs another."""
_pipes: list[int] = []
"""Descriptors of the pipes to guardians, which end with this process, however it ends."""


def session() -> str:
    """The session of this process, whose guardian is started with the first call."""
    with _lock:
        pid = os.getpid()
        if pid not in _guarded:
            name = f"{pid}-{secrets.token_hex(8)}"
            with contextlib.suppress(OSError):
                _pipes.append(_start(name))
            _guarded[pid] = name
        return _guarded[pid]


def _start(name: str) -> int:
    """The descriptor of the pipe to a guardian, which ends after this process: it is never waited for."""
    reads, writes = os.pipe()
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", __file__, name],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reads, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
    except OSError:
        os.close(writes)
        raise
    finally:
        os.close(reads)
    return writes


def started_with(variable: str, value: str) -> list[int]:
    """Ids of the processes of this user, but for this one, that were started with ``variable`` set to ``value``."""
    wanted = f"{variable}={value}".encode()
    return [pid for pid in _processes() if wanted in _variables(pid)]


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """Within, :func:`end` ends nothing: who asks what an engine leaves behind must see it."""
    _resting.set()
    try:
        yield
    finally:
        _resting.clear()


def end(variable: str, value: str) -> None:
    """Kill those that were started with the variable, again until none is left or ``KILL_SECONDS`` have passed."""
    deadline = time.monotonic() + KILL_SECONDS
    while (found := started_with(variable, value)) and time.monotonic() < deadline and not _resting.is_set():
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)


def _processes() -> list[int]:
    try:
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and int(entry.name) != os.getpid()]
    except OSError:
        return []


def _variables(pid: int) -> list[bytes]:
    """What a process was started with; empty for another user's, and for one that has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _folders(pids: list[int], variable: str) -> set[Path]:
    start = f"{variable}=".encode()
    found = {Path(os.fsdecode(entry[len(start) :])) for pid in pids for entry in _variables(pid) if entry.startswith(start)}
    return {folder for folder in found if folder.name.startswith(_SCRATCH)}


def watch(name: str) -> None:
    """Wait for the end of the pipe on standard input, then for the session's processes, and end those that stay, files included."""
    while sys.stdin.buffer.read(1):
        pass
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := started_with(SESSION, name)) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    if not left:
        return
    # The engine's own package, read from where this file lies; nothing of it is needed before there is something to do.
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from pytest_llminfer.worker.protocol.frames import SCRATCH
    from pytest_llminfer.worker.protocol.shared_memory import named_by_group, unname

    folders = _folders(left, SCRATCH)
    groups = set()
    for pid in left:
        with contextlib.suppress(OSError):
            groups.add(os.getpgid(pid))
    named = [file for group in groups for file in named_by_group(group, since=0.0)]
    end(SESSION, name)
    unname(named)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    # Out of pytest's group, which Ctrl-C reaches, and of its folder.
    os.setsid()
    os.chdir("/")
    watch(sys.argv[1])
