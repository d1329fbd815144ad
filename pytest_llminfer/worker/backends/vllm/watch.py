"""Looks whether vLLM's processes live while it is waited for: when its engine core is killed, some versions wait for ever."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 4.0
"""For vLLM to notice by itself, which gives the better reason."""
_SIGNAL = signal.SIGUSR2


class ProcessLostError(Exception):
    """A process of the engine ended while an answer was awaited."""


@contextlib.contextmanager
def watched(processes: Collection[int], *, grace_seconds: float = _GRACE_SECONDS) -> Iterator[None]:
    """Raise ProcessLostError in the main thread when one of ``processes`` has been gone for ``grace_seconds``.

    The main thread waits in a lock of vLLM's: only a signal gets it out of there. Elsewhere nothing is watched.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    done, lock = threading.Event(), threading.Lock()
    before = signal.signal(_SIGNAL, _raise)
    threading.Thread(target=_watch, args=(processes, done, lock, grace_seconds), name="llminfer-watch", daemon=True).start()
    try:
        yield
    finally:
        try:
            with lock:
                done.set()
        finally:
            # None: a handler that is not Python's, which cannot be put back; the default one would end this process.
            signal.signal(_SIGNAL, signal.SIG_IGN if before is None else before)


def _watch(processes: Collection[int], done: threading.Event, lock: threading.Lock, grace_seconds: float) -> None:
    while not done.wait(_LOOK_SECONDS):
        if any(map(is_dead, processes)):
            done.wait(grace_seconds)
            # Never after the end of the watch, when the signal means something else again.
            with lock:
                if not done.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            return


def _raise(*_: object) -> None:
    raise ProcessLostError("a process of the engine is gone")


def dead_process(processes: dict[int, str], *, within_seconds: float = 3.0) -> str:
    """Which process is gone; vLLM learns of it before the kernel has taken the last one away."""
    end = time.monotonic() + within_seconds
    while not (dead := [f"{name} (process {pid})" for pid, name in processes.items() if is_dead(pid)]):
        if time.monotonic() > end:
            return "a process of vllm has ended"
        time.sleep(0.05)
    return f"{', '.join(dead)} of vllm {'has' if len(dead) == 1 else 'have'} ended"


def is_dead(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to notice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}
