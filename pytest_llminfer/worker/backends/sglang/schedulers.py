"""The worker's side of the schedulers: their shared folder, one connection a rank, questions to all of them at once."""

from __future__ import annotations

import functools
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import pytest_llminfer
from pytest_llminfer.errors import WORKER_ERRORS, EngineError, EngineStartError
from pytest_llminfer.worker.backends.sglang import scheduler
from pytest_llminfer.worker.protocol.frames import ProtocolError, read_message, write_message

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_SOCKET_PATH = 80


class Schedulers:
    """Processes that run ``scheduler.run_scheduler``. Asked all at once, since an answer may need them all."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="llminfer-")
        if len(folder) > _LONGEST_SOCKET_PATH:
            Path(folder).rmdir()
            folder = tempfile.mkdtemp(prefix="llminfer-", dir="/tmp")
        self._folder = Path(folder)
        self._streams: dict[int, IO[bytes]] = {}
        self._words: list[IO[str]] = []

    def process_function(self) -> Callable[..., None]:
        """What SGLang starts as a scheduler's process; pickled by name, so this package must be found by that name there.

        A spawned process takes over ``sys.path``: a folder that holds this package and nothing beside it joins the end of it.
        """
        (self._folder / "path").mkdir()
        (self._folder / "path" / "pytest_llminfer").symlink_to(Path(pytest_llminfer.__file__).parent)
        sys.path.append(str(self._folder / "path"))
        return functools.partial(scheduler.run_scheduler, str(self._folder))

    def connect(self, count: int) -> None:
        """Reach the ``count`` schedulers that are up now, and leave nothing on the disk.

        Raises:
            EngineStartError: there are not that many.
        """
        files = sorted(self._folder.glob(f"*{scheduler.SOCKET}"), key=lambda file: int(file.stem))
        self._words = [file.open(encoding="utf-8") for file in self._folder.glob(f"*{scheduler.WORDS}")]
        if len(files) != count:
            raise EngineStartError(f"sglang has {len(files)} schedulers, but the cell needs {count}")
        for file in files:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(file))
            # No time limit: a death ends the connection at once, and the session has its own for silence.
            self._streams[int(file.stem)] = cast("IO[bytes]", connection.makefile("rwb"))
        self.forget_files()

    def forget_files(self) -> None:
        """Remove the folder: what is open stays open."""
        path = str(self._folder / "path")
        if path in sys.path:
            sys.path.remove(path)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pids(self) -> list[int]:
        """Process ids, in the order of their start, which is that of the ranks."""
        return list(self._streams)

    def last_words(self) -> str:
        """The tracebacks of schedulers that failed."""
        if not self._words:
            return "\n".join(file.read_text(encoding="utf-8") for file in sorted(self._folder.glob(f"*{scheduler.WORDS}"))).strip()
        for stream in self._words:
            stream.seek(0)
        return "\n".join(stream.read() for stream in self._words).strip()

    def ask(self, method: str, **params: Any) -> list[dict[str, Any]]:
        """One answer a rank.

        Raises:
            ConnectionError: a scheduler has gone.
            LlminferError: what one of them answered.
        """
        replies = []
        try:
            for stream in self._streams.values():
                write_message(stream, {"method": method, "params": params})
            for stream in self._streams.values():
                if (reply := read_message(stream)) is None:
                    raise ConnectionError(f"a scheduler closed its connection instead of answering {method!r}")
                replies.append(reply)
        except (OSError, ProtocolError) as error:
            raise ConnectionError(str(error)) from error
        for reply in replies:
            if "error" in reply:
                raise _error(reply["error"])
        return [reply["result"] for reply in replies]


def _error(error: dict[str, str]) -> EngineError:
    text = error["message"] + (f"\n{error['traceback']}" if error["traceback"] else "")
    return WORKER_ERRORS.get(error["kind"], EngineError)(text)  # type: ignore[return-value]
