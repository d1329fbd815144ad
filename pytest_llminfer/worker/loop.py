"""The worker's main loop: read a request, ask the backend, answer. Ends, with its children, when the pytest process does."""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import shutil
import signal
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any

from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends import SERVED
from pytest_llminfer.worker.foreign import import_package
from pytest_llminfer.worker.protocol.failures import describe
from pytest_llminfer.worker.protocol.frames import SCRATCH, read_message, write_message

if TYPE_CHECKING:
    from pytest_llminfer.worker.backends.base import Backend


def main() -> None:
    """Serve requests from standard input until it ends or ``close`` is asked for."""
    requests, replies = _claim_pipes()
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_receive, args=(requests, inbox), name="llminfer-requests", daemon=True).start()
    Worker(replies).serve(inbox)


def _claim_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the pipes for messages: what engines print to standard output goes to standard error instead.

    The copies are not inherited, so a child of the engine cannot hold the pipe open after the worker has gone.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _receive(requests: IO[bytes], inbox: queue.Queue[dict[str, Any]]) -> None:
    """Pass requests on; when the pipe ends, the pytest process is gone, and this group of processes goes too, with its files."""
    try:
        while (message := read_message(requests)) is not None:
            inbox.put(message)
    finally:
        if folder := os.environ.get(SCRATCH):
            shutil.rmtree(folder, ignore_errors=True)
        os.killpg(os.getpgrp(), signal.SIGKILL)


class Worker:
    """One backend and the pipe on which its answers go out."""

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._request_id = 0

    def serve(self, inbox: queue.Queue[dict[str, Any]]) -> None:
        """Answer requests, one at a time, until ``close``."""
        while True:
            request = inbox.get()
            self._request_id = request["id"]
            try:
                result = self._answer(request["method"], request["params"])
            except BaseException as error:  # noqa: BLE001 - whatever stops the engine is an answer, SystemExit and KeyboardInterrupt too
                self._send({"id": request["id"], "error": describe(error)})
            else:
                self._send({"id": request["id"], "result": result})
                if request["method"] == "close":
                    return

    def _answer(self, method: str, params: dict[str, Any]) -> Any:
        if method == "warm":
            return self._warm(**params)
        if method == "load":
            return self._load(**params)
        if method == "close":
            if self._backend is not None:
                self._backend.close()
            return {}
        if self._backend is None:
            raise EngineStartError(f"{method} was asked for before the engine was loaded")
        if method == "time_generation":
            started = time.perf_counter()
            answer = self._backend.generate(**params)
            # An engine with a clock of its own has said so itself.
            return {"seconds": time.perf_counter() - started, **answer}
        return getattr(self._backend, method)(**params)

    def _make(
        self, spec: dict[str, Any], model_path: str, engine_args: dict[str, Any], backend: str, backend_file: str = ""
    ) -> Backend:
        """backend: ``module:Class``. backend_file: file of the package that holds it; empty for a backend of this package."""
        cell = EngineSpec(**spec)
        module_name, _, class_name = (SERVED if cell.serve else backend).partition(":")
        if backend_file and not cell.serve:
            import_package(module_name.partition(".")[0], backend_file)
        backend_class = getattr(importlib.import_module(module_name), class_name)
        made: Backend = backend_class(cell, model_path, engine_args, self._progress)
        return made

    def _warm(self, **params: Any) -> Any:
        """Import the engine ahead of its load; the load reports whatever is wrong with it."""
        with contextlib.suppress(Exception):
            self._make(**params).warm()
        return {}

    def _load(self, **params: Any) -> Any:
        cell = EngineSpec(**params["spec"])
        try:
            backend = self._make(**params)
            info = backend.load()
        except ModuleNotFoundError as error:
            raise EngineStartError(
                f"{sys.executable} has no module {error.name!r}, which {cell.engine} needs; "
                f"install it there, or name another interpreter: --engine={cell.engine}@/path/to/python"
            ) from error
        self._backend = backend
        return {**info, "capabilities": sorted(backend.capabilities)}

    def _progress(self, phase: str, done: int, total: int) -> None:
        self._send({"id": self._request_id, "event": "progress", "phase": phase, "done": done, "total": total})

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            write_message(self._replies, message)
