"""Stopping an engine and looking at what is left: its processes, their memory, and that of its devices."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.engines.launchers import guardian
from pytest_llminfer.families.shutdown.check import LIMIT_SECONDS, Leftover, Stop
from pytest_llminfer.hardware import device_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llminfer.engines.engine import Engine

_PROC = Path("/proc")
_LOOK_SECONDS = 0.05
_SETTLE_SECONDS = 0.5
_UNIQUE = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")
_STATE, _PARENT, _GROUP, _STARTED = 0, 1, 2, 19  # of proc(5)'s stat, counted behind the name


def stop_and_start(engine: Engine, *, rounds: int) -> list[Stop]:
    """Stop and reload the engine ``rounds`` times; what was seen after each stop. It is loaded when this returns.

    The round in which a process is left over is the last: further rounds would show nothing new. It is ended once it was seen.
    """
    stops = []
    for _ in range(rounds):
        ranks = engine.ranks()
        devices = sorted({rank.device for rank in ranks} - {"cpu"})
        processes = process_tree(os.getpgid(rank.pid) for rank in ranks)
        held = sum(unique_bytes(pid) for pid, _ in processes)
        started = time.monotonic()
        with guardian.resting():
            engine.close()
        left = _wait(processes, started + LIMIT_SECONDS)
        seconds = time.monotonic() - started
        found = tuple(Leftover(pid, _name(pid), unique_bytes(pid)) for pid, _ in left)
        stops.append(Stop(held, seconds, found, _settled(devices, started + LIMIT_SECONDS) if devices else None))
        for pid, _ in still_alive(left):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        engine.restart()
        if left:
            break
    return stops


def process_tree(groups: Iterable[int]) -> frozenset[tuple[int, int]]:
    """The processes of these groups and all that descend from them, in whatever group: (id, start in ticks since boot).

    The start distinguishes a process from a later one with the same id.
    """
    table = {pid: stat for entry in _PROC.iterdir() if entry.name.isdecimal() and (stat := _stat(pid := int(entry.name)))}
    wanted = set(groups)
    found = {pid for pid, stat in table.items() if int(stat[_GROUP]) in wanted}
    while more := {pid for pid, stat in table.items() if int(stat[_PARENT]) in found} - found:
        found |= more
    return frozenset((pid, int(table[pid][_STARTED])) for pid in found)


def still_alive(processes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that still run: a zombie has no memory any more."""
    return [
        (pid, started)
        for pid, started in processes
        if (stat := _stat(pid)) and int(stat[_STARTED]) == started and stat[_STATE] not in "ZX"
    ]


def unique_bytes(pid: int) -> int:
    """What would be free if the process ended: its private pages (USS), of /proc/PID/smaps_rollup; 0 where it is gone."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_UNIQUE))


def _settled(devices: list[str], deadline: float) -> int | None:
    """``device_bytes`` when two readings agree, or at the deadline: drivers give memory back some time after a process ended."""
    before, now = None, device_bytes(devices)
    while now is not None and now != before and time.monotonic() < deadline:
        time.sleep(_SETTLE_SECONDS)
        before, now = now, device_bytes(devices)
    return now


def _wait(processes: Iterable[tuple[int, int]], deadline: float) -> list[tuple[int, int]]:
    left = still_alive(processes)
    while left and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        left = still_alive(left)
    return left


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold blanks and brackets; none where it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    return " ".join(word.decode(errors="replace") for word in words if word)[:80] or "unnamed"
