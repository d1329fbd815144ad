"""What vLLM raises, as the errors of this package: processes that died are named, and memory that did not suffice."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llminfer.errors import EngineDiedError, EngineStartError, LlminferError, OutOfMemoryError
from pytest_llminfer.worker.backends.vllm.watch import dead_process, is_dead, watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MEMORY_WORDS = (
    "out of memory",
    "less than desired",
    "less than requested memory",
    "no available memory for the cache blocks",
    "larger than the available kv cache memory",
    "allocate memory",
    "memoryerror",
    "std::bad_alloc",
)
_ERROR_LINE = re.compile(r"(?:^|[\s\]])((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit)): (.+)$")
_GENERIC = ("engine core initialization failed", "workerproc initialization failed", "worker failed with error")
_DEATH = re.compile(r"(?:Worker proc|Engine core proc) (\S+) died unexpectedly(?: \(exit code: (-?\d+)\))?")
_LAST_BYTES = 200_000


class Log:
    """What this process and the engine's have written to standard error since ``Log`` was made, where that is a file."""

    def __init__(self) -> None:
        target = Path("/proc/self/fd/2")
        self._file = Path(os.readlink(target)) if target.exists() else None  # noqa: PTH115 - the text of the link, deleted or not
        self._start = self._file.stat().st_size if self._file is not None and self._file.is_file() else None

    def text(self) -> str:
        """The last part of it; empty where standard error is no file."""
        if self._file is None or self._start is None:
            return ""
        with contextlib.suppress(OSError), self._file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(self._start, size - _LAST_BYTES))
            return stream.read().decode(errors="replace")
        return ""


@contextlib.contextmanager
def loading(model_path: str, log: Log) -> Iterator[None]:
    """The parent raises "see above" when a child of it fails to load: report what the child said.

    Raises:
        OutOfMemoryError: the model or its KV pool does not fit.
        EngineStartError: any other failure.
    """
    try:
        yield
    except LlminferError:
        raise
    except Exception as error:
        reason = root_cause(error, log.text())
        if any(words in reason.lower() for words in _MEMORY_WORDS):
            raise OutOfMemoryError(
                f"out of memory while loading {model_path}: {reason}; "
                "use a smaller model, KV pool (kv_cache_memory_bytes) or max_model_len, or another quantization"
            ) from error
        raise EngineStartError(f"vllm cannot load {model_path}: {reason}") from error


def root_cause(error: BaseException, log: str) -> str:
    """The first error that a process of the engine has logged and that says more than where to look, otherwise ``error``."""
    own = " ".join(str(error).split())
    if not any(words in own.lower() for words in _GENERIC):
        return f"{type(error).__name__}: {own}"[:1000]
    for line in log.splitlines():
        match = _ERROR_LINE.search(line)
        if match and not any(words in match[2].lower() for words in _GENERIC):
            return f"{match[1].rpartition('.')[2]}: {' '.join(match[2].split())}"[:1000]
    return own[:1000]


@contextlib.contextmanager
def running(doing: str, processes: dict[int, str], log: Log) -> Iterator[None]:
    """Name the process of the engine that has died, or the memory that ran out, in place of vLLM's own error.

    processes: name of every process by its id.

    Raises:
        EngineDiedError: a process of the engine has ended.
        OutOfMemoryError: memory ran out; other errors pass unchanged.
    """
    try:
        with watched(processes):
            yield
    except LlminferError:
        raise
    except Exception as error:
        named = _named_in(log.text(), processes)
        if named is None and type(error).__name__ != "EngineDeadError" and not any(map(is_dead, processes)):
            if any(words in str(error).lower() for words in _MEMORY_WORDS):
                raise OutOfMemoryError(f"out of memory while {doing}: {' '.join(str(error).split())[:500]}") from error
            raise
        raise EngineDiedError(f"{named or dead_process(processes)} while {doing}") from error


def _named_in(log: str, processes: Mapping[int, str]) -> str | None:
    """The first process that vLLM's monitors missed: when it goes, they end the others."""
    match = _DEATH.search(log)
    if match is None:
        return None
    pid = next((f" (process {pid})" for pid, name in processes.items() if name == match[1]), "")
    status = f" with exit status {match[2]}" if match[2] else ""
    return f"{match[1]}{pid} of vllm died{status}"
