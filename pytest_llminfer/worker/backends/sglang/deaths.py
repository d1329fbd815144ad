"""How a death inside the engine becomes an answer: SGLang itself would kill this process, and everything it could have said.

When one of its processes fails, SGLang 0.5.15 and 0.5.18 send SIGQUIT to the process that holds the Engine, whose handlers call
``kill_process_tree(os.getpid())``: the children, then itself. Here that call ends at most the children.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import EngineDiedError, EngineStartError, OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llminfer.errors import EngineError

_NO_MEMORY = (
    "out of memory",
    "outofmemory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "memoryerror",
    "memory pool size is too small",
    "no gpu memory for the kv cache",
    "memory capacity is unbalanced",
)
_LONGEST = 400


class _EngineFailedError(Exception):
    """SGLang wants to end this process while it starts."""


class Survival:
    """Keeps this process alive through SGLang's own clean-up."""

    def __init__(self) -> None:
        self.starting = True

    def install(self) -> None:
        """Replace ``kill_process_tree`` wherever a module of SGLang has it; call it after the imports, before the Engine."""
        for name, module in list(sys.modules.items()):
            original = getattr(module, "kill_process_tree", None) if name.startswith("sglang.") else None
            if callable(original) and not hasattr(original, "survives"):
                vars(module)["kill_process_tree"] = self._surviving(original)

    def _surviving(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def kill_process_tree(parent_pid: int | None = None, include_parent: bool = True, *rest: Any, **options: Any) -> Any:  # noqa: FBT001, FBT002 - SGLang's own signature
            if parent_pid not in (None, os.getpid()) or not include_parent:
                return original(parent_pid, include_parent, *rest, **options)
            if self.starting:
                original(os.getpid(), False, *rest, **options)  # noqa: FBT003 - SGLang's own signature
                raise _EngineFailedError("one of its processes failed")
            return None

        kill_process_tree.survives = True  # type: ignore[attr-defined]
        return kill_process_tree

    def started(self, loop: Any) -> None:
        """Drop the signal handlers that SGLang put on its event loop: from now on the next request finds out about a death."""
        self.starting = False
        for number in (signal.SIGTERM, signal.SIGQUIT):
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)


def death(doing: str, ended: Sequence[str], last_words: str) -> EngineError:
    """The error for processes that ended: running out of memory is recognised by their last output."""
    who = " and ".join(ended) or "a process"
    reason = last_line(last_words)
    if _is_out_of_memory(reason):
        return OutOfMemoryError(f"out of memory while {doing}: {reason}")
    said = f": {reason}" if reason else " without a word; SIGKILL and the kernel's out-of-memory killer leave none (see dmesg)"
    return EngineDiedError(f"{who} of sglang ended while {doing}{said}")


def failed_start(error: BaseException, last_words: str) -> EngineError:
    """The error for an Engine that did not start."""
    if not last_words and "scheduler died" in str(error):
        return death("starting", [last_line(str(error)).partition(".")[0]], "")
    reason = last_line(last_words) or f"{type(error).__name__}: {last_line(str(error))}"
    if _is_out_of_memory(reason):
        return OutOfMemoryError(f"out of memory while sglang was starting: {reason}")
    return EngineStartError(f"sglang did not start: {reason}")


def last_line(text: str) -> str:
    """The line of a traceback that names the error: the last one that is not indented and holds a word of its own."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if not line.startswith((" ", "\t")) and _names_an_error(line)]
    return (named or lines or [""])[-1].strip()[:_LONGEST]


def _names_an_error(line: str) -> bool:
    name = line.partition(":")[0]
    return name.replace(".", "").replace("_", "").isalnum() and name.rpartition(".")[2].endswith(
        ("Error", "Exception", "Interrupt")
    )


def _is_out_of_memory(reason: str) -> bool:
    return any(words in reason.lower() for words in _NO_MEMORY)
