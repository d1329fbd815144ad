"""What llama.cpp logs: warnings and errors go to the worker's log, and the last errors into messages."""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from typing import Any

_WARNING, _ERROR, _CONTINUED = 3, 4, 5
# As in ggml.h; the comments in llama-cpp-python number them otherwise.
_LINES = 4
_CALLED_BY_LIBRARY: list[Any] = []
"""Kept to the end of the process: the library holds an address, and calls it even after a load that failed."""


class NativeLog:
    """Takes the place of llama-cpp-python's own callback, which drops what it does not print."""

    def __init__(self, library: Any) -> None:
        self._errors: deque[str] = deque(maxlen=_LINES)
        self._level = 0
        callback = library.llama_log_callback(self._receive)
        _CALLED_BY_LIBRARY.append(callback)
        library.llama_log_set(callback, ctypes.c_void_p(0))

    def forget(self) -> None:
        """Forget what was logged: what follows belongs to the next action."""
        self._errors.clear()

    def errors(self) -> str:
        """The last errors since then, on one line."""
        return "; ".join(self._errors)

    def _receive(self, level: int, text: bytes, _data: Any) -> None:
        self._level = self._level if level == _CONTINUED else level
        if self._level not in {_WARNING, _ERROR}:
            return
        line = text.decode("utf-8", errors="replace")
        sys.stderr.write(line)
        if self._level == _ERROR and line.strip():
            self._errors.append(line.strip()[:300])
