"""One live worker: requests out, answers in, and an end that is certain."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import threading
import time
import weakref
from typing import IO, TYPE_CHECKING, Any, cast

from pytest_llminfer.errors import WORKER_ERRORS, EngineDiedError, EngineError, EngineHungError
from pytest_llminfer.worker.protocol import ProtocolError, read_message, write_message

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Progress = Callable[[str, int, int], None]

CLOSE_SECONDS = 10.0
LAST_LINES = 15


class WorkerProcess:
    """The process, its two pipes and its log. Not thread-safe: one request at a time."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log
        self._inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._request_id = 0
        self._busy = False
        reader = threading.Thread(target=_receive, args=(process.stdout, self._inbox), name="llminfer-answers", daemon=True)
        reader.start()
        _live.add(self)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def request(self, method: str, params: Mapping[str, Any], *, timeout: float, progress: Progress | None = None) -> Any:
        """The worker's answer.

        ``timeout``: seconds of silence that are too many; every message about progress starts the count anew.

        Raises:
            EngineDiedError: the process ended. EngineHungError: it was silent for too long, and was killed.
            EngineError, UnsupportedError, BadInputError, OutOfMemoryError: what the worker answered.
        """
        self._request_id += 1
        self._busy = True
        try:
            write_message(cast("IO[bytes]", self.process.stdin), {"id": self._request_id, "method": method, "params": dict(params)})
        except OSError:
            raise self._died(method) from None
        while True:
            message = self._next(method, timeout)
            if message["id"] != self._request_id:
                continue
            if "event" in message:
                if progress is not None:
                    progress(message["phase"], message["done"], message["total"])
                continue
            self._busy = False
            if "error" in message:
                raise _to_exception(message["error"])
            return message["result"]

    def close(self) -> None:
        """Ask the worker to end if it is idle, then end its whole process group whatever it answered."""
        if self.alive and not self._busy:
            with contextlib.suppress(EngineError):
                self.request("close", {}, timeout=CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the worker and every process that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    stream.close()
        _live.discard(self)

    def _next(self, method: str, timeout: float) -> dict[str, Any]:
        try:
            message = self._inbox.get(timeout=timeout)
        except queue.Empty:
            self.kill()
            raise EngineHungError(
                f"the engine said nothing for {timeout:g} s during {method!r} and was killed; "
                f"allow more with --llminfer-timeout, or look for a deadlock. Its last words:\n{self._last_words()}"
            ) from None
        if message is None:
            raise self._died(method)
        return message

    def _died(self, method: str) -> EngineDiedError:
        deadline = time.monotonic() + CLOSE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        status = self.process.poll()
        self.kill()
        return EngineDiedError(
            f"the engine's process {how_it_ended(status)} during {method!r}. Its last words:\n{self._last_words()}"
        )

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").rstrip().splitlines() if self.log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-LAST_LINES:]) or "    (none)"


def how_it_ended(status: int | None) -> str:
    """An exit status in words, with what usually lies behind it."""
    if status is None:
        return "closed its pipe"
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    reason = {"SIGKILL": " (often the kernel's out-of-memory killer)", "SIGSEGV": " (a fault in native code)"}.get(name, "")
    return f"was killed by {name}{reason}"


def _receive(answers: IO[bytes], inbox: queue.Queue[dict[str, Any] | None]) -> None:
    try:
        while (message := read_message(answers)) is not None:
            inbox.put(message)
    except (ProtocolError, OSError, ValueError):
        pass  # the end of the stream is what the reader is told, whatever came before it
    inbox.put(None)


def _to_exception(error: Mapping[str, str]) -> Exception:
    message = error["message"] + (f"\n{error['traceback'].rstrip()}" if error.get("traceback") else "")
    return WORKER_ERRORS.get(error["kind"], EngineError)(message)


_live: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    for worker in list(_live):
        worker.kill()
