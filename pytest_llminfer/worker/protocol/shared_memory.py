"""Shared memory that processes talk through: it has names, and those outlive processes that are killed. Standard library only."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - where the kernel shows it, not a place for files
_ENGINES = ("psm_", "sem.mp-", "sglang_loads_")
"""How Python's multiprocessing begins its names, and SGLang those of its load counters."""
_SETTLED_SECONDS = 1.0
"""A file is mapped a moment after it was named: younger files are left alone."""


def mapped(pid: int) -> set[int]:
    """Inodes of the shared memory that a process has mapped: a semaphore is mapped under a name that it no longer has."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in lines if f" {FOLDER}/" in line}


def named_by_group(group: int, *, since: float) -> list[Path]:
    """The names that only processes of this group have mapped, and that are no older than ``since`` (seconds of the epoch).

    What existed before, such as a model that another user keeps there, is left out, whoever has mapped it.
    """
    recent = _recent(since)
    inside, outside = _mapped_by(group) if recent else (set(), set())
    return [file for inode, file in recent.items() if inode in inside - outside]


def ownerless(group: int, *, since: float) -> list[Path]:
    """Files named as engines name theirs, no older than ``since``, that for a second no process has mapped but those of this group.

    A rank that died by itself took its mapping along, and left the name: of a message queue of vLLM's, 240 MiB.
    """
    recent = {
        inode: file
        for inode, file in _recent(since, until=time.time() - _SETTLED_SECONDS).items()
        if file.name.startswith(_ENGINES)
    }
    outside = _mapped_by(group)[1] if recent else set()
    return [file for inode, file in recent.items() if inode not in outside]


def _recent(since: float, until: float = math.inf) -> dict[int, Path]:
    """Names of this user's, by inode."""
    found: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for file in FOLDER.iterdir():
            with contextlib.suppress(OSError):
                status = file.stat()
                if since <= status.st_ctime <= until and status.st_uid == os.getuid():
                    found[status.st_ino] = file
    return found


def _mapped_by(group: int) -> tuple[set[int], set[int]]:
    """Inodes that processes of the group have mapped, and that others have."""
    inside: set[int] = set()
    outside: set[int] = set()
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with contextlib.suppress(OSError):
            (inside if os.getpgid(pid) == group else outside).update(mapped(pid))
    return inside, outside


def unname(files: list[Path]) -> None:
    """Remove the names; the memory is freed with the last process that has mapped it."""
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink()
