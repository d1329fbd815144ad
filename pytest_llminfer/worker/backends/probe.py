"""A user's function, from a file of theirs, called with the live model: for what no request covers."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import BadInputError, EngineError, LlminferError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_numbers = itertools.count()


def call_probe(path: str, function: str, model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``{"result": …}``: what ``function(model, **arguments)`` returns, as plain data and arrays.

    Raises:
        BadInputError: no such file or function, or a result that is not plain data.
        EngineError: the user's code raised; the message holds its traceback.
    """
    probe = _load(path, function)
    try:
        result = probe(model, **arguments)
    except LlminferError:
        raise
    except Exception as error:
        raise EngineError(f"{function} in {path} raised {_traceback_from(path, error)}") from error
    return {"result": plain(result, where="result")}


def _load(path: str, function: str) -> Callable[..., Any]:
    file = Path(path)
    if not file.is_file():
        raise BadInputError(f"there is no file {path} to take {function!r} from")
    # A fresh name each time: the file may have changed, and two files may share a name.
    name = f"llminfer_probe_{next(_numbers)}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadInputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except LlminferError:
        raise
    except Exception as error:
        raise EngineError(f"importing {path} raised {_traceback_from(path, error)}") from error
    probe = getattr(module, function, None)
    if not callable(probe):
        names = sorted(key for key, value in vars(module).items() if getattr(value, "__module__", "") == name and callable(value))
        raise BadInputError(f"{path} has no function {function!r}; it has: {', '.join(names) or 'none'}")
    return probe  # type: ignore[no-any-return]


def _traceback_from(path: str, error: Exception) -> str:
    """The error, and its traceback from the user's file on."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((number for number, frame in enumerate(frames) if frame.filename == str(path)), 0)
    lines = "".join(traceback.format_list(frames[first:]))
    return "".join(traceback.format_exception_only(error)).strip() + "\n" + lines.rstrip()


def plain(value: Any, *, where: str) -> Any:
    """``value`` as JSON values and arrays; NumPy scalars become Python's, tuples become lists.

    Raises:
        BadInputError: something else is in it; the message says where.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item, where=f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, where=f"{where}[{key!r}]") for key, item in value.items()}
    kind = type(value).__name__ if not isinstance(value, dict) else "dict with keys that are no strings"
    raise BadInputError(f"{where} is a {kind}: a probe returns numbers, strings, lists, dictionaries and NumPy arrays")
