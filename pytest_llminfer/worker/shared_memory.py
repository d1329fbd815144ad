"""Shared memory that processes talk through: it has names, and those outlive processes that are killed. Standard library only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - where the kernel shows it, not a place for files


def mapped(pid: int) -> set[int]:
    """Inodes of the shared memory that a process has mapped: a semaphore is mapped under a name that it no longer has."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in lines if f" {FOLDER}/" in line}


def named_by_group(group: int, *, since: float) -> list[Path]:
    """The names that only processes of this group have mapped, and that are no older than ``since`` (seconds of the epoch).

    What was there before, such as a model that somebody keeps there, is none of them, whoever has mapped it.
    """
    recent: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for file in FOLDER.iterdir():
            with contextlib.suppress(OSError):
                status = file.stat()
                if status.st_ctime >= since:
                    recent[status.st_ino] = file
    if not recent:
        return []
    inside: set[int] = set()
    outside: set[int] = set()
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with contextlib.suppress(OSError):
            (inside if os.getpgid(pid) == group else outside).update(mapped(pid))
    return [file for inode, file in recent.items() if inode in inside - outside]


def unname(files: list[Path]) -> None:
    """Take the names; the memory goes with the last process that has it."""
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink()
