"""A request as the bytes that a worker reads, and the error for one that cannot be sent."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.worker.protocol.frames import write_message

if TYPE_CHECKING:
    from collections.abc import Mapping


def encode(number: int, method: str, params: Mapping[str, Any]) -> bytes:
    """The whole frame, before any of it is sent: half a request would end the worker.

    Raises:
        BadInputError: a parameter that is not plain data, by its place, or one that contains itself.
    """
    frame = io.BytesIO()
    try:
        write_message(frame, {"id": number, "method": method, "params": dict(params)})
    except RecursionError:
        raise BadInputError(f"{method!r} was given something that holds itself, which cannot be sent to the worker") from None
    except (TypeError, ValueError) as error:
        what = next(filter(None, (_unsendable(value, name) for name, value in params.items())), str(error))
        raise BadInputError(
            f"{method!r} cannot be sent to the worker: {what}; what crosses over is numbers, strings, lists, dictionaries "
            "and NumPy arrays"
        ) from None
    return frame.getvalue()


def _unsendable(value: Any, where: str) -> str:
    """Where the first thing lies that is no plain data, and what it is; empty when there is none."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(f"{where}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{where}[{number}]", item) for number, item in enumerate(value)]
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        dtype = getattr(value, "dtype", None)
        if dtype is None or getattr(dtype, "hasobject", True):
            return f"{where} is a {type(value).__name__}" + (f" of {dtype}" if dtype is not None else "")
    return next(filter(None, (_unsendable(item, place) for place, item in items)), "")
