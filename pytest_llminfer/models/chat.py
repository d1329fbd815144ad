"""Chat templates, rendered in a process beside pytest that a template can neither hold up nor exhaust."""

from __future__ import annotations

import atexit
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from pytest_llminfer.errors import BadInputError, RefusedConversationError
from pytest_llminfer.models import chat_process
from pytest_llminfer.models.chat_forms import TODAY
from pytest_llminfer.models.chat_process import COMPILE, MEMORY_BYTES, MISSING, REFUSED, SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

WAY_OUT = "fetch the file again, or use completion prompts"


class ChatTemplate:
    """A chat template. file: where it stands, for messages."""

    def __init__(self, source: str, *, file: Path) -> None:
        self._source, self._file = source, file

    def render(self, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str], *, today: date = TODAY) -> str:
        """The text of a conversation up to where the model answers. tokens: the special ones by name, such as ``bos_token``.

        today: what ``strftime_now`` says, at midnight. Tools and documents are None, as transformers gives them.

        Raises:
            RefusedConversationError: the template refuses the conversation.
            BadInputError: it cannot be compiled, fails on the conversation, or takes more than 10 s or 1 GiB; or jinja2 is missing.
        """
        given = {"messages": [dict(message) for message in messages], "today": today.isoformat(), **tokens}
        reply = _PROCESS.ask({"source": self._source, "given": given})
        if "text" in reply:
            return str(reply["text"])
        raise self._error(reply)

    def _error(self, reply: Mapping[str, Any]) -> Exception:
        kind, said = reply["kind"], next(iter(reply["message"].strip().splitlines()), reply.get("name", ""))
        if kind == MISSING:
            return BadInputError("chat templates need the package jinja2: pip install 'pytest-llminfer[suites]'")
        if kind == REFUSED:
            return RefusedConversationError(f"the chat template refuses the conversation: {reply['message']}")
        if kind == COMPILE:
            where = f" at line {reply['line']}" if reply["line"] else ""
            return BadInputError(f"the chat template in {self._file} does not compile{where} ({said}); {WAY_OUT}")
        if reply["name"] == MemoryError.__name__:
            return BadInputError(f"the chat template in {self._file} takes more than {MEMORY_BYTES >> 20} MiB; {WAY_OUT}")
        return BadInputError(f"the chat template in {self._file} {_failing(reply['name'], said)}; {WAY_OUT}")


def _failing(name: str, said: str) -> str:
    """What a template did, as a phrase; name: of the exception, empty where its process was ended."""
    return f"fails ({name}: {said})" if name else said


class _Process:
    """The process, started with the first template and again after one that ended it. One conversation at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply; of a process that has ended, how."""
        with self._lock:
            if self._running is None:
                self._running = subprocess.Popen(  # noqa: S603 - this interpreter and a file of this package
                    [sys.executable, "-P", str(Path(chat_process.__file__))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            try:
                stdin, stdout = cast("IO[bytes]", self._running.stdin), cast("IO[bytes]", self._running.stdout)
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
                line = stdout.readline()
            except OSError:
                line = b""
            if line:
                return dict(json.loads(line))
            status = self.end()
        if status == -getattr(signal, "SIGXCPU", 0):
            said = f"takes more than {SECONDS} s for one conversation"
        else:
            said = f"ended the process that renders it (status {status})"
        return {"kind": "ended", "name": "", "message": said}

    def end(self) -> int:
        """The exit status of the process, which has ended or is ended now."""
        running, self._running = self._running, None
        if running is None:
            return 0
        if running.stdin:
            running.stdin.close()
        try:
            return running.wait(timeout=1)
        except subprocess.TimeoutExpired:
            running.kill()
            return running.wait()
        finally:
            if running.stdout:
                running.stdout.close()


_PROCESS = _Process()
atexit.register(_PROCESS.end)
