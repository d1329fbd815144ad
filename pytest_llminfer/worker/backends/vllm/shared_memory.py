"""Shared memory that vLLM's processes talk through: it has names, and those outlive processes that are killed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FOLDER = "/dev/shm/"  # noqa: S108 - where the kernel shows it, not a place for files


def unlink(processes: Iterable[int]) -> None:
    """Take the names of what this process and ``processes`` have mapped; the memory goes with the last of them."""
    for name in {name for pid in (os.getpid(), *processes) for name in mapped(pid)}:
        with contextlib.suppress(OSError):
            Path(name).unlink()


def mapped(pid: int) -> set[str]:
    """Paths of the named shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    paths = (line[line.index(_FOLDER) :] for line in lines if _FOLDER in line)
    return {path for path in paths if not path.endswith(" (deleted)")}
