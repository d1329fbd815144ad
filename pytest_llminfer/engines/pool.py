"""Accelerators, each used by one cell at a time: across workers of pytest-xdist, and across sessions of one machine."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pytest_llminfer.errors import EngineStartError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llminfer.hardware import Gpu

    Progress = Callable[[str, int, int], None]

LOOK_SECONDS = 1.0
WAIT_SECONDS = 4 * 3600.0
"""Another session's matrix may take hours, and is no engine that hangs."""


class Pool:
    """The GPUs that this session may use. Each is held by a lock on a file, which the kernel gives back when a process ends."""

    def __init__(self, gpus: Sequence[Gpu], *, folder: Path | None = None, timeout: float = WAIT_SECONDS) -> None:
        self.gpus = tuple(gpus)
        self._folder = folder or Path(tempfile.gettempdir()) / f"llminfer-gpus-{os.getuid()}"
        self._timeout = timeout

    def lease_now(self, count: int) -> Lease | None:
        """``count`` GPUs that are free at this moment, held already; None where there are too few."""
        turn = self._turn()
        if turn is None:
            return None
        taken = self._try(count)
        turn.close()
        if len(taken) < count:
            _let_go(taken)
            return None
        return Lease(self, count, held=taken)

    def lease(self, count: int, progress: Progress | None = None) -> Lease:
        """``count`` of the GPUs, taken when they are first asked for."""
        return Lease(self, count, progress)

    def take(self, count: int, progress: Progress | None, wanted: Callable[[], bool] = lambda: True) -> dict[str, IO[bytes]]:
        """``count`` GPUs by their index, each with the lock that holds it: all at once or none, so that no two wait for each other.

        Raises:
            EngineStartError: they were not free within the time limit.
        """
        deadline = time.monotonic() + self._timeout
        turn: IO[bytes] | None = None
        try:
            while True:
                # Who waits holds the turn: a session that gives GPUs back cannot take them again before it.
                turn = turn or self._turn()
                taken = self._try(count) if turn is not None else {}
                if len(taken) == count:
                    return taken
                _let_go(taken)
                if not wanted():
                    raise EngineStartError(f"{count} GPUs were waited for, and are not wanted any more")
                if time.monotonic() >= deadline:
                    raise EngineStartError(
                        f"{count} of {len(self.gpus)} GPUs were not free for {self._timeout:g} s: other sessions of this user hold "
                        f"them (locks in {self._folder}); wait for those, or give this one others with CUDA_VISIBLE_DEVICES"
                    )
                if progress is not None:
                    progress("waiting for GPUs", 0, count)
                time.sleep(LOOK_SECONDS)
        finally:
            if turn is not None:
                turn.close()

    def _turn(self) -> IO[bytes] | None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return _locked(self._folder / "turn.lock")

    def _try(self, count: int) -> dict[str, IO[bytes]]:
        taken: dict[str, IO[bytes]] = {}
        for gpu in self.gpus:
            if len(taken) == count:
                break
            lock = _locked(self._folder / f"{gpu.uuid or gpu.index}.lock")
            if lock is None:
                continue
            # A slice of a divided GPU is known by its id alone; engines read whole ones best by their number.
            taken[gpu.uuid if gpu.uuid.startswith("MIG-") else str(gpu.index)] = lock
        return taken


class Lease:
    """Some GPUs of a pool, held from the first :meth:`ids` until :meth:`release`."""

    def __init__(self, pool: Pool, count: int, progress: Progress | None = None, held: dict[str, IO[bytes]] | None = None) -> None:
        self._pool, self._count, self._progress = pool, count, progress
        self._held = held or {}
        self._released = False
        self._lock = threading.Lock()

    def ids(self) -> tuple[str, ...]:
        """Their ids, as CUDA_VISIBLE_DEVICES takes them."""
        with self._lock:
            # The replicas of a cell ask at the same time.
            self._released = False
            self._held = self._held or self._pool.take(self._count, self._progress, lambda: not self._released)
            return tuple(self._held)

    def release(self) -> None:
        """Let others have them; who waits for them stops waiting."""
        self._released = True
        _let_go(self._held)
        self._held = {}


def _locked(path: Path) -> IO[bytes] | None:
    """The file, locked until it is closed; None while another has it."""
    lock = path.open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _let_go(held: dict[str, IO[bytes]]) -> None:
    for lock in held.values():
        lock.close()
