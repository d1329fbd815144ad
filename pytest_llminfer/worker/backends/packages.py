"""The Python packages that the engine needs: whether they are there, which versions, and how to get them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

from pytest_llminfer.errors import EngineStartError


def require(*names: str, purpose: str) -> None:
    """Refuse to start without these packages, with the command that installs them into this interpreter.

    Raises:
        EngineStartError: one of them is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineStartError(
            f"{purpose} needs {' and '.join(missing)}, which {sys.executable} does not have; "
            f"install it with: {sys.executable} -m pip install {' '.join(missing)}"
        )


def versions(*names: str) -> dict[str, str]:
    """Installed versions of those of ``names`` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
