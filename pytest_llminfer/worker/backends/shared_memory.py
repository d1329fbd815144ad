"""Shared memory that an engine's processes talk through: it has names, and those outlive processes that are killed."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from pytest_llminfer.worker.protocol.shared_memory import FOLDER, mapped

if TYPE_CHECKING:
    from collections.abc import Iterable

_BORN = time.time()
"""An engine of this process starts later than that; what is older belongs to others, such as a model that is kept there."""


def unlink(processes: Iterable[int]) -> None:
    """Remove the names of what this process and ``processes`` have mapped; the memory is freed with the last of them.

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
