"""One live worker: requests out, answers in, and an end that is certain."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
import warnings
import weakref
from typing import IO, TYPE_CHECKING, Any, cast

from pytest_llminfer.engines.launchers import guardian
from pytest_llminfer.engines.request_frame import encode
from pytest_llminfer.errors import WORKER_ERRORS, EngineDiedError, EngineError, EngineHungError, EngineStartError
from pytest_llminfer.printable import bounded
from pytest_llminfer.worker.protocol.frames import MAGIC, SCRATCH, ProtocolError, read_message
from pytest_llminfer.worker.protocol.shared_memory import named_by_group, ownerless, unname

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Progress = Callable[[str, int, int], None]

    Inbox = queue.Queue[dict[str, Any] | Exception | None]

CLOSE_SECONDS = 10.0
KILL_SECONDS = 30.0
LOOK_SECONDS = 1.0
"""How often a silent process is looked at, and how long an ended one's last message may take to be read."""
LAST_LINES = 15
_LAST_BYTES, _LINE = 1 << 16, 1000
"""A log may have grown to gigabytes, or its last line."""
_FOREIGN_BYTES = 100
_ALWAYS_TAKEN = 1 << 15
"""Bytes that fit into an empty pipe, of which Linux makes 64 KiB, beside a small request that has not been read."""


class WorkerProcess:
    """The process, its two pipes, its log, and the folder of its temporary files. Not thread-safe: one request at a time."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, folder: Path | None = None) -> None:
        self.process, self.log, self._folder = process, log, folder
        self._inbox: Inbox = queue.Queue()
        self._request_id = 0
        self._busy = False
        self._ended = self._begun = False
        self._started = time.time()
        self._named: list[Path] = []
        threading.Thread(target=_receive, args=(process.stdout, self._inbox), name="llminfer-answers", daemon=True).start()
        _live.add(self)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    @property
    def ended(self) -> bool:
        """Whether it was killed, or found dead: nothing can be asked any more."""
        return self._ended

    def request(self, method: str, params: Mapping[str, Any], *, timeout: float, progress: Progress | None = None) -> Any:
        """The worker's answer.

        timeout: seconds of silence after which the engine counts as hung; every message about progress restarts the count.

        Raises:
            BadInputError: something in ``params`` cannot be sent; the worker was not asked.
            EngineDiedError: the process ended. EngineHungError: it was silent for too long, and was killed.
            EngineError, UnsupportedError, BadInputError, OutOfMemoryError: what the worker answered.
        """
        if self._ended:
            raise EngineError(f"the engine's process has been ended and cannot answer {method!r}")
        frame = encode(self._request_id + 1, method, params)
        self._request_id += 1
        self._busy = True
        try:
            taken = self._send(frame, timeout)
        except (OSError, ValueError):
            raise self._refused(method) from None
        if not taken:
            raise self._hung(method, timeout)
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

    def _send(self, frame: bytes, timeout: float) -> bool:
        """Whether the worker took the request in time: the pipe of one that does not read fills, and writing has no limit."""
        stdin, failed = cast("IO[bytes]", self.process.stdin), []

        def write() -> None:
            try:
                stdin.write(frame)
                stdin.flush()
            except (OSError, ValueError) as error:
                failed.append(error)

        if len(frame) <= _ALWAYS_TAKEN:
            write()
        else:
            thread = threading.Thread(target=write, daemon=True)
            thread.start()
            thread.join(timeout)
            if thread.is_alive():
                return False
        if failed:
            raise failed[0]
        return True

    def begin(self, method: str, params: Mapping[str, Any]) -> None:
        """Ask without waiting; the answer is dropped. A worker that has died is noticed by the next request."""
        self._request_id += 1
        self._begun = True
        with contextlib.suppress(OSError, ValueError):
            stdin = cast("IO[bytes]", self.process.stdin)
            stdin.write(encode(self._request_id, method, params))
            stdin.flush()

    def settle(self, timeout: float) -> None:
        """Wait for the answer to what was begun, whatever it is: the next request finds out whether the worker still lives."""
        deadline = time.monotonic() + timeout
        while self._begun and self.alive and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                message = self._inbox.get(timeout=LOOK_SECONDS)
                if not isinstance(message, dict):
                    self._inbox.put(message)
                self._begun = isinstance(message, dict) and (message["id"] != self._request_id or "event" in message)

    def close(self) -> None:
        """Ask the worker to end if it is idle, then end its whole process group whatever it answered."""
        if self.alive and not self._busy:
            # An engine that is asked to end kills its processes too.
            self._named = named_by_group(self.process.pid, since=self._started)
            with contextlib.suppress(EngineError):
                self.request("close", {}, timeout=CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the worker and every process that it started; once, because its id may then belong to another process."""
        if self._ended:
            return
        self._ended = True
        _live.discard(self)
        # Looked up while its processes live: afterwards a name could not be traced to its owner.
        left = [*self._named, *named_by_group(self.process.pid, since=self._started)]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        unname(left)
        try:
            self.process.wait(timeout=KILL_SECONDS)
        except subprocess.TimeoutExpired:
            warnings.warn(
                f"the engine's process {self.process.pid} was killed {KILL_SECONDS:g} s ago and is still there: "
                "it waits in the kernel, often for a device's driver, and may hold the device's memory",
                ResourceWarning,
                stacklevel=2,
            )
        if self._folder:
            # Children that left the group, as Ray's daemons do.
            guardian.end(SCRATCH, str(self._folder))
        unname(ownerless(self.process.pid, since=self._started))
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError, ValueError):
            cast("IO[bytes]", self.process.stdin).close()

    def _next(self, method: str, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while True:
            # The end of the pipe is not the only sign of death: a process that the worker forked may still hold it open.
            dead = not self.alive
            left = LOOK_SECONDS if dead else min(LOOK_SECONDS, deadline - time.monotonic())
            try:
                message = self._inbox.get(timeout=max(left, 0))
                break
            except queue.Empty:
                if dead:
                    raise self._died(method) from None
                if time.monotonic() >= deadline:
                    raise self._hung(method, timeout) from None
        if message is None:
            raise self._died(method)
        if isinstance(message, Exception):
            raise self._garbled(method, message)
        return message

    def _refused(self, method: str) -> EngineError:
        """The process ended before it was asked: by what it wrote, where that was no message."""
        with contextlib.suppress(queue.Empty):
            message = self._inbox.get(timeout=LOOK_SECONDS)
            if isinstance(message, Exception):
                return self._garbled(method, message)
        return self._died(method)

    def _hung(self, method: str, timeout: float) -> EngineHungError:
        self.kill()
        return EngineHungError(
            f"the engine said nothing for {timeout:g} s during {method!r} and was killed; "
            f"allow more with --llminfer-timeout, or look for a deadlock. Its last words:\n{self._last_words()}"
        )

    def _garbled(self, method: str, error: Exception) -> EngineError:
        self.kill()
        cls = EngineStartError if method == "load" else EngineError
        return cls(f"{error}, which was met during {method!r}; the process was killed. Its last words:\n{self._last_words()}")

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
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_BYTES))
                lines = log.read().decode(errors="replace").rstrip().splitlines()
        except OSError:
            lines = []
        return "\n".join(f"    {bounded(line, _LINE)}" for line in lines[-LAST_LINES:]) or "    (none)"


def how_it_ended(status: int | None) -> str:
    """An exit status as a phrase, with its usual cause."""
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


def _receive(answers: io.BufferedReader, inbox: Inbox) -> None:
    """Pass answers on, then None at their end, or the error that makes the rest unreadable."""
    with answers:
        first = True
        while True:
            try:
                _refuse_foreign(answers.peek(len(MAGIC)), "before the worker took over" if first else "between two answers")
                message = read_message(answers)
            except OSError:
                message = None
            except Exception as error:  # noqa: BLE001 - an error in a thread is lost, and the request would wait in vain
                # A message that was cut short is a death in the middle of an answer: the end of the pipe follows.
                inbox.put(None if "cut short" in str(error) else error)
                return
            inbox.put(message)
            if message is None:
                return
            first = False


def _refuse_foreign(start: bytes, when: str) -> None:
    if not start.startswith(MAGIC[: len(start)]):
        raise ProtocolError(
            f"the interpreter wrote something else than messages to its standard output {when}: {start[:_FOREIGN_BYTES]!r}"
        )


def _to_exception(error: Mapping[str, str]) -> Exception:
    message = error["message"] + (f"\n{error['traceback'].rstrip()}" if error.get("traceback") else "")
    return WORKER_ERRORS.get(error["kind"], EngineError)(message)


_live: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    for worker in list(_live):
        worker.kill()
