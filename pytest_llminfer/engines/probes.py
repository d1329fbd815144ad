"""Functions of the user's that run in a worker: where it finds them."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable


def locate(probe: Callable[..., Any] | str) -> tuple[str, str]:
    """The file and the name of a probe.

    Raises:
        BadInputError: a file that does not exist, or a function that the worker could not import.
    """
    if isinstance(probe, str):
        path, separator, function = probe.partition("::")
        if not separator or not Path(path).is_file():
            raise BadInputError(f"a probe is named 'path/to/file.py::function'; {probe!r} is not, or the file does not exist")
        return os.path.abspath(path), function
    if "<" in probe.__qualname__ or "." in probe.__qualname__:
        raise BadInputError(
            f"the probe {probe.__qualname__!r} must be a function at the top level of its file: the worker imports it"
        )
    return os.path.abspath(inspect.getfile(probe)), probe.__name__
