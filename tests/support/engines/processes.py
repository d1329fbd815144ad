"""The processes of an engine, seen from outside: its group, and who of it is still alive."""

from __future__ import annotations

import os

import psutil

from pytest_llminfer.engines.engine import Engine


def group(leader: int) -> list[psutil.Process]:
    """Every live process of that process group."""
    return [process for process in psutil.process_iter() if _group_of(process.pid) == leader]


def members(engine: Engine) -> list[psutil.Process]:
    """Every live process of the engine's process group."""
    return group(os.getpgid(engine.ranks()[0].pid))


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended after ten seconds."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
