"""How an error of a worker, or of a process of its engine, crosses to the pytest process."""

from __future__ import annotations

import traceback

from pytest_llminfer.errors import LlminferError, kind_of

LAST_FRAMES = 4
"""Of an engine's own traceback: those before them are the way through the framework."""


def describe(error: BaseException) -> dict[str, str]:
    """An error as plain data: its kind, one line for the user, and the traceback for whoever mends the engine."""
    if isinstance(error, LlminferError):
        return {"kind": kind_of(error), "message": str(error), "traceback": ""}
    name = type(error).__name__
    text = "".join(traceback.format_exception(error, limit=-LAST_FRAMES))
    return {"kind": kind_of(error), "message": f"{name}: {error}" if str(error) else name, "traceback": text}
