"""The processes of the engine: which are there, how they call themselves, and which of them have ended."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PROC = Path("/proc")
_ENDED = ("Z", "X", "x")


def process_name(pid: int) -> str:
    """What the process calls itself, ``sglang::scheduler_TP0``; empty once it has ended."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace").strip()
    except OSError:
        return ""


def start_time(pid: int) -> str | None:
    """When it started, in the kernel's ticks; None once it has ended, whether or not anybody has asked for its exit status."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in _ENDED else fields[19]


class Watch:
    """The processes that must live for the engine to answer, by id and start: an id may come back as another process."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._starts = {pid: start for pid in pids if (start := start_time(pid)) is not None}
        self._names = {pid: process_name(pid) for pid in self._starts}

    def ended(self) -> dict[int, str]:
        """Those that have ended: id to name."""
        return {pid: self._names[pid] for pid, start in self._starts.items() if start_time(pid) != start}

    def kill(self) -> None:
        """End what is left of them."""
        for pid, start in self._starts.items():
            if start_time(pid) == start:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
