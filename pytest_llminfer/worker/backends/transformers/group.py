"""The other ranks of a model that is split over devices, as rank 0 sees them: processes that do each request along with it."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from pytest_llminfer.errors import WORKER_ERRORS, EngineDiedError, EngineError
from pytest_llminfer.worker.backends.host import available_cores
from pytest_llminfer.worker.protocol.frames import ProtocolError, read_message, write_message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llminfer.worker.backends.base import Message

RANK_VARIABLE = "LLMINFER_TP_RANK"
"""Set for ranks 1 and up alone: RANK itself may come from a launcher around the tests."""
LISTENER_VARIABLE = "LLMINFER_TP_LISTENER"
"""The open socket on which rank 0 lets the ranks meet: a port that is bound before it is announced cannot be taken by another."""
LOST_STATUS = 70
_WORKER = Path(__file__).resolve().parents[2]
_HOST = "127.0.0.1"
_CLOSE_SECONDS = 5.0
_STATUS_SECONDS = 5.0
# How much later than rank 0 another rank may come to the end of a request that failed. After that they wait for each other.
_STRAY_SECONDS = 20.0
_LOAD_STRAY_SECONDS = 2.0
# How long an operation of rank 0 may take to notice by itself that another rank has ended.
_LOST_SECONDS = 5.0


def own_rank() -> int:
    """The rank of this process: 0 unless a rank 0 has started it."""
    return int(os.environ.get(RANK_VARIABLE, "0"))


class RankGroup:
    """Ranks 1 and up, each a worker process that is asked what this one is asked.

    When a rank is lost, whatever is asked raises EngineDiedError. Rank 0 may sit in a collective operation that waits for it, from
    which nothing brings it back: then this process ends too, with the reason as its last words. All processes belong to this
    one's process group, which the client kills as one.
    """

    def __init__(self, size: int) -> None:
        self._request_id = 0
        self._method = "load"
        self._lost = ""
        self._closing = False
        self._own_done = threading.Event()
        listener = socket.create_server((_HOST, 0), backlog=2 * size)
        threads = int(os.environ.get("OMP_NUM_THREADS") or available_cores())
        shared = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": _HOST,
            "MASTER_PORT": str(listener.getsockname()[1]),
            "OMP_NUM_THREADS": str(max(1, threads // size)),
        }
        if sys.platform == "linux":
            # Left alone, gloo looks up the host's name, which need not lead anywhere in a container.
            shared["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0"})
        self._ranks = [_Rank(number, self._on_message, self._on_end) for number in range(1, size)]
        os.environ[LISTENER_VARIABLE] = str(listener.detach())

    def run(self, method: str, params: Mapping[str, Any], own: Callable[[], Message]) -> list[Message]:
        """The answers of all ranks, that of this process (``own``) first.

        Raises:
            EngineDiedError: a rank has ended, or an earlier failure has left the ranks at different places.
            Exception: what ``own`` raised; otherwise what another rank did, with its number.
        """
        self._refuse_if_lost()
        self._method, self._request_id = method, self._request_id + 1
        self._own_done.clear()
        for rank in self._ranks:
            rank.ask(self._request_id, method, params)
        try:
            result = own()
        except BaseException as error:
            self._own_done.set()
            self._settle(error)
            raise
        self._own_done.set()
        answers = [rank.answers.get() for rank in self._ranks]
        self._refuse_if_lost()
        return [result, *[_result(rank, answer) for rank, answer in zip(self._ranks, answers, strict=True)]]

    def close(self) -> None:
        """Let the ranks end by themselves."""
        self._closing = True
        self._own_done.set()
        for rank in self._ranks:
            rank.ask(self._request_id + 1, "close", {})
        for rank in self._ranks:
            try:
                rank.process.wait(timeout=_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                rank.process.kill()

    def _refuse_if_lost(self) -> None:
        if self._lost:
            raise EngineDiedError(self._lost)

    def _settle(self, error: BaseException) -> None:
        """After a failure of this rank: the others must come to an end too, or no further request can be done together."""
        deadline = time.monotonic() + (_LOAD_STRAY_SECONDS if self._method == "load" else _STRAY_SECONDS)
        for rank in self._ranks:
            try:
                rank.answers.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                self._lost = self._lost or (
                    f"{rank} still waits for rank 0, which failed during {self._method!r} ({type(error).__name__}: {error}); "
                    "the engine must be restarted"
                )
                return
            # Its end is the reason of the failure here.
            self._refuse_if_lost()

    def _on_message(self, rank: _Rank, message: dict[str, Any]) -> None:
        if "event" in message:
            return
        rank.answers.put(message)
        if "error" in message and not self._own_done.wait(_STRAY_SECONDS):
            self._end(f"{rank} failed during {self._method!r}, and rank 0 waits for it: {message['error']['message']}")

    def _on_end(self, rank: _Rank) -> None:
        if self._closing:
            return
        self._lost = f"{rank} {rank.end_in_words()} during or after {self._method!r}; the other ranks cannot continue without it"
        rank.answers.put({})
        if not self._own_done.wait(_LOST_SECONDS):
            self._end(self._lost)

    def _end(self, reason: str) -> None:
        os.write(2, f"{reason}\n".encode())
        os._exit(LOST_STATUS)


class _Rank:
    """One process: requests go in, answers come back, and its end is heard at once."""

    def __init__(self, number: int, on_message: Callable[[_Rank, dict[str, Any]], None], on_end: Callable[[_Rank], None]) -> None:
        self.number = number
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter, and this package's own entry
            [sys.executable, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "RANK": str(number), "LOCAL_RANK": str(number), RANK_VARIABLE: str(number)},
        )
        threading.Thread(target=self._listen, args=(on_message, on_end), name=f"llminfer-rank-{number}", daemon=True).start()

    def __str__(self) -> str:
        return f"rank {self.number} (pid {self.process.pid})"

    def ask(self, request_id: int, method: str, params: Mapping[str, Any]) -> None:
        """Send a request. A pipe that is broken belongs to a process that has ended, which the listener hears."""
        try:
            write_message(cast("IO[bytes]", self.process.stdin), {"id": request_id, "method": method, "params": dict(params)})
        except OSError:
            return

    def end_in_words(self) -> str:
        """How the process ended."""
        try:
            status = self.process.wait(timeout=_STATUS_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if status >= 0:
            return f"exited with status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"

    def _listen(self, on_message: Callable[[_Rank, dict[str, Any]], None], on_end: Callable[[_Rank], None]) -> None:
        try:
            while (message := read_message(cast("IO[bytes]", self.process.stdout))) is not None:
                on_message(self, message)
        except (OSError, ProtocolError):
            pass  # A message that was cut short: the end follows.
        on_end(self)


def _result(rank: _Rank, answer: dict[str, Any]) -> Message:
    if error := answer.get("error"):
        raise WORKER_ERRORS.get(error["kind"], EngineError)(
            "\n".join(filter(None, [f"{rank}: {error['message']}", error["traceback"]]))
        )
    return dict(answer["result"])
