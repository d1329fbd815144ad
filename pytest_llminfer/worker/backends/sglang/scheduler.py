"""What runs in a scheduler's process: SGLang's own function, with a thread beside it that answers questions about the live model.

The thread has a socket of its own, so that it needs no request type of SGLang's. Nothing is being generated while a question is
answered, because the worker asks one thing at a time; the event loop goes round all the same, and what it holds for a moment (the
batch that just ended, the message between ranks) would be counted as memory in use. Memory is therefore read in a turn of the
loop's own thread. Same seams in 0.5.15 and 0.5.18.
"""

from __future__ import annotations

import functools
import inspect
import os
import queue
import socket
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from pytest_llminfer.worker.protocol.failures import describe
from pytest_llminfer.worker.protocol.frames import read_message, write_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llminfer.worker.backends.sglang.inspection import Inspection

SOCKET, WORDS = ".socket", ".words"
"""Endings of the files in the shared folder, after the process id: where questions go, and what was said last."""


def run_scheduler(folder: str, *args: Any, **kwargs: Any) -> None:
    """In place of ``run_scheduler_process``, with the same arguments after ``folder``."""
    from sglang.srt.managers import scheduler as module

    from pytest_llminfer.worker.backends.sglang.inspection import Inspection

    place = Path(folder) / str(os.getpid())
    _keep_last_words(module, place.with_suffix(WORDS))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.with_suffix(SOCKET)))
    listener.listen(1)
    ranks = inspect.signature(module.run_scheduler_process).bind(*args, **kwargs).arguments
    inspection = Inspection(ranks["server_args"], **{name: int(ranks.get(name) or 0) for name in ("tp_rank", "pp_rank", "dp_rank")})
    _answer_beside_the_event_loop(module.Scheduler, listener, inspection)
    module.run_scheduler_process(*args, **kwargs)


def _keep_last_words(module: Any, file: Path) -> None:
    """A scheduler that fails asks for its traceback, logs it, and sends SIGQUIT: keep the text where the worker finds it."""
    file.touch()
    stream = file.open("a", encoding="utf-8")
    original = module.get_exception_traceback

    def get_exception_traceback() -> str:
        text = str(original())
        stream.write(text + "\n")
        stream.flush()
        return text

    module.get_exception_traceback = get_exception_traceback


def _answer_beside_the_event_loop(scheduler_class: Any, listener: socket.socket, inspection: Inspection) -> None:
    original = scheduler_class.run_event_loop

    def run_event_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        inspection.loaded(self)
        turns = Turns(self)
        threading.Thread(target=_serve, args=(listener, inspection, turns), name="llminfer-questions", daemon=True).start()
        return original(self, *args, **kwargs)

    scheduler_class.run_event_loop = run_event_loop


_IN_TURN = ("memory", "reference_step", "trace_start", "trace_stop")
"""Answered by the loop's own thread: what its rounds hold or compute would be counted with it."""
_IDLE_ROUNDS = 3
_PATIENCE = 5.0
"""Seconds after which a loop counts as idle that keeps its last batch for good, as that of a pipeline's stage does."""


class Turns:
    """Lets another thread have a function called by the event loop, between two of its rounds, when no batch is left.

    A round's variables keep the batch before it: the loop has to have been idle for some rounds.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._idle_rounds = 0
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._since = 0.0
        original = scheduler.process_input_requests

        def process_input_requests(requests: Any, *args: Any, **kwargs: Any) -> Any:
            answer = original(requests, *args, **kwargs)
            self._idle_rounds = self._idle_rounds + 1 if self._idle() else 0
            waited = time.monotonic() - self._since
            if not self._asked.empty() and (self._idle_rounds >= _IDLE_ROUNDS or waited >= _PATIENCE):
                self._take()
            return answer

        scheduler.process_input_requests = process_input_requests

    def run(self, function: Callable[[], Any]) -> Any:
        """What the function returns or raises, called in the loop's thread."""
        future: Future[Any] = Future()
        self._since = time.monotonic()
        self._asked.put((function, future))
        return future.result()

    def _idle(self) -> bool:
        running = getattr(self._scheduler, "running_batch", None)
        return getattr(self._scheduler, "last_batch", None) is None and (running is None or running.is_empty())

    def _take(self) -> None:
        function, future = self._asked.get()
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - whatever goes wrong is the answer to the question: the scheduler lives on
            future.set_exception(error)


def _serve(listener: socket.socket, inspection: Inspection, turns: Turns) -> None:
    connection, _ = listener.accept()
    listener.close()
    with connection:
        stream = cast("IO[bytes]", connection.makefile("rwb"))
        while (question := read_message(stream)) is not None:
            try:
                answer = functools.partial(inspection.answer, question["method"], question["params"])
                reply = {"result": turns.run(answer) if question["method"] in _IN_TURN else answer()}
            except BaseException as error:  # noqa: BLE001 - whatever goes wrong is an answer: the scheduler lives on
                reply = {"error": describe(error)}
            write_message(stream, reply)
