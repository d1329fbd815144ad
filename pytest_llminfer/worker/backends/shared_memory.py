"""Shared memory that an engine's processes talk through: it has names, and those outlive processes that are killed."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path("/dev/shm")  # noqa: S108 - where the kernel shows it, not a place for files
_BORN = time.time()
"""An engine of this process starts later than that; what is older belongs to somebody else, such as a model that is kept there."""


def unlink(processes: Iterable[int]) -> None:
    """Take the names of what this process and ``processes`` have mapped; the memory goes with the last of them.

    Whoever needs a name has opened it by the end of loading, and a group of processes that is killed could not do it any more.
    A file that was there before this process is left alone, whoever has mapped it.
    """
    held = {inode for pid in (os.getpid(), *processes) for inode in mapped(pid)}
    with contextlib.suppress(OSError):
        for file in FOLDER.iterdir():
            with contextlib.suppress(OSError):
                status = file.stat()
                if status.st_ino in held and status.st_ctime >= _BORN:
                    file.unlink()


def mapped(pid: int) -> set[int]:
    """Inodes of the shared memory that a process has mapped: a semaphore is mapped under a name that it no longer has."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in lines if f" {FOLDER}/" in line}
