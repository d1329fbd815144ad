"""What can go wrong, each as one clear line that names the thing and the way out. Standard library only."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pytest_llminfer.printable import bounded, printable

if TYPE_CHECKING:
    from collections.abc import Iterable


class LlminferError(Exception):
    """Base of every error that this package raises on purpose; shown to the user without a traceback.

    What an engine or a server says in it is shown as it can be: bounded, and with no character that a terminal obeys.
    """

    def __str__(self) -> str:
        return printable(bounded(super().__str__()))


class InvalidSpecError(LlminferError, ValueError):
    """A value that names nothing: the message lists the valid ones and the closest match."""

    def __init__(self, name: str, value: object, choices: Iterable[str]) -> None:
        self.name, self.value, self.choices = name, value, tuple(choices)
        close = difflib.get_close_matches(str(value), self.choices, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {name} {value!r}; valid: {', '.join(self.choices)}.{hint}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.name, self.value, self.choices))


class UnsupportedError(LlminferError):
    """The engine cannot do this: a visible skip with this reason.

    to_run: what would make the test run, as the rest of the sentence: ``use tp=1``. Every reason of this package has one.
    """

    def __init__(self, reason: str, to_run: str = "") -> None:
        super().__init__(f"{reason}; {to_run}" if to_run else reason)


class UnsupportedPlatformError(LlminferError):
    """Engines cannot be started on this operating system: tests that ask for one fail with this reason."""


class BadInputError(LlminferError):
    """Something the user gave cannot be used: a path, a file, an option."""


class RefusedConversationError(BadInputError):
    """The chat template refuses this conversation, such as one with a system message; others may be taken."""


class EngineError(LlminferError):
    """The engine answered with an error; the worker is still alive."""


class EngineStartError(EngineError):
    """The worker could not start or load: the interpreter, the engine or the model is at fault."""


class EngineDiedError(EngineError):
    """The worker or a process of its engine ended by itself; the message has its signal or exit status and its last words."""


class TransportError(EngineError):
    """Requests to a server got no answer, retries included: nothing that was asked with them may be judged."""


class EngineHungError(EngineError):
    """The worker said nothing for longer than its time limit and was killed."""


class OutOfMemoryError(EngineError):
    """The engine asked for more memory than the device has."""


class BaselineError(LlminferError):
    """A baseline file cannot be read or written."""


class MissingBaselineError(BaselineError):
    """Nothing is recorded for this cell: a visible skip that says how to record it, a failure with ``--llminfer-strict``."""


class BaselineRecordedError(LlminferError):
    """This run was recorded, so that there is nothing to judge it by: ends the test as a visible skip."""


class DatasetError(LlminferError):
    """A dataset cannot be loaded, or one of its rows is malformed."""


WORKER_ERRORS: dict[str, type[LlminferError]] = {
    "unsupported": UnsupportedError,
    "bad_input": BadInputError,
    "engine": EngineError,
    "transport": TransportError,
    "start": EngineStartError,
    "died": EngineDiedError,
    "out_of_memory": OutOfMemoryError,
}
"""How an error crosses the process boundary: its kind in the message, and the class raised in the pytest process."""


def kind_of(error: BaseException) -> str:
    """The message kind for an error raised in a worker."""
    exact = {cls: kind for kind, cls in WORKER_ERRORS.items()}
    return exact.get(type(error), "out_of_memory" if isinstance(error, MemoryError) else "engine")  # type: ignore[arg-type]
