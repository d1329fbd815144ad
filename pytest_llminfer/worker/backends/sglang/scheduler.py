"""What runs in a scheduler's process: SGLang's own function, with a thread beside it that answers questions about the live model.

The thread has a socket of its own, so that it needs no request type of SGLang's, and no turn in its event loop: the loop is idle
while a question is answered, because the worker asks one thing at a time. Same seams in 0.5.15 and 0.5.18.
"""

from __future__ import annotations

import inspect
import os
import socket
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from pytest_llminfer.worker.loop import describe
from pytest_llminfer.worker.protocol import read_message, write_message

if TYPE_CHECKING:
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
        threading.Thread(target=_serve, args=(listener, inspection), name="llminfer-questions", daemon=True).start()
        return original(self, *args, **kwargs)

    scheduler_class.run_event_loop = run_event_loop


def _serve(listener: socket.socket, inspection: Inspection) -> None:
    connection, _ = listener.accept()
    listener.close()
    with connection:
        stream = cast("IO[bytes]", connection.makefile("rwb"))
        while (question := read_message(stream)) is not None:
            try:
                reply = {"result": inspection.answer(question["method"], question["params"])}
            except BaseException as error:  # noqa: BLE001 - whatever goes wrong is an answer: the scheduler lives on
                reply = {"error": describe(error)}
            write_message(stream, reply)
