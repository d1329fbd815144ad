"""Who listens on a port of this machine, by what the kernel says."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTENS = "0A"
_ADDRESS, _STATE, _INODE = 1, 3, 9
"""Columns of /proc/net/tcp (proc_pid_net(5))."""


def sockets_on(port: int) -> set[str]:
    """Inodes of the sockets that listen on the TCP port, on any address; empty where the kernel does not tell."""
    found = set()
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(file).read_text(encoding="ascii", errors="replace").splitlines()[1:]:
                fields = line.split()
                if fields[_STATE] == _LISTENS and int(fields[_ADDRESS].rpartition(":")[2], 16) == port:
                    found.add(fields[_INODE])
    return found


def sockets_of(pids: Iterable[int]) -> set[str]:
    """Inodes of the sockets that these processes have open."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                # A descriptor may be closed while its folder is read.
                with contextlib.suppress(OSError):
                    target = str(entry.readlink())
                    if target.startswith("socket:["):
                        found.add(target[len("socket:[") : -1])
    return found
