"""Accelerators, each used by one cell at a time: across workers of pytest-xdist, and across sessions of one machine."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.hardware import device_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llminfer.hardware import Gpu

    Progress = Callable[[str, int, int], None]

LOOK_SECONDS = 1.0
WAIT_SECONDS = 4 * 3600.0
"""Seconds. Another session's matrix may take hours, which is not a hanging engine."""
LOCKS = "LLMINFER_LOCKS"
"""Names another folder for the locks: sessions exclude only those that use the same one."""


class Pool:
    """The GPUs that this session may use. Each is held by a lock on a file, which the kernel releases when a process ends.

    held: GPU id to the cell for which this process holds it already; all pools of a session share one such mapping.
    make_room: called where only GPUs that this process holds itself are missing, so that it releases what it keeps for later.
    """

    def __init__(
        self,
        gpus: Sequence[Gpu],
        *,
        folder: Path | None = None,
        timeout: float = WAIT_SECONDS,
        held: dict[str, str] | None = None,
        make_room: Callable[[], object] | None = None,
    ) -> None:
        self.gpus = tuple(gpus)
        self.held = {} if held is None else held
        self._folder = folder or default_folder()
        self._timeout, self._make_room = timeout, make_room

    def lease_now(self, count: int, cell: str = "") -> Lease | None:
        """``count`` GPUs that are free at this moment, held already; None where there are too few."""
        turn = self._turn()
        if turn is None:
            return None
        taken = self._try(count)
        turn.close()
        if len(taken) < count:
            _let_go(taken)
            return None
        return Lease(self, count, cell=cell, held=taken)

    def lease(self, count: int, progress: Progress | None = None, cell: str = "") -> Lease:
        """``count`` of the GPUs, taken for a cell when they are first asked for."""
        return Lease(self, count, progress, cell)

    def take(self, count: int, progress: Progress | None, wanted: Callable[[], bool] = lambda: True) -> dict[str, IO[bytes]]:
        """``count`` GPUs by their index, each with the lock that holds it: all at once or none, so that no two wait for each other.

        Raises:
            EngineStartError: they were not free within the time limit, or never will be, because this process holds them itself.
        """
        deadline = time.monotonic() + self._timeout
        turn: IO[bytes] | None = None
        try:
            while True:
                # The session that waits holds the turn: one that releases GPUs cannot take them again before it.
                turn = turn or self._turn()
                taken = self._try(count) if turn is not None else {}
                if len(taken) == count:
                    return taken
                _let_go(taken)
                self._refuse_own(count)
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

    def _own(self) -> dict[str, str]:
        """Those of these GPUs that this process holds, each with its cell."""
        held = dict(self.held)
        return {name: held[name] for name in map(_id, self.gpus) if name in held}

    def _refuse_own(self, count: int) -> None:
        """A session never waits for GPUs that it holds itself."""
        if count <= len(self.gpus) - len(self._own()):
            return
        if self._make_room is not None:
            self._make_room()
        own = self._own()
        free = len(self.gpus) - len(own)
        if count > free:
            raise EngineStartError(
                f"{count} GPU{'s are' if count > 1 else ' is'} needed, and of {len(self.gpus)} this session itself holds "
                f"{len(own)}, for {', '.join(dict.fromkeys(own.values()))}: close that engine first, with engine.close()"
            )

    def _turn(self) -> IO[bytes] | None:
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700, parents=True)
        # The folder itself, not what a link of somebody else's names: files in it are opened.
        if wrong := _objection(self._folder.lstat()):
            raise EngineStartError(f"the folder of GPU locks {self._folder} {wrong}; name one of your own with {LOCKS}")
        return _locked(self._folder / "turn.lock")

    def _try(self, count: int) -> dict[str, IO[bytes]]:
        taken: dict[str, IO[bytes]] = {}
        for gpu in self.gpus:
            if len(taken) == count:
                break
            lock = _locked(self._folder / f"{gpu.uuid or gpu.index}.lock")
            if lock is None:
                continue
            taken[_id(gpu)] = lock
        return taken


class Lease:
    """Some GPUs of a pool, held from the first :meth:`ids` until :meth:`release`.

    idle_bytes: bytes in use on them when they were first held, before any engine of this cell; None where that cannot be read.
    """

    def __init__(
        self,
        pool: Pool,
        count: int,
        progress: Progress | None = None,
        cell: str = "",
        held: dict[str, IO[bytes]] | None = None,
    ) -> None:
        self._pool, self._count, self._progress, self._cell = pool, count, progress, cell or "another cell"
        self.idle_bytes: int | None = None
        self._held: dict[str, IO[bytes]] = {}
        self._keep(held or {})
        self._released = False
        self._lock = threading.Lock()

    def ids(self) -> tuple[str, ...]:
        """Their ids, as CUDA_VISIBLE_DEVICES takes them."""
        with self._lock:
            # The replicas of a cell ask at the same time.
            self._released = False
            if not self._held:
                self._keep(self._pool.take(self._count, self._progress, lambda: not self._released))
            return tuple(self._held)

    def _keep(self, taken: dict[str, IO[bytes]]) -> None:
        self._held = taken
        self._pool.held.update(dict.fromkeys(taken, self._cell))
        if self.idle_bytes is None:
            self.idle_bytes = device_bytes(gpu.uuid for gpu in self._pool.gpus if _id(gpu) in taken)

    def release(self) -> None:
        """Give the GPUs up; a thread that waits for them stops waiting."""
        self._released = True
        for name in self._held:
            self._pool.held.pop(name, None)
        _let_go(self._held)
        self._held = {}


def default_folder() -> Path:
    """Where the locks lie: the one folder of this machine that all sessions of a user see, whatever their environment.

    TMPDIR and XDG_RUNTIME_DIR differ between CI jobs and logins, and the user's cache may lie on NFS, seen by other machines.
    """
    return Path(os.environ.get(LOCKS) or f"/tmp/llminfer-gpus-{os.getuid()}")  # noqa: S108 - owned by the user, or refused


def _id(gpu: Gpu) -> str:
    """The UUID of a MIG slice, which has no index; the index of a whole GPU, which every engine reads."""
    return gpu.uuid if gpu.uuid.startswith("MIG-") else str(gpu.index)


def _objection(found: os.stat_result) -> str:
    """Why what lies in the place of the folder of locks cannot be it, as a phrase; empty where it can."""
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.getuid():
        return "is another user's"
    return "can be written by everybody" if found.st_mode & stat.S_IWOTH else ""


def _locked(path: Path) -> IO[bytes] | None:
    """The file, locked until it is closed; None while another has it. It is never emptied, and never what a link names."""
    import fcntl  # not on every platform, where a session without engines must do without it

    try:
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
    except OSError as error:
        why = "is a link" if error.errno == errno.ELOOP else f"cannot be opened ({error.strerror})"
        raise EngineStartError(f"the lock {path} {why}; remove it, or name another folder with {LOCKS}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _let_go(held: dict[str, IO[bytes]]) -> None:
    for lock in held.values():
        lock.close()
